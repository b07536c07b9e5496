//! The folder of a training run: its settings, its log, its snapshots.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;
use train::{Settings, Snapshots};

use crate::error::UserError;

const SETTINGS: &str = "settings.toml";
const LOG: &str = "log.jsonl";
const SNAPSHOTS: &str = "snapshots";

/// The folder of a run.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    log: File,
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
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| handlers::Error::Io { action, path, source }
        };
        let log = path.join(LOG);
        if from.is_none() && log.exists() {
            return Err(UserError::RunExists { path: path.display().to_string() }.into());
        }
        fs::create_dir_all(path).map_err(io("create", path))?;
        let settings_path = path.join(SETTINGS);
        let text = toml::to_string_pretty(settings).expect("numbers and names");
        fs::write(&settings_path, text).map_err(io("write", &settings_path))?;
        if let Some(step) = from
            && log.exists()
        {
            let kept = lines_up_to(&log, step).map_err(io("read", &log))?;
            fs::write(&log, kept).map_err(io("write", &log))?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&log).map_err(io("open", &log))?;
        let snapshots = Self::snapshots(path, settings);
        Ok(Self { path: path.to_owned(), log: file, snapshots })
    }

    /// The snapshots of the run in a folder, whether or not it is there.
    pub fn snapshots(path: &Path, settings: &Settings) -> Snapshots {
        Snapshots::new(path.join(SNAPSHOTS), settings.save_total_limit)
    }

    /// Adds a line to the log.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn log(&mut self, line: &Value) -> anyhow::Result<()> {
        let path = self.path.join(LOG);
        let failed = |source| handlers::Error::Io { action: "write", path, source };
        Ok(writeln!(self.log, "{line}").and_then(|()| self.log.flush()).map_err(failed)?)
    }
}

/// The lines of a log up to a step; one that was torn is dropped.
fn lines_up_to(path: &Path, step: usize) -> io::Result<String> {
    let mut kept = String::new();
    for line in BufReader::new(File::open(path)?).lines() {
        let line = line?;
        let at = serde_json::from_str::<Value>(&line).ok().and_then(|line| line["step"].as_u64());
        if at.is_some_and(|at| at as usize <= step) {
            kept += &line;
            kept.push('\n');
        }
    }
    Ok(kept)
}
