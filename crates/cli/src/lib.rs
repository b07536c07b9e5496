//! The program `shrink`, as a library: it composes the crates below it and is the only one that prints.

pub mod args;
pub mod calibration;
mod commands;
pub mod convert;
pub mod corpus;
pub mod device;
pub mod error;
mod footprint;
mod forecast;
pub mod interrupt;
pub mod kept;
mod machine;
pub mod panics;
pub mod plans;
mod record;
mod report;
pub mod session;
mod shorter;
mod tasks;
mod threads;
mod training;
mod ui;

use args::{Cli, Command};
use handlers::Registry;
use session::Session;

/// Runs one command on models of the families in `registry`.
///
/// A project with a handler of its own registers it and calls this from its own `main` (`docs/adding-a-model.md`).
///
/// # Errors
/// Whatever the command could not do; [`error::hint`] finds what to do about it.
pub fn run(cli: Cli, registry: Registry) -> anyhow::Result<()> {
    threads::in_pool(cli.global.threads, || command(cli, registry))?
}

fn command(cli: Cli, registry: Registry) -> anyhow::Result<()> {
    let session = Session::new(&cli.global, registry)?;
    match cli.command {
        Command::Demo(args) => commands::demo::run(&session, &args),
        Command::Inspect(args) => commands::inspect::run(&session, &args),
        Command::Convert(args) => commands::convert::run(&session, &args),
        Command::Compare(args) => commands::compare::run(&session, &args),
        Command::Train(args) => commands::train::run(&session, &args),
        Command::Export(args) => commands::export::run(&session, &args),
        Command::Import(args) => commands::import::run(&session, &args),
        Command::Push(args) => commands::push::run(&session, &args),
        Command::Eval(args) => commands::eval::run(&session, &args),
        Command::Generate(args) => commands::generate::run(&session, &args),
        Command::Bench(args) => commands::bench::run(&session, &args),
        Command::Devices => commands::devices::run(&session),
        Command::Memory(args) => commands::memory::run(&session, &args),
        Command::Check(args) => commands::check::run(&session, &args),
    }
}
