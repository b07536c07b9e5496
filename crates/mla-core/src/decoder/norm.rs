//! The two norms decoders use, behind one call.

use burn::module::Module;
use burn::nn::{LayerNorm, RmsNorm};
use burn::tensor::Tensor;

use crate::host;

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
            Norm::Rms(norm) => {
                let [batch, t, d_model] = x.dims();
                let rows = x.clone().reshape([batch * t, d_model]);
                match host::rms_norm(&rows, &norm.gamma.val(), norm.epsilon) {
                    Some(rows) => rows.reshape([batch, t, d_model]),
                    None => norm.forward(x),
                }
            }
        }
    }
}
