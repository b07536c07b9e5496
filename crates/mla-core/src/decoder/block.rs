//! One layer: attention and MLP on a residual stream, with the norms that the family puts around them.

use burn::module::Module;
use burn::tensor::Tensor;

use super::config::BlockKind;
use super::mlp::Mlp;
use crate::attention::{Attention, Frame};
use crate::cache::Memory;
use crate::norm::Norm;

/// A transformer block.
#[derive(Module, Debug)]
pub struct Block {
    /// Norm before attention.
    pub input_norm: Option<Norm>,
    /// The attention.
    pub attention: Attention,
    /// Norm after attention.
    pub attended_norm: Option<Norm>,
    /// Norm before the MLP.
    pub mlp_norm: Option<Norm>,
    /// The MLP.
    pub mlp: Mlp,
    /// Norm after the MLP.
    pub mlp_out_norm: Option<Norm>,
    /// What the MLP reads.
    #[module(skip)]
    pub kind: BlockKind,
    /// What is multiplied into all that is added to the stream.
    #[module(skip)]
    pub residual_scale: f64,
}

impl Block {
    /// What `W_q`, `W_k` and `W_v` really receive: the residual stream, *normed* where a norm stands before attention.
    /// Calibration records this.
    ///
    /// # Shapes
    /// - `x`: `[batch, t, d_model]` → the same
    pub fn attention_input(&self, x: Tensor<3>) -> Tensor<3> {
        through(&self.input_norm, x)
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
        let after = self.plus(x.clone(), through(&self.attended_norm, attended));
        let read = match self.kind {
            BlockKind::Parallel => x,
            BlockKind::PreNorm | BlockKind::PostNorm | BlockKind::Sandwich => after.clone(),
        };
        let made = self.mlp.forward(through(&self.mlp_norm, read));
        self.plus(after, through(&self.mlp_out_norm, made))
    }

    fn plus(&self, x: Tensor<3>, more: Tensor<3>) -> Tensor<3> {
        match self.residual_scale == 1.0 {
            true => x + more,
            false => x + more * self.residual_scale,
        }
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

/// # Shapes
/// - `x`: `[batch, t, d_model]` → the same
fn through(norm: &Option<Norm>, x: Tensor<3>) -> Tensor<3> {
    match norm {
        Some(norm) => norm.forward(x),
        None => x,
    }
}
