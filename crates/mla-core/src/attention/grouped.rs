//! The donor's attention: multi-head, grouped-query or multi-query, keys and values cached.

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::Tensor;

use super::frame::Frame;
use super::scores::{attend, split_heads};
use crate::cache::DenseCache;

/// Grouped-query attention (Ainslie et al. 2023); multi-head and multi-query are its ends.
#[derive(Module, Debug)]
pub struct GroupedAttention {
    /// `[d_model, n_heads · d_head]`.
    pub q_proj: Linear,
    /// `[d_model, d_kv]`.
    pub k_proj: Linear,
    /// `[d_model, d_kv]`.
    pub v_proj: Linear,
    /// `[n_heads · d_head, d_model]`.
    pub o_proj: Linear,
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads.
    pub n_kv_heads: usize,
}

impl GroupedAttention {
    /// # Shapes
    /// - `h`: `[batch, t_q, d_model]` → the same
    pub(super) fn forward(
        &self,
        h: Tensor<3>,
        frame: &Frame,
        layer: usize,
        cache: Option<&mut DenseCache>,
    ) -> Tensor<3> {
        let q = frame.rotate(split_heads(self.q_proj.forward(h.clone()), self.n_heads));
        let k = frame.rotate(split_heads(self.k_proj.forward(h.clone()), self.n_kv_heads));
        let v = split_heads(self.v_proj.forward(h), self.n_kv_heads);
        let (k, v) = match cache {
            Some(cache) => cache.append(frame.past(), k, v),
            None => (k, v),
        };
        self.o_proj.forward(attend(q, k, v, frame.sight(layer)))
    }
}
