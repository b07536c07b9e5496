//! The rotated key that all heads share, beside keys that are not rotated (DeepSeek-V2 2024, §2.1.3).
//!
//! A rotation between `W_uk` and a score keeps the score from being absorbed. Here the few dimensions whose rotation matters
//! are a key of their own, cached rotated, and the latent holds the rest of the keys as they are scored: `q · k` becomes
//! `R(q_r) · k_r + q · (W_uk c)` with `q_r = W_urᵀ q`, and both terms read the cache as it lies.

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::Tensor;

use super::frame::Frame;
use super::scores::join_heads;
use crate::linear::linear;

/// The shared key of a layer.
#[derive(Module, Debug)]
pub struct SharedKey {
    /// `[d_model, d_rope]`; of normed keys `[d_kv, d_rope]`.
    pub down: Linear,
    /// `W_urᵀ`, what each kv head's queries read of it: `[d_rope, d_kv]`.
    pub up: Param<Tensor<2>>,
    /// `[d_rope, d_rope]`, orthogonal: spreads the rotated key, and the queries alike, over all numbers, so that one scale fits
    /// them where they are quantised. `None` where they are not.
    pub spread: Option<Param<Tensor<2>>>,
    /// Which of the model's rotary embeddings turns it.
    #[module(skip)]
    pub rope: usize,
    /// For each of its pairs, the pair of that embedding that it turns as.
    #[module(skip)]
    pub pairs: Vec<usize>,
}

impl SharedKey {
    /// Numbers a token.
    pub fn d_rope(&self) -> usize {
        2 * self.pairs.len()
    }

    /// The rotated key of new tokens, as it is cached.
    ///
    /// # Shapes
    /// - `x`: `[batch, t, ..]` as [`latent_input`](super::latent_input) gives it → `[batch, t, d_rope]`
    pub(super) fn keys(&self, x: Tensor<3>, frame: &Frame) -> Tensor<3> {
        let [read, _] = self.down.weight.dims();
        let read = if x.dims()[2] == read { x } else { x.narrow(2, 0, read) };
        let key = linear(&self.down, read).unsqueeze_dim::<4>(1);
        join_heads(self.turned(key, frame))
    }

    /// What queries read the shared key with.
    ///
    /// # Shapes
    /// - `q`: `[batch, n_heads, t_q, d_head]`, not rotated → `[batch, n_heads, t_q, d_rope]`
    pub(super) fn queries(&self, q: Tensor<4>, n_kv_heads: usize, frame: &Frame) -> Tensor<4> {
        let [batch, n_heads, t_q, d_head] = q.dims();
        let rows = q.reshape([batch, n_kv_heads, n_heads / n_kv_heads * t_q, d_head]);
        // [d_rope, d_kv] → [1, n_kv_heads, d_head, d_rope]
        let up =
            self.up.val().reshape([self.d_rope(), n_kv_heads, d_head]).permute([1, 2, 0]).unsqueeze::<4>();
        let read = rows.matmul(up).reshape([batch, n_heads, t_q, self.d_rope()]);
        self.turned(read, frame)
    }

    /// Rotated, and spread where that is done.
    fn turned(&self, x: Tensor<4>, frame: &Frame) -> Tensor<4> {
        let x = frame.rotation(self.rope).of_pairs(&self.pairs).apply(x);
        match &self.spread {
            None => x,
            Some(spread) => x.matmul(spread.val().unsqueeze::<4>()),
        }
    }
}
