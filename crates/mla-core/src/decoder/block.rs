//! One layer: norm, attention, norm, MLP, both on a residual stream.

use burn::module::Module;
use burn::tensor::Tensor;

use super::mlp::Mlp;
use super::norm::Norm;
use crate::attention::{Attention, Frame};
use crate::cache::Memory;

/// A pre-norm transformer block.
#[derive(Module, Debug)]
pub struct Block {
    /// Norm before attention.
    pub input_norm: Norm,
    /// The attention.
    pub attention: Attention,
    /// Norm before the MLP.
    pub mlp_norm: Norm,
    /// The MLP.
    pub mlp: Mlp,
}

impl Block {
    /// What `W_q`, `W_k` and `W_v` really receive: the *normed* residual stream. Calibration records this.
    ///
    /// # Shapes
    /// - `x`: `[batch, t, d_model]` → the same
    pub fn attention_input(&self, x: Tensor<3>) -> Tensor<3> {
        self.input_norm.forward(x)
    }

    /// The residual stream after the block, given `h` from [`attention_input`](Self::attention_input).
    ///
    /// # Shapes
    /// - `x`, `h`: `[batch, t_q, d_model]` → the same
    pub fn forward_from(
        &self,
        x: Tensor<3>,
        h: Tensor<3>,
        frame: &Frame,
        layer: usize,
        memory: &mut Memory<'_>,
    ) -> Tensor<3> {
        let attended = self.attention.forward(h, frame, layer, memory);
        self.after_attention(x, attended)
    }

    /// The second half of the block: the residual stream after it, given what its attention adds.
    ///
    /// # Shapes
    /// - `x`, `attended`: `[batch, t_q, d_model]` → the same
    pub fn after_attention(&self, x: Tensor<3>, attended: Tensor<3>) -> Tensor<3> {
        let x = x + attended;
        x.clone() + self.mlp.forward(self.mlp_norm.forward(x))
    }

    /// The residual stream after the block.
    ///
    /// # Shapes
    /// - `x`: `[batch, t_q, d_model]` → the same
    pub fn forward(&self, x: Tensor<3>, frame: &Frame, layer: usize, memory: &mut Memory<'_>) -> Tensor<3> {
        let h = self.attention_input(x.clone());
        self.forward_from(x, h, frame, layer, memory)
    }
}
