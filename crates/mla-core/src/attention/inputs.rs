//! What attention makes of its input: queries and keys, each with the norm and rotation that the family gives it.
//!
//! A key with a norm behind its projection is no linear function of the input, so a latent is not fitted to `W_k h` there
//! but to the normed key: the layer keeps `W_k` and the norm, computes `k̂ = norm(W_k h)` as the donor does, and compresses
//! `[k̂; h]` in the place of `h`. What is rebuilt is then linear in what is cached, as everywhere.

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::Tensor;

use super::frame::Frame;
use super::scores::split_heads;
use crate::linear::{linear, widened};
use crate::norm::HeadNorm;

/// `W_q` and what follows it.
#[derive(Module, Debug)]
pub struct Queries {
    /// `[d_model, n_heads · d_head]`.
    pub proj: Linear,
    /// QK-norm.
    pub norm: Option<HeadNorm>,
    /// Query heads.
    pub n_heads: usize,
}

impl Queries {
    /// Queries before the rotary embedding.
    ///
    /// # Shapes
    /// - `h`: `[batch, t, d_model]` → `[batch, t, n_heads · d_head]`
    pub fn project(&self, h: Tensor<3>) -> Tensor<3> {
        normed(linear(&self.proj, h), self.norm.as_ref())
    }

    /// The heads of queries before the rotary embedding.
    ///
    /// # Shapes
    /// - `h`: `[batch, t_q, d_model]` → `[batch, n_heads, t_q, d_head]`
    pub(super) fn heads(&self, h: Tensor<3>) -> Tensor<4> {
        split_heads(self.project(h), self.n_heads)
    }

    /// Queries as they are scored, but for the scale.
    ///
    /// # Shapes
    /// - `h`: `[batch, t_q, d_model]` → `[batch, n_heads, t_q, d_head]`
    pub(super) fn rotated(&self, h: Tensor<3>, frame: &Frame, layer: usize) -> Tensor<4> {
        frame.rotate(layer, self.heads(h))
    }
}

/// `W_k` and the norm that may follow it.
#[derive(Module, Debug)]
pub struct Keys {
    /// `[d_model, d_kv]`.
    pub proj: Linear,
    /// QK-norm.
    pub norm: Option<HeadNorm>,
}

impl Keys {
    /// Keys before the rotary embedding.
    ///
    /// # Shapes
    /// - `h`: `[batch, t, d_model]` → `[batch, t, d_kv]`
    pub fn project(&self, h: Tensor<3>) -> Tensor<3> {
        normed(linear(&self.proj, h), self.norm.as_ref())
    }

    /// What a latent of keys stands for: all of a key but a bias that is added after rebuilding.
    ///
    /// # Shapes
    /// - `h`: `[batch, t, d_model]` → `[batch, t, d_kv]`
    pub fn latent_target(&self, h: Tensor<3>) -> Tensor<3> {
        match self.norm {
            Some(_) => self.project(h),
            None => h.matmul(widened(self.proj.weight.val()).unsqueeze::<3>()),
        }
    }
}

/// What latents are made of: `h`, or `[k̂, h]` where keys are normed.
///
/// # Shapes
/// - `h`: `[batch, t, d_model]` → `[batch, t, d_model]` or `[batch, t, d_kv + d_model]`
pub fn latent_input(keys: Option<&Keys>, h: Tensor<3>) -> Tensor<3> {
    match keys {
        Some(keys) if keys.norm.is_some() => Tensor::cat(vec![keys.project(h.clone()), h], 2),
        _ => h,
    }
}

fn normed(x: Tensor<3>, norm: Option<&HeadNorm>) -> Tensor<3> {
    match norm {
        Some(norm) => norm.forward(x),
        None => x,
    }
}
