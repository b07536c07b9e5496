//! The two norms decoders use, behind one call.

use burn::module::Module;
use burn::nn::{LayerNorm, RmsNorm};
use burn::tensor::Tensor;

/// A norm over the last axis.
#[derive(Module, Debug)]
pub enum Norm {
    /// Mean and variance removed, gain and bias applied.
    Layer(LayerNorm),
    /// Root mean square divided out, gain applied.
    Rms(RmsNorm),
}

impl Norm {
    /// # Shapes
    /// - `x`: `[batch, t, d_model]` → the same
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Norm::Layer(norm) => norm.forward(x),
            Norm::Rms(norm) => norm.forward(x),
        }
    }
}
