//! Running the program: what it says, and what it takes.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tempfile::TempDir;

use crate::workspace::{Workspace, cargo};

/// Added to the niceness of every run, so that a machine in use stays usable.
pub const NICE: &str = "10";
/// GNU time. Resource use of a child could only be asked for with `unsafe` code.
const TIME: &str = "/usr/bin/time";

/// A private copy of the program in a folder of its own.
#[derive(Debug)]
pub struct Shrink {
    folder: TempDir,
    binary: PathBuf,
    version: String,
}

/// What one run took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Wall time.
    pub wall_s: f64,
    /// Time of all cores together, the system's included.
    pub cpu_s: f64,
    /// The most memory that was resident at once.
    pub peak_bytes: u64,
}

/// What the program says beforehand that a conversion will take; what it does not say is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Predicted {
    /// Wall time.
    pub seconds: Option<f64>,
    /// The most memory resident at once.
    pub peak_memory_bytes: Option<f64>,
    /// The temporary file.
    pub scratch_bytes: Option<f64>,
    /// The folder written.
    pub output_bytes: Option<f64>,
}

impl Shrink {
    /// Copies `binary`, or else builds the tree and copies what comes out.
    ///
    /// # Errors
    /// When it cannot be built, copied or started.
    pub fn copy(workspace: &Workspace, binary: Option<&Path>) -> Result<Self> {
        let built = workspace.target.join("release").join(format!("shrink{}", std::env::consts::EXE_SUFFIX));
        if binary.is_none() {
            let build = ["build", "--release", "--workspace"];
            let status = cargo(&workspace.root).args(build).status().context("cannot run cargo")?;
            if !status.success() {
                bail!("the program could not be built");
            }
        }
        let from = binary.unwrap_or(&built);
        let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(&workspace.target)?;
        let binary = folder.path().join("shrink");
        fs::copy(from, &binary).with_context(|| format!("cannot copy {}", from.display()))?;
        let mut shrink = Self { folder, binary, version: String::new() };
        shrink.version = shrink.output(shrink.command(&["--version".into()]))?.trim().to_owned();
        Ok(shrink)
    }

    /// What `--version` says.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// A folder that is removed with the copy.
    pub fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// Runs it with `--json` and reads what it prints.
    ///
    /// # Errors
    /// When it fails, or prints no JSON.
    pub fn json(&self, args: &[OsString]) -> Result<Value> {
        let text = self.output(self.command(&with_json(args)))?;
        serde_json::from_str(&text).with_context(|| format!("shrink {} printed no JSON", shown(args)))
    }

    /// As [`json`](Self::json), and measures it.
    ///
    /// # Errors
    /// As [`json`](Self::json), and when GNU time is not there.
    pub fn timed(&self, args: &[OsString]) -> Result<(Value, Cost)> {
        self.timed_with(args, None)
    }

    /// As [`timed`](Self::timed), with so many threads, or as many as it likes.
    ///
    /// # Errors
    /// As [`timed`](Self::timed).
    pub fn timed_with(&self, args: &[OsString], threads: Option<usize>) -> Result<(Value, Cost)> {
        if !Path::new(TIME).exists() {
            bail!("{TIME} is missing (Debian: apt-get install time)");
        }
        let report = self.scratch().join("time.txt");
        let mut command = Command::new("nice");
        command.args(["-n", NICE, TIME, "-f", "%e %U %S %M", "-o"]).arg(&report);
        command.arg(&self.binary).args(with_json(args));
        if let Some(threads) = threads {
            command.env("RAYON_NUM_THREADS", threads.to_string());
        }
        let text = self.output(command)?;
        let value =
            serde_json::from_str(&text).with_context(|| format!("shrink {} printed no JSON", shown(args)))?;
        let report = fs::read_to_string(&report).context("cannot read what GNU time measured")?;
        let cost = Cost::parse(&report).with_context(|| format!("{TIME} is not GNU time: {report}"))?;
        Ok((value, cost))
    }

