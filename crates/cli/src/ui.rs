//! What the user sees while something runs: bars on a terminal, plain lines elsewhere, nothing with `--quiet`.
//!
//! Everything here goes to stderr; stdout is for results.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use handlers::hub::{DownloadObserver, HubError};
use indicatif::{ProgressBar, ProgressStyle};

/// How much is shown, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ui {
    /// Bars that move.
    Terminal,
    /// A line now and then.
    Plain,
    /// Nothing.
    Quiet,
}

/// Time between two plain lines of one task.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

impl Ui {
    /// What suits this process's stderr.
    pub fn new(quiet: bool) -> Self {
        match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Ui::Quiet,
            (false, true) => Ui::Terminal,
            (false, false) => Ui::Plain,
        }
    }

    /// Shows a sentence.
    pub fn note(self, text: &str) {
        if self != Ui::Quiet {
            line(text);
        }
    }

    /// Begins a task of `total` steps (0 when unknown).
    pub fn task(self, label: &str, total: u64) -> Task {
        let bar = match self {
            Ui::Terminal => {
                let bar = ProgressBar::new(total);
                let style = ProgressStyle::with_template("{msg:28} [{bar:32}] {pos}/{len}  {eta} left");
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
                bar.set_message(label.to_owned());
                Some(bar)
            }
            Ui::Plain | Ui::Quiet => None,
        };
        Task { ui: self, label: label.into(), bar, begun: Instant::now(), spoke: Instant::now() }
    }

    /// Progress of downloads.
    pub fn downloads(self) -> Downloads {
        Downloads { ui: self, current: Mutex::new(None) }
    }
}

/// Diagnostics are best effort: a closed stderr is no reason to stop working.
fn line(text: &str) {
    drop(writeln!(std::io::stderr().lock(), "{text}"));
}

/// A task whose end is in sight.
#[derive(Debug)]
pub struct Task {
    ui: Ui,
    label: String,
    bar: Option<ProgressBar>,
    begun: Instant,
    spoke: Instant,
}

impl Task {
    /// `done` of `total` steps are done.
    pub fn at(&mut self, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
        } else if self.ui == Ui::Plain && self.spoke.elapsed() >= PLAIN_INTERVAL && done < total {
            self.spoke = Instant::now();
            line(&format!("{}: {done}/{total}", self.label));
        }
    }

    /// The task is done.
    pub fn finish(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if self.ui != Ui::Quiet {
            line(&format!("{}: done in {:.1} s", self.label, self.begun.elapsed().as_secs_f64()));
        }
    }
}

/// The phases of a conversion, a task each.
#[derive(Debug)]
pub struct Phases {
    ui: Ui,
    current: Option<(Task, u64)>,
}

impl Ui {
    /// Progress of a conversion.
    pub fn phases(self) -> Phases {
        Phases { ui: self, current: None }
    }
}

impl calib::Observer for Phases {
    fn phase(&mut self, name: &'static str, steps: usize) {
        if let Some((task, _)) = self.current.take() {
            task.finish();
        }
        self.current = Some((self.ui.task(name, steps as u64), steps as u64));
    }

    fn step(&mut self, done: usize) {
        if let Some((task, steps)) = &mut self.current {
            task.at(done as u64, *steps);
        }
    }
}

impl Drop for Phases {
    fn drop(&mut self) {
        if let Some((task, _)) = self.current.take() {
            task.finish();
        }
    }
}

/// A bar a file.
#[derive(Debug)]
pub struct Downloads {
    ui: Ui,
    current: Mutex<Option<(Task, u64, u64)>>,
}

impl Downloads {
    fn with(&self, f: impl FnOnce(&mut Option<(Task, u64, u64)>)) {
        match self.current.lock() {
            Ok(mut current) => f(&mut current),
            Err(poisoned) => f(&mut poisoned.into_inner()),
        }
    }
}

impl DownloadObserver for Downloads {
    fn begin(&self, file: &str, bytes: u64) {
        self.with(|current| *current = Some((self.ui.task(&format!("downloading {file}"), bytes), 0, bytes)));
    }

    fn advance(&self, bytes: u64) {
        self.with(|current| {
            if let Some((task, done, total)) = current {
                *done += bytes;
                task.at(*done, (*total).max(*done));
            }
        });
    }

    fn end(&self) {
        self.with(|current| {
            if let Some((task, ..)) = current.take() {
                task.finish();
            }
        });
    }
    fn served_from_cache(&self, id: &str, commit: &str, reason: &HubError) {
        self.with(|current| *current = None);
        let commit = &commit[..commit.len().min(12)];
        self.ui.note(&format!("note: {reason}; taking {id} from the cache, as it was at commit {commit}"));
    }
}
