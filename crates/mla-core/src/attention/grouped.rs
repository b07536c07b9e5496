//! The donor's attention: multi-head, grouped-query or multi-query, keys and values cached.

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::Tensor;

use super::frame::Frame;
use super::host;
use super::inputs::{Keys, Queries};
use super::scores::{Scores, join_heads, split_heads};
use crate::cache::Memory;
use crate::linear::{linear, widened};

/// Grouped-query attention (Ainslie et al. 2023); multi-head and multi-query are its ends.
#[derive(Module, Debug)]
pub struct GroupedAttention {
    /// `W_q`, and what follows it.
    pub queries: Queries,
    /// `W_k`, and what follows it.
    pub keys: Keys,
    /// `[d_model, d_kv]`.
    pub v_proj: Linear,
    /// How queries and keys become weights.
    pub scores: Scores,
    /// `[n_heads · d_head, d_model]`.
    pub o_proj: Linear,
    /// Key/value heads.
    pub n_kv_heads: usize,
}

impl GroupedAttention {
    /// Keys and values before the rotary embedding, biases and norms included.
    ///
    /// # Shapes
    /// - `h`: `[batch, t, d_model]` → both `[batch, t, d_kv]`
    pub fn project(&self, h: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        (self.keys.project(h.clone()), linear(&self.v_proj, h))
    }

    /// What latents of this layer would stand for: keys and values without the biases that stay exact.
    ///
    /// # Shapes
    /// - `h`: `[batch, t, d_model]` → both `[batch, t, d_kv]`
    pub fn latent_targets(&self, h: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        (self.keys.latent_target(h.clone()), h.matmul(widened(self.v_proj.weight.val()).unsqueeze::<3>()))
    }

    /// What the layer adds to the residual stream, given keys and values from [`project`](Self::project).
    ///
    /// Apart from it, so that calibration can ask for the gradient at K and V.
    ///
    /// # Shapes
    /// - `h`: `[batch, t_q, d_model]`, `k`, `v`: `[batch, t_q, d_kv]` → `[batch, t_q, d_model]`
    ///
    /// # Panics
    /// As [`Attention::forward`](super::Attention::forward).
    pub fn attend(
        &self,
        h: Tensor<3>,
        k: Tensor<3>,
        v: Tensor<3>,
        frame: &Frame,
        layer: usize,
        memory: &mut Memory<'_>,
    ) -> Tensor<3> {
        let q = self.queries.rotated(h, frame, layer);
        let k = frame.rotate(layer, split_heads(k, self.n_kv_heads));
        let v = split_heads(v, self.n_kv_heads);
        let (k, v, first) = memory.keys_values(layer, frame.past(), k, v);
        if let Memory::Cache(_) = memory
            && let Some(heads) = host::attend_cached(&self.scores, q.clone(), &k, &v, first, frame, layer)
        {
            return linear(&self.o_proj, join_heads(heads));
        }
        // A cache may keep fewer bits than are computed in, and a product of two types is garbage on some backends.
        let (k, v) = (k.cast(q.dtype()), v.cast(q.dtype()));
        linear(&self.o_proj, self.scores.attend(q, k, v, frame.sight(layer, first)))
    }

    /// # Shapes
    /// - `h`: `[batch, t_q, d_model]` → the same
    pub(super) fn forward(
        &self,
        h: Tensor<3>,
        frame: &Frame,
        layer: usize,
        memory: &mut Memory<'_>,
    ) -> Tensor<3> {
        let (k, v) = self.project(h.clone());
        self.attend(h, k, v, frame, layer, memory)
    }
}
