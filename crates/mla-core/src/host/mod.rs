//! The CPU backend's tensors as slices, and products of a few rows with them.

mod operand;
mod product;
pub(crate) mod rows;

pub(crate) use operand::{Operand, Rows};
pub(crate) use product::{product, product_transposed};
