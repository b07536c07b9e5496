//! Multi-Head Latent Attention: what is cached is `c_k = W_down_k h` and `c_v = W_down_v h`, nothing else.
//!
//! Source: DeepSeek-V2 2024, §2.1. Ours is fitted after training, so the latents of keys and of values are separate
//! and the rotary embedding is applied to the rebuilt key.

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::Tensor;

use super::frame::Frame;
use super::scores::{attend, split_heads};
use crate::cache::LatentCache;

/// Attention that caches latents and rebuilds `K = W_uk c_k + b_k`, `V = W_uv c_v + b_v`.
///
/// The matrices are stored as burn's `Linear` multiplies them, transposed: what the papers call a matrix with
/// orthonormal columns has orthonormal rows here.
#[derive(Module, Debug)]
pub struct LatentAttention {
    /// `[d_model, n_heads · d_head]`.
    pub q_proj: Linear,
    /// `W_down_kᵀ`: `[d_model, d_latent_k]`.
    pub down_k: Linear,
    /// `W_ukᵀ`: `[d_latent_k, d_kv]`, orthonormal rows; its bias is the donor's b_k, exact.
    pub up_k: Linear,
    /// `W_down_vᵀ`: `[d_model, d_latent_v]`.
    pub down_v: Linear,
    /// `W_uvᵀ`: `[d_latent_v, d_kv]`, orthonormal rows; its bias is the donor's b_v, exact.
    pub up_v: Linear,
    /// `[n_heads · d_head, d_model]`.
    pub o_proj: Linear,
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads.
    pub n_kv_heads: usize,
}

impl LatentAttention {
    /// # Shapes
    /// - `h`: `[batch, t_q, d_model]` → the same
    pub(super) fn forward(
        &self,
        h: Tensor<3>,
        frame: &Frame,
        layer: usize,
        cache: Option<&mut LatentCache>,
    ) -> Tensor<3> {
        let q = frame.rotate(split_heads(self.q_proj.forward(h.clone()), self.n_heads));
        let (latent_k, latent_v) = (self.down_k.forward(h.clone()), self.down_v.forward(h));
        let (latent_k, latent_v) = match cache {
            Some(cache) => cache.append(frame.past(), latent_k, latent_v),
            None => (latent_k, latent_v),
        };
        let k = frame.rotate_everything(split_heads(self.up_k.forward(latent_k), self.n_kv_heads));
        let v = split_heads(self.up_v.forward(latent_v), self.n_kv_heads);
        self.o_proj.forward(attend(q, k, v, frame.sight(layer)))
    }
}
