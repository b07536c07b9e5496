//! Text generation on token ids: prefill, then one token at a time through the cache.

mod decode;
mod sample;

pub use decode::{Finish, GenerateError, GenerateOptions, Generation, generate, prefill};
pub use sample::{Sampler, Sampling};
