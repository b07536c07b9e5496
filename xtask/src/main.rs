//! The project's own tasks, run as `cargo xtask …`.
//!
//! `tidy` holds the tree to the rules that ARCHITECTURE.md states, `golden` remakes the artefacts of `goldens/`, `ci`
//! runs what continuous integration runs, `bench` measures what `docs/bench/` says, `synth` writes models for it.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for a terminal")]

mod bench;
mod ci;
mod golden;
mod synth;
mod tidy;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use bench::Bench;
use ci::Step;
use golden::Request;
use synth::Shape;
use workspace::Workspace;

/// The project's own tasks.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", max_term_width = 100)]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Check layering, source rules, goldens, pins and links; one line a violation
    Tidy,
    /// Remake golden artefacts with the reference implementation and show what changed
    #[command(after_help = "Examples:
  cargo xtask golden llama qwen2
  cargo xtask golden demo --texts ~/texts --python .venv/bin/python")]
    Golden {
        /// Folders of goldens/ [default: all that need nothing else]
        names: Vec<String>,
        /// A Python that has the packages [default: a virtual environment under the target folder]
        #[arg(long, value_name = "PY")]
        python: Option<PathBuf>,
        /// The texts the demo model is trained on (goldens/README.md lists them)
        #[arg(long, value_name = "DIR")]
        texts: Option<PathBuf>,
    },
    /// Run the checks of continuous integration
    #[command(after_help = "Without names: fmt, clippy, tidy, test, doc. With --full, every step.")]
    Ci {
        /// Steps to run, in this order
        #[arg(value_enum, value_name = "STEP")]
        steps: Vec<Step>,
        /// Also the backends' type checks, LAPACK and real models
        #[arg(long, conflicts_with = "steps")]
        full: bool,
        /// Leave a step out
        #[arg(long, value_enum, value_name = "STEP")]
        except: Vec<Step>,
        /// Skip, or stop, whatever is not among the usual steps once this much time is over
        #[arg(long, value_name = "MINUTES")]
        optional_within: Option<u64>,
    },
    /// Measure the release program and write what docs/bench/ says
    #[command(subcommand)]
    Bench(Bench),
    /// Write a model folder of a true shape with random weights
    #[command(after_help = "Example:\n  cargo xtask synth /tmp/qwen --layers 2")]
    Synth {
        /// Folder to write; it must not be there
        dir: PathBuf,
        /// Whose shape
        #[arg(long, value_enum, default_value_t = Shape::Qwen25_7b)]
        shape: Shape,
        /// Layers, in place of the shape's own
        #[arg(long, value_name = "N")]
        layers: Option<usize>,
    },
}

fn main() -> ExitCode {
    match run(Args::parse().task) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the task found everything in order.
fn run(task: Task) -> anyhow::Result<bool> {
    let workspace = Workspace::load()?;
    match task {
        Task::Tidy => report_tidy(&workspace),
        Task::Golden { names, python, texts } => {
            golden::run(&workspace, Request { names, python, texts }).map(|()| true)
        }
        Task::Ci { steps, full, except, optional_within } => {
            ci::run(&workspace, &ci::plan(&steps, full, &except), optional_within)
        }
        Task::Bench(bench) => bench::run(&workspace, &bench),
        Task::Synth { dir, shape, layers } => {
            let bytes = synth::write(&dir, &shape.model(layers), &workspace.root.join(synth::TOKENIZER))?;
            println!("{}: {:.2} GB of weights", dir.display(), bytes as f64 / 1e9);
            Ok(true)
        }
    }
}

/// Prints what `tidy` finds.
fn report_tidy(workspace: &Workspace) -> anyhow::Result<bool> {
    let violations = tidy::check(workspace)?;
    for violation in &violations {
        println!("{violation}");
    }
    match violations.len() {
        0 => println!("tidy: nothing to report"),
        count => eprintln!("tidy: {count} violation(s)"),
    }
    Ok(violations.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }
}