    fn command(&self, args: &[OsString]) -> Command {
        let mut command = Command::new("nice");
        command.args(["-n", NICE]).arg(&self.binary).args(args);
        command
    }

    /// What a command prints; its stderr goes where ours goes, progress and all.
    fn output(&self, mut command: Command) -> Result<String> {
        let output =
            command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot run {command:?}"))?;
        if !output.status.success() {
            bail!("{command:?} failed: {}", output.status);
        }
        String::from_utf8(output.stdout).context("it printed something other than UTF-8")
    }
}

impl Cost {
    /// Reads `%e %U %S %M` of GNU time: seconds elapsed, of user and of system, and KiB.
    fn parse(report: &str) -> Option<Self> {
        let mut numbers = report.lines().last()?.split_whitespace().map(|word| word.parse::<f64>().ok());
        let mut next = || numbers.next().flatten();
        let (wall_s, user_s, system_s, kib) = (next()?, next()?, next()?, next()?);
        Some(Self { wall_s, cpu_s: user_s + system_s, peak_bytes: (kib * 1024.0) as u64 })
    }

    /// The median of each number by itself.
    pub fn median(costs: &[Self]) -> Option<Self> {
        let of = |get: fn(&Self) -> f64| median(costs.iter().map(get).collect());
        Some(Self {
            wall_s: of(|cost| cost.wall_s)?,
            cpu_s: of(|cost| cost.cpu_s)?,
            peak_bytes: of(|cost| cost.peak_bytes as f64)? as u64,
        })
    }
}

impl Predicted {
    /// Reads `predicted` of `shrink convert --dry-run --json`.
    pub fn parse(json: &Value) -> Self {
        let get = |field: &str| json["predicted"][field].as_f64();
        Self {
            seconds: get("seconds"),
            peak_memory_bytes: get("peak_memory_bytes"),
            scratch_bytes: get("scratch_bytes"),
            output_bytes: get("output_bytes"),
        }
    }
}

/// The middle one, or the mean of the middle two.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

fn with_json(args: &[OsString]) -> Vec<OsString> {
    args.iter().cloned().chain(["--json".into()]).collect()
}

/// Arguments as they would be typed.
pub fn shown(args: &[OsString]) -> String {
    args.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// The bytes of all files in a folder.
pub fn folder_bytes(folder: &Path) -> Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        total += entry?.metadata()?.len();
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn gnu_times_report_is_read_from_its_last_line() {
        let cost =
            Cost::parse("Command exited with non-zero status 1\n1.50 2.25 0.25 2048\n").expect("a report");
        assert_eq!(cost, Cost { wall_s: 1.5, cpu_s: 2.5, peak_bytes: 2 << 20 });
        for bad in ["", "1.5 2.25", "real 1.5 user 2 sys 3"] {
            assert_eq!(Cost::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_median_is_taken_of_each_number_by_itself() {
        let cost = |wall_s, cpu_s, peak_bytes| Cost { wall_s, cpu_s, peak_bytes };
        let costs = [cost(3.0, 1.0, 10), cost(1.0, 9.0, 30), cost(2.0, 2.0, 20)];
        assert_eq!(Cost::median(&costs), Some(cost(2.0, 2.0, 20)));
        assert_eq!(Cost::median(&costs[..2]), Some(cost(2.0, 5.0, 20)));
        assert_eq!(Cost::median(&[]), None);
    }

    #[test]
    fn what_the_program_does_not_predict_is_none() {
        let json = json!({ "predicted": { "seconds": 2.5, "peak_memory_bytes": 1024 } });
        let predicted = Predicted::parse(&json);
        assert_eq!((predicted.seconds, predicted.peak_memory_bytes), (Some(2.5), Some(1024.0)));
        assert_eq!(predicted.output_bytes, None);
        assert_eq!(Predicted::parse(&json!({})), Predicted::default());
    }
}
