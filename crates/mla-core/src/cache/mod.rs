//! What a decoder remembers of a sequence, preallocated, one cache for the whole model.
//!
//! A layer with [`Attention::Grouped`](crate::Attention) keeps keys and values (`DenseCache`); a latent layer keeps
//! latents and has no field that could hold more (`LatentCache`). The layers of a pass reach it, and each other's
//! latents, through a [`Memory`].
//!
//! Numbers are kept in a [`CacheDtype`]; quantised latents are [packed](Packing). A pass without a cache sees what a cache
//! would have kept.

mod buffer;
mod dense;
mod dtype;
mod latent;
mod memory;
mod packing;

pub use dtype::CacheDtype;
pub(crate) use latent::Kept;
pub use memory::{Memory, PassLatents};
pub use packing::Packing;

use burn::tensor::Device;
use thiserror::Error;

use dense::DenseCache;
use latent::{Codec, LatentCache};

use crate::decoder::{AttentionKind, DecoderConfig};
use crate::positions::{Padding, RopeTable};

/// A pass that does not fit.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CacheError {
    /// More tokens than the cache was allocated for.
    #[error("the cache holds {capacity} tokens: {used} are used and {wanted} more were given")]
    Overflow {
        /// Tokens allocated.
        capacity: usize,
        /// Tokens in use.
        used: usize,
        /// Tokens the pass would add.
        wanted: usize,
    },
    /// A batch of another size than the cache was made for.
    #[error("the cache was made for {expected} sequences, the pass has {found}")]
    Batch {
        /// Sequences of the cache.
        expected: usize,
        /// Sequences of the pass.
        found: usize,
    },
}

/// The cache of one layer.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a cache has one a layer, and the numbers are elsewhere")]
enum LayerCache {
    /// Keys and values.
    Dense(DenseCache),
    /// Latents.
    Latent(LatentCache),
}

/// The cache of a decoder for one batch of sequences.
#[derive(Debug)]
pub struct Cache {
    layers: Vec<LayerCache>,
    /// The rotary tables of the model, for as many positions as there is room.
    pub(crate) tables: Vec<RopeTable>,
    padding: Padding,
    capacity: usize,
    tokens: usize,
}

impl Cache {
    /// Allocates room for `capacity` tokens a sequence, padding included, in numbers of the configuration's type. A layer that
    /// sees a window only, and whose latents are read by none that sees more, allocates as it goes and keeps no more than the
    /// window.
    pub fn new(config: &DecoderConfig, padding: Padding, capacity: usize, device: &Device) -> Self {
        let batch = padding.batch();
        let retention = config.retention();
        let layer = |layer: usize| {
            let window = retention[layer];
            match &config.layers[layer].attention {
                AttentionKind::Grouped => {
                    let shape = [batch, config.n_kv_heads, capacity, config.d_head];
                    LayerCache::Dense(DenseCache::new(shape, window, config.cache_dtype, device))
                }
                AttentionKind::Latent(latent) => {
                    let (codec, width) = (Codec::new(config.cache_dtype, latent), latent.cached_numbers());
                    LayerCache::Latent(LatentCache::new(batch, capacity, window, codec, width, device))
                }
            }
        };
        // Padding may take a batch's columns beyond the context, which no sequence leaves.
        let own: Vec<usize> =
            padding.lengths(capacity).into_iter().map(|length| length.min(config.max_positions)).collect();
        let tables = config.ropes().iter().map(|rope| rope.batch_table(capacity, &own, device)).collect();
        let layers = (0..config.n_layers()).map(layer).collect();
        Self { layers, tables, padding, capacity, tokens: 0 }
    }

    /// Tokens a sequence that the cache can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Tokens a sequence that it holds, padding included.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The padding of the batch.
    pub fn padding(&self) -> &Padding {
        &self.padding
    }

    /// Bytes allocated for keys, values and latents: the sum over the buffers themselves, not a formula. Between passes those
    /// are what [`DecoderConfig::cache_bytes`] counts once a window is full, or where there is none.
    pub fn bytes(&self) -> usize {
        let bytes = |layer: &LayerCache| match layer {
            LayerCache::Dense(cache) => cache.bytes(),
            LayerCache::Latent(cache) => cache.bytes(),
        };
        self.layers.iter().map(bytes).sum()
    }

    /// Makes an empty cache look as if `tokens` tokens a sequence had been read: random numbers, drawn on the device. For
    /// benchmarks, which need a long context and not what is in it.
    ///
    /// # Errors
    /// When the cache is not empty or too small.
    pub fn fill(&mut self, tokens: usize) -> Result<(), CacheError> {
        if self.tokens + tokens > self.capacity || self.tokens > 0 {
            return Err(CacheError::Overflow { capacity: self.capacity, used: self.tokens, wanted: tokens });
        }
        if tokens > 0 {
            self.layers.iter_mut().for_each(|layer| match layer {
                LayerCache::Dense(cache) => cache.fill(tokens),
                LayerCache::Latent(cache) => cache.fill(tokens),
            });
        }
        self.tokens = tokens;
        Ok(())
    }

    /// Ends a pass: what no later one sees goes.
    pub(crate) fn trim(&mut self) {
        self.layers.iter_mut().for_each(|layer| match layer {
            LayerCache::Dense(cache) => cache.trim(),
            LayerCache::Latent(cache) => cache.trim(),
        });
    }

    /// Claims room for a pass and returns how many tokens were there before it.
    pub(crate) fn advance(&mut self, batch: usize, wanted: usize) -> Result<usize, CacheError> {
        if batch != self.padding.batch() {
            return Err(CacheError::Batch { expected: self.padding.batch(), found: batch });
        }
        let (capacity, used) = (self.capacity, self.tokens);
        if used + wanted > capacity {
            return Err(CacheError::Overflow { capacity, used, wanted });
        }
        self.tokens += wanted;
        Ok(used)
    }
}
