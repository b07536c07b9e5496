//! Multi-Head Latent Attention: what is cached is `c_k = W_down_k h` and `c_v = W_down_v h`, nothing else.
//!
//! Source: DeepSeek-V2 2024, §2.1. Ours is fitted after training, so the latents of keys and of values are separate
//! and the rotary embedding is applied to the rebuilt key.

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::Tensor;
use burn::tensor::module::linear;

use super::frame::Frame;
use super::scores::{attend, split_heads};
use crate::cache::LatentCache;

/// Attention that caches latents and rebuilds `K = W_uk c_k + b_k`, `V = W_uv c_v + b_v`.
#[derive(Module, Debug)]
pub struct LatentAttention {
    /// `[d_model, n_heads · d_head]`.
    pub q_proj: Linear,
    /// `[d_latent_k, d_model]`.
    pub w_down_k: Param<Tensor<2>>,
    /// `[d_kv, d_latent_k]`, orthonormal columns.
    pub w_up_k: Param<Tensor<2>>,
    /// `[d_latent_v, d_model]`.
    pub w_down_v: Param<Tensor<2>>,
    /// `[d_kv, d_latent_v]`, orthonormal columns.
    pub w_up_v: Param<Tensor<2>>,
    /// `[d_kv]`, exact, added to every rebuilt key.
    pub k_bias: Option<Param<Tensor<1>>>,
    /// `[d_kv]`, exact, added to every rebuilt value.
    pub v_bias: Option<Param<Tensor<1>>>,
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
        let (latent_k, latent_v) = self.compress(h);
        let (latent_k, latent_v) = match cache {
            Some(cache) => cache.append(frame.past(), latent_k, latent_v),
            None => (latent_k, latent_v),
        };
        let k = rebuild(latent_k, &self.w_up_k, self.k_bias.as_ref());
        let v = rebuild(latent_v, &self.w_up_v, self.v_bias.as_ref());
        let k = frame.rotate_everything(split_heads(k, self.n_kv_heads));
        let v = split_heads(v, self.n_kv_heads);
        self.o_proj.forward(attend(q, k, v, frame.sight(layer)))
    }

    /// The latents of some positions.
    ///
    /// # Shapes
    /// - `h`: `[batch, t, d_model]` → `[batch, t, d_latent_k]`, `[batch, t, d_latent_v]`
    pub fn compress(&self, h: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        let down = |w: &Param<Tensor<2>>, h| linear(h, w.val().transpose(), None);
        (down(&self.w_down_k, h.clone()), down(&self.w_down_v, h))
    }
}

/// `[batch, t, d_latent]` → `[batch, t, d_kv]`: `W_up c + b`.
fn rebuild(latent: Tensor<3>, w_up: &Param<Tensor<2>>, bias: Option<&Param<Tensor<1>>>) -> Tensor<3> {
    linear(latent, w_up.val().transpose(), bias.map(Param::val))
}
