//! A Python environment with what shrink is measured against.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use super::run::NICE;
use crate::workspace::Workspace;

/// Where Python is.
#[derive(Clone, Debug, Args)]
pub struct PeerArgs {
    /// A Python that has the peers [default: an environment in the target folder, made with them from PyPI]
    #[arg(long, value_name = "FILE")]
    python: Option<PathBuf>,
}

/// A Python that has the peers.
#[derive(Debug)]
pub struct Peer {
    python: PathBuf,
}

impl PeerArgs {
    /// The Python given, or an environment of our own with these packages (`name==version`).
    ///
    /// # Errors
    /// When there is no Python, or a package cannot be installed.
    pub fn peer(&self, workspace: &Workspace, packages: &[&str]) -> Result<Peer> {
        if let Some(python) = &self.python {
            return Ok(Peer { python: python.clone() });
        }
        let folder = workspace.target.join("peers");
        let python = folder.join("bin/python");
        if !python.exists() {
            done(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        }
        println!("==> installing {} into {}", packages.join(", "), folder.display());
        done(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(packages))?;
        Ok(Peer { python })
    }
}

impl Peer {
    /// Runs a script for what it writes.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, script: &Path, args: &[String]) -> Result<()> {
        done(Command::new(&self.python).arg(script).args(args))
    }

    /// Runs a script and reads the JSON that it prints last; with this many threads.
    ///
    /// # Errors
    /// When it fails, or prints none.
    pub fn json(&self, script: &Path, args: &[String], threads: usize) -> Result<Value> {
        let mut command = nice(&self.python);
        command.arg(script).args(args);
        threaded_json(&mut command, threads)
    }
}

/// A command as polite as every run of ours, so that whatever else runs befalls both alike.
pub fn nice(program: &Path) -> Command {
    let mut command = Command::new("nice");
    command.args(["-n", NICE]).arg(program);
    command
}

/// Runs a program with so many threads of every library that may be in it, and reads the JSON that it prints last.
///
/// # Errors
/// When it fails, or prints none.
pub fn threaded_json(command: &mut Command, threads: usize) -> Result<Value> {
    for variable in ["RAYON_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"] {
        command.env(variable, threads.to_string());
    }
    let output =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    serde_json::from_str(last).with_context(|| format!("{command:?} printed no JSON"))
}

/// Runs a command to its end.
///
/// # Errors
/// When it cannot be run, or fails.
pub fn done(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    match status.success() {
        true => Ok(()),
        false => bail!("{command:?} failed: {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_what_a_program_found() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "echo a warning; echo '{\"threads\": '$OMP_NUM_THREADS'}'; echo"]);
        assert_eq!(threaded_json(&mut shell, 3).expect("JSON")["threads"], 3);
        let mut silent = Command::new("true");
        assert!(threaded_json(&mut silent, 1).expect_err("nothing").to_string().contains("no JSON"));
    }
}
