//! Running the binary and reading what it said.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// The program under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_shrink");

/// What a run left.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs the program without a network and without the user's settings.
pub fn shrink(args: &[&str]) -> Run {
    Run::of(command(BINARY).args(args))
}

/// Runs the program with a text on stdin.
pub fn shrink_reading(args: &[&str], stdin: &[u8]) -> Run {
    let mut command = command(BINARY);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    child.stdin.take().expect("a pipe").write_all(stdin).expect("the program reads its prompt");
    Run::from(child.wait_with_output().expect("the program ends"))
}

/// A command that knows no hub cache, token, proxy or backtrace of the user's, and is told to stay offline.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy().to_uppercase();
        let of_hub = ["HF_", "HUGGING", "TRANSFORMERS_"].iter().any(|start| text.starts_with(start));
        if of_hub || text.ends_with("_PROXY") || text == "RUST_BACKTRACE" {
            command.env_remove(&name);
        }
    }
    // Nothing is kept from one test for another.
    command.env("SHRINK_KEEP_STATISTICS", "0");
    command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", "/nowhere/hf").stdin(Stdio::null());
    command
}

impl Run {
    pub fn of(command: &mut Command) -> Self {
        Self::from(command.output().expect("the program starts"))
    }

    /// The run went well; its stdout.
    pub fn text(self) -> String {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self.stdout
    }

    /// The run went well; stdout is one JSON object and nothing else.
    pub fn json(self) -> Value {
        let text = self.text();
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert!(value.is_object(), "{text}");
        value
    }

    /// The user's error: exit code 1, nothing on stdout, one `error:` line that says `what`, and one `hint:` line as the
    /// last; returns the hint.
    #[track_caller]
    pub fn refused(self, what: &str) -> String {
        assert_eq!(self.stdout, "", "{self:#?}");
        self.failed(what)
    }

    /// As [`Run::refused`] after a report on stdout.
    #[track_caller]
    pub fn failed(self, what: &str) -> String {
        assert_eq!(self.code, Some(1), "{self:#?}");
        assert!(!self.stderr.contains("panicked"), "{self:#?}");
        let lines: Vec<&str> = self.stderr.lines().collect();
        let count = |start: &str| lines.iter().filter(|line| line.starts_with(start)).count();
        assert_eq!((count("error: "), count("hint: ")), (1, 1), "{self:#?}");
        let [.., error, hint] = lines.as_slice() else { panic!("{self:#?}") };
        assert!(error.starts_with("error: ") && hint.starts_with("hint: "), "{self:#?}");
        assert!(error.contains(what), "expected {what:?} in {error:?}");
        let parts: Vec<&str> = error.split(": ").collect();
        assert!(parts.windows(2).all(|pair| pair[0] != pair[1]), "says it twice: {error:?}");
        hint["hint: ".len()..].to_owned()
    }

    /// A command line that cannot be understood: exit code 2, nothing on stdout, one `error:` line that says `what`.
    #[track_caller]
    pub fn misused(self, what: &str) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(2), ""), "{self:#?}");
        let errors: Vec<&str> = self.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(errors.len() == 1 && self.stderr.contains(what), "expected {what:?} in {self:#?}");
    }
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the program writes UTF-8");
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// A number of a JSON answer.
#[track_caller]
pub fn number(value: &Value, field: &str) -> f64 {
    value[field].as_f64().unwrap_or_else(|| panic!("{field} is no number in {value:#}"))
}

/// Two numbers agree to a relative bound.
#[track_caller]
pub fn assert_close(found: f64, expected: f64, relative: f64) {
    let gap = (found - expected).abs() / expected.abs();
    assert!(gap <= relative, "{found} is {gap:.1e} away from {expected}, more than {relative:.0e}");
}
