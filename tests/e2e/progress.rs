//! What is shown while something runs: bars on a terminal, plain lines elsewhere, nothing with `--quiet`, and stdout is
//! for the result alone.

use std::process::Stdio;

use crate::folder::{Scratch, golden};
use crate::program::{BINARY, Run, command, shrink};

/// Every command that reports, as a user would call it.
fn commands(scratch: &Scratch) -> Vec<Vec<String>> {
    let half = scratch.path("half");
    shrink(&["convert", &golden("llama"), "-o", &half, "-r", "2", "--no-calibration", "--quiet"]).text();
    let (donor, heldout, out) = (golden("llama"), golden("demo/heldout.txt"), scratch.path("out"));
    [
        vec!["inspect", &donor],
        vec!["inspect", &half],
        vec!["memory", &donor],
        vec!["convert", &donor, "-o", &out, "--force", "--calibration", "builtin:prose"],
        vec!["eval", &half, "--data", &heldout, "--max-length", "32", "--windows", "2", "--against", &donor],
        vec!["generate", &half, "-p", "The ship", "--max-new-tokens", "4"],
        vec!["check", &half],
    ]
    .into_iter()
    .map(|args| args.into_iter().map(str::to_owned).collect())
    .collect()
}

fn with(args: &[String], more: &[&str]) -> Run {
    let args: Vec<&str> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
    shrink(&args)
}

#[test]
fn quiet_is_silent_and_changes_no_result() {
    let scratch = Scratch::new();
    for args in commands(&scratch) {
        let (loud, quiet) = (with(&args, &[]), with(&args, &["--quiet"]));
        assert_eq!(quiet.stderr, "", "{args:?}");
        assert_eq!(quiet.text(), loud.text(), "{args:?}");
    }
}

#[test]
fn json_is_one_object_with_or_without_progress() {
    let scratch = Scratch::new();
    for args in commands(&scratch) {
        let (loud, quiet) = (with(&args, &["--json"]), with(&args, &["--json", "--quiet"]));
        assert_eq!(quiet.stderr, "", "{args:?}");
        let (mut loud, mut quiet) = (loud.json(), quiet.json());
        for object in [&mut loud, &mut quiet] {
            // The one figure that time decides.
            object.as_object_mut().expect("an object").remove("elapsed_s");
        }
        assert_eq!(quiet, loud, "{args:?}");
    }
}

#[test]
fn an_error_is_said_even_when_quiet() {
    shrink(&["inspect", "./nowhere", "--quiet", "--json"]).refused("model folder ./nowhere: not found");
}

#[test]
fn without_a_terminal_progress_is_plain_lines() {
    let scratch = Scratch::new();
    let (donor, heldout, out) = (golden("llama"), golden("demo/heldout.txt"), scratch.path("out"));
    let plain = ["--method", "separate", "--objective", "mse", "--ranks", "uniform"];
    let convert = [&["convert", &donor, "-o", &out, "--calibration", "builtin:prose"], &plain[..]].concat();
    let convert = shrink(&convert);
    let eval = shrink(&["eval", &out, "--data", &heldout, "--max-length", "32", "--windows", "2"]);
    let converting = ["statistics", "spectra", "factors", "measuring", "measuring", "writing (MB)"];
    for (run, tasks) in [(convert, &converting[..]), (eval, &["loading", "scoring windows"])] {
        assert_eq!(run.stderr.lines().count(), tasks.len(), "{}", run.stderr);
        for (line, task) in run.stderr.lines().zip(tasks) {
            assert!(line.starts_with(&format!("{task}: done in ")) && line.ends_with(" s"), "{line:?}");
        }
        assert!(!run.stderr.contains(['\r', '\u{1b}']), "{:?}", run.stderr);
        assert!(!run.text().contains("done in"));
    }
}

/// Runs the program with stdout and stderr on a pseudo-terminal, by util-linux's `script`.
#[cfg(target_os = "linux")]
fn on_a_terminal(args: &str) -> String {
    let run = Run::of(
        command("script").args(["-qec", &format!("'{BINARY}' {args}"), "/dev/null"]).env("TERM", "xterm"),
    );
    assert_eq!(run.code, Some(0), "{run:#?}");
    run.stdout
}

#[cfg(target_os = "linux")]
#[test]
fn on_a_terminal_a_bar_moves() {
    let scratch = Scratch::new();
    let (donor, out) = (golden("demo"), scratch.path("out"));
    let few = "--num-calibration-samples 16 --max-calibration-length 256 --method separate --objective mse";
    let shown =
        on_a_terminal(&format!("convert '{donor}' -o '{out}' -r 2 --calibration builtin:prose {few}"));
    // indicatif draws in place: carriage returns, and the bar's frame with a position out of six layers.
    assert!(shown.contains('\r') && shown.contains("statistics "), "{shown:?}");
    let bars: Vec<&str> =
        shown.split('\r').filter(|part| part.contains('[') && part.contains("] ")).collect();
    assert!(bars.iter().any(|bar| bar.contains("=>") && bar.contains("/6")), "{bars:?}");
    assert!(shown.contains("statistics: done in "), "{shown:?}");
    assert!(shown.contains("cache 2.00x smaller"), "{shown:?}");

    let shown = on_a_terminal(&format!(
        "convert '{donor}' -o '{out}' -r 2 --force --quiet --calibration builtin:prose {few}"
    ));
    assert!(!shown.contains("statistics") && !shown.contains('\u{1b}'), "{shown:?}");
}

#[test]
fn a_reader_that_closes_early_is_no_failure() {
    let mut command = command(BINARY);
    command.args(["memory", &golden("llama"), "--quiet"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("the program ends");
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}
