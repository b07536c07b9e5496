//! The latent cache: `d_latent_k + d_latent_v` numbers a token, and nothing that has a head axis.

use burn::tensor::{Device, Tensor};

use super::buffer::Buffer;

/// Latents of one layer: `[batch, capacity, d_latent_k]` and `[batch, capacity, d_latent_v]`.
#[derive(Debug)]
pub struct LatentCache {
    keys: Buffer<3>,
    values: Buffer<3>,
}

impl LatentCache {
    pub(super) fn new(
        batch: usize,
        capacity: usize,
        d_latent_k: usize,
        d_latent_v: usize,
        device: &Device,
    ) -> Self {
        Self {
            keys: Buffer::new([batch, capacity, d_latent_k], device),
            values: Buffer::new([batch, capacity, d_latent_v], device),
        }
    }

    /// Stores the latents of new tokens and returns those of all.
    ///
    /// # Shapes
    /// - `latent_k`, `latent_v`: `[batch, t_q, d_latent]` → `[batch, t_kv, d_latent]`
    pub(crate) fn append(
        &mut self,
        at: usize,
        latent_k: Tensor<3>,
        latent_v: Tensor<3>,
    ) -> (Tensor<3>, Tensor<3>) {
        (self.keys.append(at, latent_k), self.values.append(at, latent_v))
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        self.keys.bytes() + self.values.bytes()
    }
}
