//! Measuring a decoder: perplexity, distance to its donor, cache bytes.
//!
//! The same code serves `shrink eval` and validates a conversion. Token ids in, numbers out.

pub mod eval;
