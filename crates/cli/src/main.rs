//! `shrink`: parse, run, and turn a failure into words and an exit code.
//!
//! Exit codes: 0 done, 1 the user's to mend, 2 usage (clap), 70 a bug of ours, 130 and 143 ended by SIGINT and SIGTERM.

mod malloc;

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::Parser;
use cli::args::Cli;

const USERS: u8 = 1;
const BUG: u8 = 70;

fn main() -> ExitCode {
    malloc::keep_freed_blocks();
    let cli = Cli::parse();
    cli::panics::watch();
    cli::interrupt::watch();
    let outcome = catch_unwind(AssertUnwindSafe(|| cli::run(cli, handlers::Registry::builtin())));
    cli::interrupt::wait_if_ending();
    match outcome {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Ok(Err(error)) => fail(&error),
        Err(_) => match cli::panics::meaning() {
            Some(error) => {
                let code = fail(&error.into());
                cli::panics::leave(USERS);
                code
            }
            None => {
                complain("error: this is a bug in shrink; please report it with the message above");
                ExitCode::from(BUG)
            }
        },
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    complain(&format!("error: {}", cli::error::message(error)));
    if let Some(hint) = cli::error::hint(error) {
        complain(&format!("hint: {hint}"));
    }
    ExitCode::from(USERS)
}

/// `shrink … | head` closes our stdout; that is the user's choice and no failure.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    causes.any(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

/// With stderr closed there is nobody left to tell.
fn complain(line: &str) {
    drop(writeln!(std::io::stderr().lock(), "{line}"));
}
