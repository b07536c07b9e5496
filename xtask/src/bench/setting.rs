//! Where and when something was measured.

use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// Date, program and machine of a measurement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// The day it was measured (UTC), `2025-01-31`.
    pub date: String,
    /// What `shrink --version` says.
    pub program: String,
    /// The commit, and whether the tree had changes; empty outside git.
    pub revision: String,
    /// The processor, as the system names it.
    pub processor: String,
    /// Cores the system gives us.
    pub cores: usize,
}

impl Setting {
    /// Now and here.
    pub fn now(root: &Path, program: String) -> Self {
        let seconds =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self {
            date: date(seconds),
            program,
            revision: revision(root).unwrap_or_default(),
            processor: processor(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// One line for a page.
    pub fn line(&self) -> String {
        let revision = if self.revision.is_empty() { "no git" } else { &self.revision };
        format!("{}, {} ({revision}), {} × {}", self.date, self.program, self.cores, self.processor)
    }
}

fn revision(root: &Path) -> Option<String> {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).current_dir(root).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=10", "HEAD"])?;
    // What is measured here is the program, so pages that an earlier benchmark wrote are no change.
    let changes = git(&["status", "--porcelain", "--", "crates", "Cargo.lock"])?;
    Some(if changes.is_empty() { commit } else { format!("{commit} and changes") })
}

/// The first `model name` of /proc/cpuinfo.
fn processor(cpuinfo: &str) -> String {
    let line = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    line.and_then(|rest| rest.split_once(':'))
        .map_or("unknown processor".into(), |(_, name)| name.trim().into())
}

/// The civil date of a Unix time (Hinnant, *chrono-compatible low-level date algorithms*, `civil_from_days`).
fn date(unix_seconds: u64) -> String {
    // Days since 1 March of year 0, so that a leap day ends its year.
    let days = unix_seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unix_times_become_civil_dates() {
        let day = |days: u64| date(days * 86_400);
        assert_eq!(day(0), "1970-01-01");
        assert_eq!(day(31 + 28), "1970-03-01");
        // 2000 had a leap day although 1900 had none.
        assert_eq!([day(11_016), day(11_017)], ["2000-02-29", "2000-03-01"]);
        assert_eq!([date(1_735_689_599), date(1_735_689_600)], ["2024-12-31", "2025-01-01"]);
    }

    #[test]
    fn the_processor_is_read_from_cpuinfo() {
        assert_eq!(processor("processor\t: 0\nmodel name\t: AMD EPYC\nmodel name\t: other\n"), "AMD EPYC");
        assert_eq!(processor(""), "unknown processor");
    }
}
