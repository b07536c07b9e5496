//! The program `shrink`, run as a user runs it: arguments in, stdout, stderr and an exit code out.
//!
//! [`program`] runs it, [`folder`] makes model folders to run it on, [`golden`] holds what transformers says about the
//! bundled model, [`snapshot`] compares whole outputs. A file a command follows ([`methods`] runs them all for each way
//! to convert, [`train`] trains what came of it; [`fisher`] and [`training`] look beneath), then what every command owes: what it refuses ([`bad_model`], [`bad_text`],
//! [`bad_request`], [`bad_method`], [`extremes`], [`room`]), what it leaves behind ([`output`], [`interrupt`]), what it shows
//! while it works ([`progress`]) and what it fetches ([`hub`]).

mod bad_method;
mod bad_model;
mod bad_request;
mod bad_text;
mod bench;
mod calibration;
mod check;
mod convert;
mod demo;
mod devices;
mod eval;
mod export;
mod extremes;
mod fisher;
mod folder;
mod generate;
mod golden;
mod hub;
mod inspect;
mod interrupt;
mod memory;
mod methods;
mod output;
mod program;
mod progress;
mod quantised;
mod ratio;
mod room;
mod snapshot;
mod tasks;
mod train;
mod training;
