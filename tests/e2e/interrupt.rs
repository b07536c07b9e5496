//! Programs that are told to end: what they were making is gone, what was there before is as it was.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::folder::{Scratch, golden};
use crate::program::{BINARY, command, shrink};

/// The exit codes that shells have for the two.
const SIGNALS: [(Signal, i32); 2] = [(Signal::INT, 130), (Signal::TERM, 143)];

fn program(args: &[&str]) -> Command {
    let mut program = command(BINARY);
    program.args(args).stdout(Stdio::null()).stderr(Stdio::piped());
    program
}

/// Sends a signal, unless the program has ended by itself: its process id may be another's then.
fn send(child: &mut Child, signal: Signal) {
    if child.try_wait().expect("a child").is_none() {
        kill_process(Pid::from_child(child), signal).expect("a child that was not waited for");
    }
}

/// Waits until a place holds something or the program has ended by itself; the programs here take seconds.
fn until(child: &mut Child, is_so: impl Fn() -> bool) {
    while !is_so() && child.try_wait().expect("a child").is_none() {
        std::thread::yield_now();
    }
}

/// What lies in a folder; nothing where it is not there.
fn names(folder: impl AsRef<Path>) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// The unfinished folder beside `out`.
fn sibling(scratch: &Scratch) -> Option<String> {
    names(scratch.root()).into_iter().find(|name| name.starts_with(".out."))
}

/// Ended by the signal, or before it came.
#[track_caller]
fn ended(status: ExitStatus, code: i32) -> bool {
    match status.code() {
        Some(0) => false,
        found => {
            assert_eq!(found, Some(code), "{status:?}");
            true
        }
    }
}

/// A conversion of the bundled model, which takes some seconds.
fn convert(out: &str, more: &[&str]) -> Command {
    let few = [
        "--calibration",
        "builtin:prose",
        "--num-calibration-samples",
        "32",
        "--max-calibration-length",
        "64",
    ];
    program(&[&["convert", &golden("demo"), "-o", out, "--method", "cascade"], &few[..], more].concat())
}

#[test]
fn a_conversion_that_is_told_to_end_leaves_nothing_wherever_it_is() {
    for (signal, code) in SIGNALS {
        // As soon as the folder is there; as soon as it has its first file, then its weights; and after some lines.
        for files in 0..3 {
            let scratch = Scratch::new();
            let out = scratch.path("out");
            let mut child = convert(&out, &["--quiet"]).stderr(Stdio::null()).spawn().expect("it starts");
            until(&mut child, || {
                sibling(&scratch).is_some_and(|name| names(scratch.path(&name)).len() >= files)
                    || Path::new(&out).exists()
            });
            send(&mut child, signal);
            let was_ended = ended(child.wait().expect("it ends"), code);
            assert_eq!(sibling(&scratch), None, "{files} files");
            assert_eq!(Path::new(&out).exists(), !was_ended, "whole or not at all");
            assert!(files > 0 || was_ended, "it was far from its end");
        }
        for lines in 0..4 {
            let scratch = Scratch::new();
            let out = scratch.path("out");
            let mut child = convert(&out, &[]).spawn().expect("it starts");
            let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
            let mut told = stderr.lines();
            // The first line comes when the program is well under way.
            assert!(told.by_ref().take(lines + 1).all(|line| line.is_ok()));
            send(&mut child, signal);
            let rest: Vec<String> = told.map(|line| line.expect("a line")).collect();
            let was_ended = ended(child.wait().expect("it ends"), code);
            assert!(!rest.iter().any(|line| line.starts_with("error")), "it was told to: {rest:#?}");
            assert_eq!(
                names(scratch.root()).is_empty(),
                was_ended,
                "whole or not at all: {:?}",
                scratch.names()
            );
            assert!(lines > 1 || was_ended, "it was far from its end: {rest:#?}");
        }
    }
}

