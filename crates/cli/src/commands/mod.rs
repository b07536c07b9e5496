//! One file a command: read the arguments, call the crates, print.

pub mod bench;
pub mod check;
pub mod compare;
pub mod convert;
pub mod demo;
pub mod devices;
pub mod eval;
pub mod export;
#[cfg(test)]
mod extremes;
pub mod generate;
pub mod import;
pub mod inspect;
pub mod memory;
pub mod push;
pub mod train;
