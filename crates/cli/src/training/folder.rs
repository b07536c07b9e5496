//! The folder of a training run: its settings, its log, its curves, its snapshots.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;
use train::{Settings, Snapshots};

use super::curves::curves;
use super::settings::from_file;
use crate::error::UserError;

const SETTINGS: &str = "settings.toml";
const LOG: &str = "log.jsonl";
const CURVES: &str = "curves.svg";
const SNAPSHOTS: &str = "snapshots";
const LOCK: &str = "lock";

/// The folder of a run.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    file: File,
    /// Held for as long as the run goes on, so that no second process does the same steps into the same files.
    _lock: File,
    /// The lines of the log.
    lines: Vec<Value>,
    /// The run's snapshots.
    pub snapshots: Snapshots,
}

impl RunFolder {
    /// Refuses a folder that holds a run already.
    ///
    /// # Errors
    /// When there is a log or a snapshot in it, or it cannot be read.
    pub fn check_is_new(path: &Path, settings: &Settings) -> anyhow::Result<()> {
        match path.join(LOG).exists() || !Self::snapshots(path, settings).is_empty()? {
            true => Err(UserError::RunExists { path: path.display().to_string() }.into()),
            false => Ok(()),
        }
    }

    /// Makes the folder of a new run, or opens that of one that goes on from `step`: what its log says of later steps is
    /// dropped, since they will be done again.
    ///
    /// # Errors
    /// When a new run would overwrite another, another process works there, or the disk fails.
    pub fn open(path: &Path, settings: &Settings, from: Option<usize>) -> anyhow::Result<Self> {
        fs::create_dir_all(path).map_err(io("create", path))?;
        let lock = lock(path)?;
        if from.is_none() {
            Self::check_is_new(path, settings)?;
        }
        replace(&path.join(SETTINGS), &toml::to_string_pretty(settings).expect("numbers and names"))?;
        let log = path.join(LOG);
        let mut lines = Vec::new();
        if let Some(step) = from
            && log.exists()
        {
            lines = lines_up_to(&log, step).map_err(io("read", &log))?;
            replace(&log, &lines.iter().map(|line| format!("{line}\n")).collect::<String>())?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&log).map_err(io("open", &log))?;
        let snapshots = Self::snapshots(path, settings);
        Ok(Self { path: path.to_owned(), file, _lock: lock, lines, snapshots })
    }

    /// The settings of the run in a folder, where there is one.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn settings(path: &Path) -> anyhow::Result<Option<Settings>> {
        let path = path.join(SETTINGS);
        Ok(if path.exists() { Some(from_file(&path)?.0) } else { None })
    }

    /// The snapshots of the run in a folder, whether or not it is there.
    pub fn snapshots(path: &Path, settings: &Settings) -> Snapshots {
        Snapshots::new(path.join(SNAPSHOTS), settings.save_total_limit)
    }

    /// What the log says of the validation text: steps and perplexities.
    pub fn validated(&self) -> Vec<(usize, f64)> {
        let read =
            |line: &Value| Some((line["step"].as_u64()? as usize, line["validation_perplexity"].as_f64()?));
        self.lines.iter().filter_map(read).collect()
    }

    /// Adds a line to the log.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn log(&mut self, line: Value) -> anyhow::Result<()> {
        let path = self.path.join(LOG);
        writeln!(self.file, "{line}").and_then(|()| self.file.flush()).map_err(io("write", &path))?;
        self.lines.push(line);
        Ok(())
    }

    /// Brings the log to the disk, and draws its curves.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sync(&self) -> anyhow::Result<()> {
        let (log, path) = (self.path.join(LOG), self.path.join(CURVES));
        self.file.sync_data().map_err(io("sync", &log))?;
        Ok(fs::write(&path, curves(&self.lines)).map_err(io("write", &path))?)
    }
}

/// Keeps other processes out until the file is closed, by whatever ends this one.
fn lock(folder: &Path) -> anyhow::Result<File> {
    let path = folder.join(LOCK);
    let file = File::create(&path).map_err(io("create", &path))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            Err(UserError::RunBusy { path: folder.display().to_string() }.into())
        }
        // Some file systems have no locks, and a run there is still a run.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}

/// Writes a small file anew: as it was, or whole.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let partial = path.with_extension("partial");
    fs::write(&partial, text)
        .and_then(|()| File::open(&partial)?.sync_all())
        .and_then(|()| fs::rename(&partial, path))
        .map_err(io("write", path))?;
    Ok(())
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> handlers::Error {
    let path = path.to_owned();
    move |source| handlers::Error::Io { action, path, source }
}

/// The lines of a log up to a step; one that was torn is dropped.
fn lines_up_to(path: &Path, step: usize) -> io::Result<Vec<Value>> {
    let mut kept = Vec::new();
    for line in BufReader::new(File::open(path)?).lines() {
        let Ok(line) = serde_json::from_str::<Value>(&line?) else { continue };
        if line["step"].as_u64().is_some_and(|at| at as usize <= step) {
            kept.push(line);
        }
    }
    Ok(kept)
}
