//! The latent cache: one tensor of latents a layer, and nothing that has a head axis.

use std::ops::Range;

use burn::tensor::{Device, Tensor};

use super::buffer::Buffer;

/// Latents of one layer: `[batch, capacity, width]`.
#[derive(Debug)]
pub(super) struct LatentCache {
    latents: Buffer<3>,
}

impl LatentCache {
    pub(super) fn new(batch: usize, capacity: usize, width: usize, device: &Device) -> Self {
        Self { latents: Buffer::new([batch, capacity, width], device) }
    }

    /// Stores the latents of new tokens and returns those of all.
    ///
    /// # Shapes
    /// - `latents`: `[batch, t_q, width]` → `[batch, t_kv, width]`
    pub(super) fn append(&mut self, at: usize, latents: Tensor<3>) -> Tensor<3> {
        self.latents.append(at, latents)
    }

    /// The latents of some tokens.
    ///
    /// # Shapes
    /// - `[batch, tokens, width]`
    pub(super) fn tokens(&self, tokens: Range<usize>) -> Tensor<3> {
        self.latents.tokens(tokens)
    }

    /// Writes random numbers into the first `tokens` tokens.
    pub(super) fn fill(&mut self, tokens: usize) {
        self.latents.fill(tokens);
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        self.latents.bytes()
    }
}
