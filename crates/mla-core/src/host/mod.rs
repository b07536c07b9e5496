//! The CPU backend's tensors as slices, and what is computed with them: products of a few rows, pointwise formulas.

mod across;
mod exp;
mod operand;
mod pointwise;
mod product;
pub(crate) mod rows;
mod stored;
mod wide;

pub(crate) use across::Across;
pub(crate) use exp::exp;
pub(crate) use operand::{Operand, Rows};
pub(crate) use pointwise::{gelu_tanh, rms_norm, silu_gate};
pub(crate) use product::{product, product_transposed};
pub(crate) use stored::Stored;
