//! The folder of a training run: its settings, its log, its curves, its snapshots.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;
use train::{Settings, Snapshots};

use super::curves::curves;
use crate::error::UserError;

const SETTINGS: &str = "settings.toml";
const LOG: &str = "log.jsonl";
const CURVES: &str = "curves.svg";
const SNAPSHOTS: &str = "snapshots";

/// The folder of a run.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    file: File,
    /// The lines of the log.
    lines: Vec<Value>,
    /// The run's snapshots.
    pub snapshots: Snapshots,
}

impl RunFolder {
    /// Makes the folder of a new run, or opens that of one that goes on from `step`: what its log says of later steps is
    /// dropped, since they will be done again.
    ///
    /// # Errors
    /// When a new run would overwrite another, or the disk fails.
    pub fn open(path: &Path, settings: &Settings, from: Option<usize>) -> anyhow::Result<Self> {
        let log = path.join(LOG);
        if from.is_none() && log.exists() {
            return Err(UserError::RunExists { path: path.display().to_string() }.into());
        }
        fs::create_dir_all(path).map_err(io("create", path))?;
        let settings_path = path.join(SETTINGS);
        let text = toml::to_string_pretty(settings).expect("numbers and names");
        fs::write(&settings_path, text).map_err(io("write", &settings_path))?;
        let mut lines = Vec::new();
        if let Some(step) = from
            && log.exists()
        {
            lines = lines_up_to(&log, step).map_err(io("read", &log))?;
            let kept: String = lines.iter().map(|line| format!("{line}\n")).collect();
            fs::write(&log, kept).map_err(io("write", &log))?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&log).map_err(io("open", &log))?;
        let snapshots = Self::snapshots(path, settings);
        Ok(Self { path: path.to_owned(), file, lines, snapshots })
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

    /// Draws the curves of the log.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn draw(&self) -> anyhow::Result<()> {
        let path = self.path.join(CURVES);
        Ok(fs::write(&path, curves(&self.lines)).map_err(io("write", &path))?)
    }
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
