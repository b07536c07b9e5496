//! The donor's cache: rotated keys and values of every kv head.

use burn::tensor::{DType, Device, Tensor};

use super::CacheDtype;
use super::buffer::Buffer;

/// Keys and values of one layer, `[batch, n_kv_heads, capacity, d_head]` each.
#[derive(Debug)]
pub(super) struct DenseCache {
    keys: Buffer<4>,
    values: Buffer<4>,
}

impl DenseCache {
    pub(super) fn new(shape: [usize; 4], window: Option<usize>, dtype: CacheDtype, device: &Device) -> Self {
        let buffer = || Buffer::new(shape, window, dtype.float(), device);
        Self { keys: buffer(), values: buffer() }
    }

    /// Stores the keys and values of new tokens and returns all that are kept, as they are, with the first one's token.
    ///
    /// # Shapes
    /// - `k`, `v`: `[batch, n_kv_heads, t_q, d_head]` → `[batch, n_kv_heads, kept, d_head]`
    pub(super) fn append(&mut self, at: usize, k: Tensor<4>, v: Tensor<4>) -> (Tensor<4>, Tensor<4>, usize) {
        let end = at + k.dims()[2];
        self.keys.append_rounded(at, k);
        self.values.append_rounded(at, v);
        let first = self.keys.first();
        (self.keys.tokens(first..end), self.values.tokens(first..end), first)
    }

    /// Lets go of what no later token sees.
    pub(super) fn trim(&mut self) {
        self.keys.trim();
        self.values.trim();
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

/// What a pass without a cache sees of numbers that a cache would keep in `dtype`.
pub(super) fn rounded<const D: usize>(x: Tensor<D>, dtype: DType) -> Tensor<D> {
    match dtype {
        DType::F32 => x,
        half => x.cast(half).cast(DType::F32),
    }
}
