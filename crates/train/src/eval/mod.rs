//! Evaluation on held-out text.

mod divergence;
mod memory;
mod perplexity;
mod score;
mod windows;

pub use divergence::{Divergence, compare};
pub use memory::{CacheSize, TokenBytes, cache_sizes};
pub use perplexity::{Pass, Perplexity, perplexity};
pub use score::EvalError;
pub(crate) use score::check;
pub use windows::{Window, Windowing};
