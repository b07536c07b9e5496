//! Every numeric flag of every command, with values at the edges of what a number can be: done, or refused in words.
//!
//! The flags are those that clap has, so that a new one is among them by itself.

use std::any::TypeId;
use std::collections::BTreeSet;
use std::sync::Mutex;

use clap::error::ErrorKind;
use clap::{Arg, CommandFactory, Parser};
use cli::args::Cli;

use crate::folder::{Scratch, golden};
use crate::program::{BINARY, Run, command, shrink};

const VALUES: [&str; 15] = [
    "0",
    "1",
    "2",
    "3.5",
    "-1",
    "2147483647",
    "4294967295",
    "9223372036854775807",
    "18446744073709551615",
    "1e308",
    "1e-308",
    "-0.0",
    "NaN",
    "inf",
    "-inf",
];

/// A command line in short settings, flag by flag.
type Line = Vec<(&'static str, String)>;

/// What the commands are run on.
struct World {
    scratch: Scratch,
    converted: String,
    /// In DeepSeek's form, with a latent so narrow that every number pads it.
    shared: String,
    text: String,
}

impl World {
    fn new() -> Self {
        let scratch = Scratch::new();
        let converted = scratch.path("converted");
        let args = [
            "convert",
            &golden("llama"),
            "-o",
            &converted,
            "-r",
            "2",
            "--no-calibration",
            "--method",
            "separate",
        ];
        shrink(&args).text();
        let shared = scratch.path("shared");
        let args = [
            "convert",
            &golden("llama"),
            "-o",
            &shared,
            "--d-latent",
            "1",
            "--d-rope",
            "6",
            "--calibration",
            "builtin:prose",
        ];
        let more = ["--method", "deepseek", "--layout", "deepseek", "--num-calibration-samples", "8"];
        shrink(&[&args[..], &more, &["--max-calibration-length", "32"]].concat()).text();
        let text =
            scratch.write("text.txt", "It was the best of times, it was the worst of times. ".repeat(8));
        Self { scratch, converted, shared, text }
    }

    /// A run of a command that takes a moment, with what a flag needs beside it.
    fn line(&self, command: &str, flag: &str, case: usize) -> Line {
        let donor = || ("", golden("llama"));
        let of = |flags: &[(&'static str, &str)]| -> Line {
            flags.iter().map(|(flag, value)| (*flag, (*value).to_owned())).collect()
        };
        let method = match flag {
            "cascade-window" | "cascade-group" | "cascade-rounds" => "cascade",
            "cross-layer-group-size" | "xkv-skip-early-layers" => "xkv",
            "d-rope" => "decoupled_rope",
            _ => "separate",
        };
        let text = [
            ("--method", method),
            ("--ranks", "uniform"),
            ("--calibration", "builtin:prose"),
            ("--num-calibration-samples", "4"),
            ("--max-calibration-length", "16"),
        ];
        let out = self.scratch.path(&format!("out-{case}"));
        let short = match command {
            "demo" => of(&[]),
            "inspect" | "memory" | "check" => vec![donor()],
            "devices" => of(&[]),
            "convert" => [vec![donor(), ("-o", out), ("--dry-run", String::new())], of(&text)].concat(),
            "compare" => {
                let few = [("--data", self.text.as_str()), ("--max-length", "16"), ("--windows", "1")];
                [vec![donor()], of(&text), of(&few), of(&[("--compression-ratio", "2")])].concat()
            }
            "train" => of(&[
                ("", &self.converted),
                ("-o", &out),
                ("--data", &self.text),
                ("--validation", &self.text),
                ("--validation-windows", "1"),
                ("--loss", "lm"),
                ("--max-length", "16"),
                ("--batch-size", "1"),
                ("--num-epochs", "1"),
                ("--max-steps", "1"),
            ]),
            "export" => of(&[("", &self.shared), ("-o", &out), ("--format", "deepseek")]),
            "eval" => of(&[
                ("", &self.converted),
                ("--data", &self.text),
                ("--max-length", "16"),
                ("--windows", "1"),
            ]),
            "generate" => of(&[
                ("", &self.converted),
                ("--prompt", "It was"),
                ("--max-new-tokens", "2"),
                ("--temperature", "0.5"),
            ]),
            "bench" => of(&[
                ("", &self.converted),
                ("--context", "1"),
                ("--prefill", "2"),
                ("--repeat", "1"),
                ("--batch-size", "1"),
            ]),
            other => panic!("{other}: a new command wants a command line here"),
        };
        let tested = format!("--{flag}");
        short.into_iter().filter(|(name, _)| *name != tested).collect()
    }

    /// Runs a case where it can neither fill the memory nor go on for ever; `None` where clap refuses the number, which
    /// [`no_number_that_is_refused_ends_otherwise_than_in_usage`] has the program do.
    fn run(&self, case: &Case, number: usize) -> Option<Run> {
        let mut args = vec![case.command.clone()];
        for (flag, value) in self.line(&case.command, &case.flag, number) {
            args.extend([flag.to_owned(), value].into_iter().filter(|text| !text.is_empty()));
        }
        args.push(format!("--{}={}", case.flag, case.value));
        if case.flag != "threads" {
            args.extend(["--threads".to_owned(), "1".to_owned()]);
        }
        let parsed = Cli::try_parse_from(std::iter::once("shrink").chain(args.iter().map(String::as_str)));
        if parsed.is_err_and(|error| error.kind() == ErrorKind::ValueValidation) {
            return None;
        }
        // KiB of address space, seconds of the processor.
        let script = "ulimit -v 16777216; ulimit -t 60; exec \"$0\" \"$@\"";
        let mut run = command("/bin/sh");
        Some(Run::of(run.args(["-c", script, BINARY]).args(args)))
    }
}

/// A flag of a command and what it is given.
#[derive(Clone, Debug)]
struct Case {
    command: String,
    flag: String,
    value: &'static str,
}

/// The long flags that take a number.
fn numeric<'a>(args: impl Iterator<Item = &'a Arg>) -> Vec<String> {
    let types = [
        TypeId::of::<usize>(),
        TypeId::of::<u64>(),
        TypeId::of::<u32>(),
        TypeId::of::<i64>(),
        TypeId::of::<f64>(),
        TypeId::of::<f32>(),
    ];
    args.filter(|arg| types.iter().any(|known| arg.get_value_parser().type_id() == *known))
        .map(|arg| arg.get_long().expect("a number has a name").to_owned())
        .collect()
}

fn cases() -> Vec<Case> {
    let program = Cli::command();
    // What holds for every command is tried on one.
    let mut flags: Vec<(String, String)> =
        numeric(program.get_arguments()).into_iter().map(|flag| ("inspect".into(), flag)).collect();
    for command in program.get_subcommands() {
        let name = command.get_name();
        flags.extend(numeric(command.get_arguments()).into_iter().map(|flag| (name.to_owned(), flag)));
    }
    let case = |(command, flag): &(String, String), value| Case {
        command: command.clone(),
        flag: flag.clone(),
        value,
    };
    // The demo has no short settings: what it would accept is tried once.
    let once = |case: &Case| case.command != "demo" || !["0", "1", "2"].contains(&case.value);
    flags.iter().flat_map(|flag| VALUES.map(|value| case(flag, value))).filter(once).collect()
}

/// What is wrong with a run; a value is taken, or refused by a line that says so.
fn fault(run: &Run) -> Option<&'static str> {
    let says = |start: &str| run.stderr.lines().any(|line| line.starts_with(start));
    match run.code {
        Some(0..=2) if run.stderr.contains("panicked") => Some("panicked"),
        Some(0) => None,
        Some(1 | 2) if !says("error: ") => Some("without an error"),
        Some(1) if !says("hint: ") => Some("without a hint"),
        Some(1 | 2) => None,
        _ => Some("ended in another way"),
    }
}

