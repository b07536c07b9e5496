//! From a donor's weights and some text to the factors of latent attention.
//!
//! [`Statistics`] are gathered in one sweep of the donor, a block at a time: second moments of keys and values, and for
//! the [`Objective`] `fisher` one sweep back ([`gradient`]). A [`Plan`] says what is asked for; [`fit`] makes the factors
//! ([`method`] has a file a method, all on the one routine of [`factorise`]); [`judge`](judge()) runs candidates beside the
//! donor on held-back text; [`convert`] is all of it. The crate knows tensors, and no files but one: arrays that would
//! grow with the model lie in a [`Scratch`].

mod balance;
mod convert;
mod cost;
mod error;
pub mod factorise;
mod factors;
pub mod gradient;
mod head;
mod judge;
pub mod linalg;
pub mod method;
pub mod metric;
mod orthonormal;
mod plan;
mod planner;
mod predict;
pub mod ranks;
mod report;
mod scratch;
pub mod shared;
mod statistics;
mod sweep;
mod truncate;

pub use convert::{
    AS_GOOD, COST_CONTEXT, Conversion, FISHER_WINDOWS, Options, SINK, Text, Trial, choose, convert, correct,
    needs, report, statistics,
};
pub use cost::decode_cost;
pub use error::Error;
pub use factorise::Factorisation;
pub use factors::Factors;
pub use gradient::FisherOptions;
pub use head::Labels;
pub use judge::{Verdict, judge};
pub use method::{Fitted, fit};
pub use metric::{Metric, Objective};
pub use orthonormal::orthonormalise;
pub use plan::{Cascade, Deepseek, KeyLayout, Latents, Method, Plan, Width, Xkv, uniform_latents};
pub use planner::{Goal, LADDER, Search, cache_ratio, search};
pub use predict::{Prediction, Speed, TextSize, predict};
pub use ranks::Ranks;
pub use report::{LayerReport, MeasuredError, SpectrumReport};
pub use scratch::{DEFAULT_MEMORY_BYTES, Scratch, StoredMatrix};
pub use statistics::{Holds, KeptArray, Needs, Statistics, stacked};
pub use sweep::{Keep, Observer, Stream, Windows, sweep};
pub use truncate::{ranks_of, truncate};
