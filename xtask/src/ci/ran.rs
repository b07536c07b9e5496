//! Which tests a `cargo test` ran, read off its output: a filter that no test matches any longer must not pass for a step.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result};

/// Runs a `cargo test` to its end, passes its output on to `shown` as it comes, and names the tests that ran.
///
/// # Errors
/// When the command cannot be started or its output not be read.
pub fn run(command: &mut Command, shown: &mut impl Write) -> Result<(ExitStatus, Vec<String>)> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let mut names = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        let (mut stdout, mut line) = (BufReader::new(stdout), Vec::new());
        while stdout.read_until(b'\n', &mut line).context("cannot read cargo's output")? > 0 {
            shown.write_all(&line).and_then(|()| shown.flush()).context("cannot show cargo's output")?;
            names.extend(test_of(&String::from_utf8_lossy(&line)));
            line.clear();
        }
    }
    let status = child.wait().context("cannot wait for cargo")?;
    Ok((status, names))
}

/// What is wrong with a run that cargo calls a success: no test at all, or a filter that none matched.
pub fn complaint(filters: &[&str], names: &[String]) -> Option<String> {
    if names.is_empty() {
        return Some("no test ran".into());
    }
    let unmatched = |filter: &&&str| !names.iter().any(|name| name.contains(**filter));
    let idle: Vec<&str> = filters.iter().filter(unmatched).copied().collect();
    (!idle.is_empty()).then(|| format!("no test is called {}", idle.join(", ")))
}

/// The test whose end a line of the test harness tells.
fn test_of(line: &str) -> Option<String> {
    let (name, outcome) = line.trim_end().strip_prefix("test ")?.split_once(" ... ")?;
    (!outcome.starts_with("ignored")).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_told_by_the_line_of_its_end() {
        assert_eq!(test_of("test linalg::qr_of_one ... ok\n").as_deref(), Some("linalg::qr_of_one"));
        assert_eq!(test_of("test blocks::a ... FAILED\n").as_deref(), Some("blocks::a"));
        for other in [
            "test blocks::b ... ignored, slow\n",
            "test blocks::c has been running for over 60 seconds\n",
            "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 12 filtered out; finished in 0.00s\n",
            "running 0 tests\n",
            "",
        ] {
            assert_eq!(test_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_filter_that_matches_nothing_is_named() {
        let names = ["blocks::a".to_owned(), "goldens::of_llama".to_owned()];
        assert_eq!(complaint(&[], &names), None);
        assert_eq!(complaint(&["blocks::", "goldens::of"], &names), None);
        let found = complaint(&["blocks::", "block::", "golden::"], &names).expect("two that match nothing");
        assert_eq!(found, "no test is called block::, golden::");
        assert_eq!(complaint(&[], &[]).as_deref(), Some("no test ran"));
    }

    #[test]
    fn a_commands_tests_are_seen_and_its_failure_kept() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "echo 'test a::b ... ok'; echo other; exit 3"]);
        let mut shown = Vec::new();
        let (status, names) = run(&mut shell, &mut shown).expect("a shell");
        assert_eq!((status.code(), names), (Some(3), vec!["a::b".to_owned()]));
        assert_eq!(String::from_utf8_lossy(&shown), "test a::b ... ok\nother\n");
    }
}
