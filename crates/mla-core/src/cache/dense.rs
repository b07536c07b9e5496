//! The donor's cache: rotated keys and values of every kv head.

use burn::tensor::{Device, Tensor};

use super::buffer::Buffer;

/// Keys and values of one layer, `[batch, n_kv_heads, capacity, d_head]` each.
#[derive(Debug)]
pub(super) struct DenseCache {
    keys: Buffer<4>,
    values: Buffer<4>,
}

impl DenseCache {
    pub(super) fn new(
        batch: usize,
        n_kv_heads: usize,
        capacity: usize,
        d_head: usize,
        device: &Device,
    ) -> Self {
        let shape = [batch, n_kv_heads, capacity, d_head];
        Self { keys: Buffer::new(shape, device), values: Buffer::new(shape, device) }
    }

    /// Stores the keys and values of new tokens and returns those of all.
    ///
    /// # Shapes
    /// - `k`, `v`: `[batch, n_kv_heads, t_q, d_head]` → `[batch, n_kv_heads, t_kv, d_head]`
    pub(super) fn append(&mut self, at: usize, k: Tensor<4>, v: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        (self.keys.append(at, k), self.values.append(at, v))
    }

    /// Writes random numbers into the first `tokens` tokens.
    pub(super) fn fill(&mut self, tokens: usize) {
        self.keys.fill(tokens);
        self.values.fill(tokens);
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        self.keys.bytes() + self.values.bytes()
    }
}
