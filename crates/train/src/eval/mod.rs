//! Evaluation on held-out text.

mod divergence;
mod memory;
mod perplexity;
mod positions;
mod reading;
mod score;
pub mod tasks;
#[cfg(test)]
mod toy;
mod windows;

pub use divergence::{Divergence, PositionGap, compare};
pub use memory::{CacheSize, TokenBytes, cache_sizes};
pub use perplexity::{Perplexity, PositionNll, perplexity};
pub use reading::Pass;
pub use score::EvalError;
pub(crate) use score::check;
pub use windows::{Window, Windowing};
