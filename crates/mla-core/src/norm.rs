//! The norms of a decoder: over the residual stream, and over the queries and keys of an attention.

use burn::module::Module;
use burn::nn::{LayerNorm, RmsNorm};
use burn::tensor::Tensor;

use crate::host;

/// A norm over the residual stream.
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
            Norm::Rms(norm) => rms(norm, x),
        }
    }
}

/// RMSNorm of queries or keys before they are rotated (QK-norm, Henry et al. 2020): over each head, or over all at once.
#[derive(Module, Debug)]
pub struct HeadNorm {
    /// Its gain is as wide as what is normed at a time.
    pub norm: RmsNorm,
}

impl HeadNorm {
    /// # Shapes
    /// - `x`: `[batch, t, heads · d_head]` → the same
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, t, width] = x.dims();
        let [normed] = self.norm.gamma.dims();
        rms(&self.norm, x.reshape([batch, t * width / normed, normed])).reshape([batch, t, width])
    }
}

/// # Shapes
/// - `x`: `[batch, rows, width]`, normed over the width → the same
fn rms(norm: &RmsNorm, x: Tensor<3>) -> Tensor<3> {
    let [batch, t, width] = x.dims();
    let rows = x.clone().reshape([batch * t, width]);
    match host::rms_norm(&rows, &norm.gamma.val(), norm.epsilon) {
        Some(rows) => rows.reshape([batch, t, width]),
        None => norm.forward(x),
    }
}
