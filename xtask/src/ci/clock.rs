//! The time that optional steps may take: what is left of a run belongs to the tests that every change must pass.

use std::ffi::OsString;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

/// With less time than this an optional step would hardly get past its build.
const WORTH_STARTING: Duration = Duration::from_secs(120);
/// How `timeout` ends: 124 when the command took the signal, 137 when it had to be killed.
const STOPPED: [i32; 2] = [124, 137];

/// When optional steps have to be over; never, without a limit.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    until: Option<Instant>,
}

impl Clock {
    /// A clock that leaves optional steps `minutes` from now.
    pub fn leaving(minutes: Option<u64>) -> Self {
        Self { until: minutes.map(|minutes| Instant::now() + Duration::from_secs(60 * minutes)) }
    }

    /// The time that an optional step has from now on; `None` without a limit.
    ///
    /// # Errors
    /// Why it has to be left out, when that is too little.
    pub fn left(self, now: Instant) -> Result<Option<Duration>, String> {
        let Some(until) = self.until else { return Ok(None) };
        let left = until.saturating_duration_since(now);
        if left < WORTH_STARTING {
            return Err(format!(
                "{} s left, and the tests that every change must pass need the rest",
                left.as_secs()
            ));
        }
        Ok(Some(left))
    }
}

/// The command, ended with all that it started once `limit` is over.
pub fn limited(command: Command, limit: Duration) -> Command {
    let mut limited = Command::new("timeout");
    limited.arg("--kill-after=10").arg(limit.as_secs().max(1).to_string());
    limited.arg(command.get_program()).args(command.get_args());
    if let Some(folder) = command.get_current_dir() {
        limited.current_dir(folder);
    }
    for (name, value) in command.get_envs() {
        match value.map(OsString::from) {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    limited
}

/// Whether a limited command was ended by its limit.
pub fn was_stopped(status: ExitStatus) -> bool {
    status.code().is_some_and(|code| STOPPED.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_limit_there_is_always_time() {
        assert_eq!(Clock::leaving(None).left(Instant::now()), Ok(None));
    }

    #[test]
    fn a_step_that_would_hardly_start_is_left_out() {
        let start = Instant::now();
        let clock = Clock { until: Some(start + Duration::from_secs(600)) };
        assert_eq!(clock.left(start + Duration::from_secs(400)), Ok(Some(Duration::from_secs(200))));
        for late in [500, 600, 5000] {
            let why = clock.left(start + Duration::from_secs(late)).expect_err("too late");
            assert!(why.contains(" s left"), "{why}");
        }
    }

    #[test]
    fn a_limited_command_keeps_its_folder_and_environment() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = Command::new("cargo");
        command.args(["test", "--release"]).current_dir(folder.path());
        command.env("ONE", "1").env_remove("TWO");
        let limited = limited(command, Duration::from_secs(90));
        let args: Vec<_> = limited.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
        assert_eq!(args, ["--kill-after=10", "90", "cargo", "test", "--release"]);
        assert_eq!(limited.get_current_dir(), Some(folder.path()));
        let env: Vec<_> = limited.get_envs().collect();
        assert_eq!(env, [("ONE".as_ref(), Some("1".as_ref())), ("TWO".as_ref(), None)]);
    }
}
