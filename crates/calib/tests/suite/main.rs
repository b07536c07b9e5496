//! The laws of a conversion, on small random decoders made in code.
//!
//! [`models`] makes decoders and text, [`bench`] gathers statistics and computes by definition what methods predict.
//! Then: [`exact`] (full rank is the donor), [`losses`] (predictions are true, and ordered as theory orders them),
//! [`factors`] (what a method writes), [`statistics`] and [`fisher`] (what is gathered is what it says), [`choice`]
//! (measuring candidates and taking one, or refusing).

mod bench;
mod choice;
mod deepseek;
mod exact;
mod factors;
mod fisher;
mod losses;
mod models;
mod statistics;