#[test]
fn a_folder_that_was_to_be_replaced_is_as_it_was() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    shrink(&["convert", &golden("demo"), "-o", &out, "-r", "2", "--no-calibration"]).text();
    let before = scratch.read("out/shrink.json");
    for (signal, code) in SIGNALS {
        let mut child =
            convert(&out, &["--force", "--quiet"]).stderr(Stdio::null()).spawn().expect("it starts");
        until(&mut child, || sibling(&scratch).is_some());
        send(&mut child, signal);
        assert!(ended(child.wait().expect("it ends"), code));
        assert_eq!(names(scratch.root()), ["out"]);
        assert_eq!(scratch.read("out/shrink.json"), before);
    }
    assert_eq!(shrink(&["check", &out, "--json"]).json()["ok"], true);
}

#[test]
fn what_a_killed_program_leaves_is_removed_by_the_next_with_the_same_output() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    let mut child = convert(&out, &["--quiet"]).stderr(Stdio::null()).spawn().expect("it starts");
    until(&mut child, || sibling(&scratch).is_some());
    send(&mut child, Signal::KILL);
    assert_eq!(child.wait().expect("it ends").code(), None);
    let left = sibling(&scratch).expect("nobody was there to remove it");
    let plain = |out: &str| shrink(&["convert", &golden("llama"), "-o", out, "-r", "2", "--no-calibration"]);
    plain(&scratch.path("other")).text();
    assert_eq!(sibling(&scratch), Some(left), "it is no business of another output");
    // One that lives keeps its own: two at a time write the same place, and the first to end has it.
    let mut alive = convert(&out, &["--quiet"]).stderr(Stdio::null()).spawn().expect("it starts");
    let pid = format!(".out.{}-", alive.id());
    until(&mut alive, || sibling(&scratch).is_some_and(|name| name.starts_with(&pid)));
    plain(&out).text();
    assert!(sibling(&scratch).is_some_and(|name| name.starts_with(&pid)), "{:?}", names(scratch.root()));
    send(&mut alive, Signal::TERM);
    assert!(ended(alive.wait().expect("it ends"), 143));
    let mut found = names(scratch.root());
    found.sort();
    assert_eq!(found, ["other", "out"]);
}

#[test]
fn a_training_run_that_is_told_to_end_goes_on_from_its_snapshots() {
    let scratch = Scratch::new();
    let (model, out, data) = (scratch.path("model"), scratch.path("out"), golden("demo/calibration.txt"));
    shrink(&["convert", &golden("demo"), "-o", &model, "-r", "4", "--no-calibration"]).text();
    let short = ["--loss", "lm", "--max-length", "32", "--batch-size", "2", "--max-steps", "40"];
    let often = ["--save-steps", "2", "--logging-steps", "1"];
    let args = [&["train", &model, "-o", &out, "--data", &data], &short[..], &often].concat();
    for (signal, code) in SIGNALS {
        let mut child = program(&[&args[..], &["--resume"]].concat()).spawn().expect("it starts");
        let mut told = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let steps = told.by_ref().map(|line| line.expect("a line")).filter(|line| line.starts_with("step "));
        assert_eq!(steps.take(5).count(), 5);
        send(&mut child, signal);
        drop(told);
        assert!(ended(child.wait().expect("it ends"), code));
        let mut found = names(scratch.root());
        found.sort();
        assert_eq!(found, ["model", "out.run"], "only the run, which goes on");
    }
    let resumed = shrink(&[&args[..], &["--resume", "--json"]].concat());
    assert!(resumed.stderr.contains("going on from step"), "{}", resumed.stderr);
    assert_eq!(resumed.json()["steps"], 40);
    assert_eq!(shrink(&["check", &out, "--json"]).json()["ok"], true);
}

#[test]
fn a_demo_that_is_told_to_end_leaves_no_temporary_folder() {
    let scratch = Scratch::new();
    for (signal, code) in SIGNALS {
        let mut demo = program(&["demo", "--quiet"]);
        demo.stderr(Stdio::null()).env("TMPDIR", scratch.root());
        let mut child = demo.spawn().expect("it starts");
        until(&mut child, || names(scratch.root()).iter().any(|name| !names(scratch.path(name)).is_empty()));
        send(&mut child, signal);
        assert!(ended(child.wait().expect("it ends"), code));
        assert_eq!(scratch.names(), [""; 0]);
    }
}
