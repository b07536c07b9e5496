//! From a donor's weights and some text to the factors of latent attention.
//!
//! [`convert`] sweeps the donor a block at a time ([`sweep`]), adds up the second moments of what each `W_k` and `W_v`
//! really receives ([`Moments`]), and factorises under them ([`factorise`]). [`Plan`] says what is asked for, and
//! [`LayerReport`] what came out. The crate knows tensors, not files.

mod convert;
mod error;
mod factorise;
pub mod linalg;
mod moments;
mod plan;
mod report;
mod sweep;

pub use convert::{Conversion, convert};
pub use error::Error;
pub use factorise::{Factorisation, Metric, factorise};
pub use moments::Moments;
pub use plan::{Plan, Width};
pub use report::{LayerReport, SpectrumReport};
pub use sweep::{Observer, sweep};
