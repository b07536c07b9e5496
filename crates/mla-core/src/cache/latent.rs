//! The latent cache: one tensor of latents a layer, and nothing that has a head axis.

use std::ops::Range;

use burn::tensor::{DType, Device, Distribution, Int, Tensor};

use super::buffer::{Buffer, FILL};
use super::dense::rounded;
use super::packing::Packing;
use crate::cache::CacheDtype;
use crate::decoder::LatentConfig;

/// How the latents of a layer are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    /// As floating-point numbers.
    Float(DType),
    /// Quantised.
    Packed(Packing),
}

impl Codec {
    pub(super) fn new(dtype: CacheDtype, latent: &LatentConfig) -> Self {
        match dtype.bits() {
            None => Codec::Float(dtype.float()),
            Some(bits) => Codec::Packed(Packing::new(bits, &latent.cached_widths())),
        }
    }

    /// What comes back of latents that were kept.
    ///
    /// # Shapes
    /// - `latents`: `[batch, t, width]` → the same
    pub(super) fn rounded(&self, latents: Tensor<3>) -> Tensor<3> {
        match self {
            Codec::Float(dtype) => rounded(latents, *dtype),
            Codec::Packed(packing) => packing.unpack_tensor(packing.pack_tensor(latents)),
        }
    }
}

/// Latents of one layer: `[batch, capacity, width]`.
#[derive(Debug)]
pub(super) enum LatentCache {
    /// As floating-point numbers.
    Float(Buffer<3>),
    /// Quantised: `[batch, capacity, words]`.
    Packed(Packing, Buffer<3, Int>),
}

/// Latents as they are kept.
pub(crate) enum Kept<'a> {
    /// `[batch, tokens, width]`.
    Float(Tensor<3>),
    /// `[batch, tokens, words]`.
    Packed(&'a Packing, Tensor<3, Int>),
}

impl Kept<'_> {
    /// The numbers.
    ///
    /// # Shapes
    /// - `[batch, tokens, width]`
    pub(super) fn numbers(self) -> Tensor<3> {
        match self {
            Kept::Float(latents) => latents.cast(DType::F32),
            Kept::Packed(packing, words) => packing.unpack_tensor(words),
        }
    }
}

impl LatentCache {
    pub(super) fn new(
        batch: usize,
        capacity: usize,
        window: Option<usize>,
        codec: Codec,
        width: usize,
        device: &Device,
    ) -> Self {
        match codec {
            Codec::Float(dtype) => {
                LatentCache::Float(Buffer::new([batch, capacity, width], window, dtype, device))
            }
            Codec::Packed(packing) => {
                let words = Buffer::new([batch, capacity, packing.words()], window, DType::I32, device);
                LatentCache::Packed(packing, words)
            }
        }
    }

    /// Stores the latents of new tokens.
    ///
    /// # Shapes
    /// - `latents`: `[batch, t_q, width]`
    pub(super) fn append(&mut self, at: usize, latents: Tensor<3>) {
        match self {
            LatentCache::Float(buffer) => buffer.append_rounded(at, latents),
            LatentCache::Packed(packing, words) => words.append(at, packing.pack_tensor(latents)),
        }
    }

    /// Lets go of what no later token sees.
    pub(super) fn trim(&mut self) {
        match self {
            LatentCache::Float(buffer) => buffer.trim(),
            LatentCache::Packed(_, words) => words.trim(),
        }
    }

    /// The first token that is kept.
    pub(super) fn first(&self) -> usize {
        match self {
            LatentCache::Float(buffer) => buffer.first(),
            LatentCache::Packed(_, words) => words.first(),
        }
    }

    /// The latents of some tokens.
    pub(super) fn tokens(&self, tokens: Range<usize>) -> Kept<'_> {
        match self {
            LatentCache::Float(buffer) => Kept::Float(buffer.tokens(tokens)),
            LatentCache::Packed(packing, words) => Kept::Packed(packing, words.tokens(tokens)),
        }
    }

    /// Writes random numbers into the first `tokens` tokens, those that are kept.
    pub(super) fn fill(&mut self, tokens: usize) {
        match self {
            LatentCache::Float(buffer) => buffer.fill(tokens),
            LatentCache::Packed(packing, words) => {
                let ([batch, _, _], device) = (words.shape(), words.device());
                for start in (words.skip_to(tokens)..tokens).step_by(FILL) {
                    let shape = [batch, (tokens - start).min(FILL), packing.width()];
                    let random = Tensor::random(shape, Distribution::Normal(0.0, 1.0), &device);
                    words.append(start, packing.pack_tensor(random));
                }
            }
        }
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        match self {
            LatentCache::Float(buffer) => buffer.bytes(),
            LatentCache::Packed(_, words) => words.bytes(),
        }
    }
}
