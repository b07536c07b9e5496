//! Where a token stands: padding at the left of a batch, and the rotary embedding.

mod padding;
pub mod rope;

pub use padding::Padding;
pub use rope::{RopeConfig, RopeScaling, RopeTable, Rotation};