#[test]
fn every_numeric_flag_takes_or_refuses_every_number() {
    let (world, cases) = (World::new(), cases());
    for known in ["num-calibration-samples", "d-latent", "sink-weight", "seed", "threads", "top-p", "context"]
    {
        assert!(cases.iter().any(|case| case.flag == known), "{known} is no numeric flag any more");
    }
    let (next, faults) = (Mutex::new(cases.iter().enumerate()), Mutex::new(Vec::new()));
    let taken = Mutex::new(BTreeSet::new());
    let work = || {
        loop {
            let Some((number, case)) = next.lock().expect("no panic").next() else { return };
            let Some(run) = world.run(case, number) else { continue };
            if run.code == Some(0) {
                taken.lock().expect("no panic").insert((&case.command, &case.flag));
            }
            if let Some(fault) = fault(&run) {
                faults.lock().expect("no panic").push((fault, case.clone(), run));
            }
        }
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(work))));
    let faults = faults.into_inner().expect("no panic");
    assert!(faults.is_empty(), "{} of {} cases: {faults:#?}", faults.len(), cases.len());
    // Each flag gets as far as its command with some number: what clap refuses for another reason tries nothing.
    let taken = taken.into_inner().expect("no panic");
    let never = cases.iter().map(|case| (&case.command, &case.flag)).filter(|flag| !taken.contains(flag));
    let never: BTreeSet<_> = never.collect();
    assert!(never.is_empty(), "no number is taken by {never:?}");
    let left: Vec<_> = world.scratch.names().into_iter().filter(|name| name.contains(".partial")).collect();
    assert_eq!(left, [""; 0]);
}

#[test]
fn no_number_that_is_refused_ends_otherwise_than_in_usage() {
    let llama = golden("llama");
    for value in ["-1", "18446744073709551615", "NaN", "inf", "1e308"] {
        let flag = format!("--num-calibration-samples={value}");
        shrink(&["convert", &llama, "-o", "out", "--dry-run", &flag]).misused("--num-calibration-samples");
        let flag = format!("--threads={value}");
        shrink(&["inspect", &llama, &flag]).misused("--threads");
    }
}

#[test]
fn the_short_settings_are_a_run_of_every_command() {
    let world = World::new();
    for (number, name) in ["convert", "compare", "train", "eval", "generate", "bench"].iter().enumerate() {
        let line = world.line(name, "", number);
        let args: Vec<&str> =
            line.iter().flat_map(|(flag, value)| [*flag, value]).filter(|s| !s.is_empty()).collect();
        shrink(&[&[*name], &args[..]].concat()).text();
    }
}
