//! What the layers of a pass see of earlier passes and of each other.

use std::collections::BTreeMap;
use std::ops::Range;

use burn::tensor::Tensor;

use super::dense::rounded;
use super::latent::{Codec, Kept};
use super::{Cache, CacheDtype, LayerCache};
use crate::decoder::DecoderConfig;

/// Where the layers of a pass leave what later passes and later layers read.
#[derive(Debug)]
pub enum Memory<'a> {
    /// A pass without a cache: nothing outlives it, and a latent is kept only as long as some later layer reads it.
    Pass(PassLatents),
    /// A pass that continues the sequences of a cache.
    Cache(&'a mut Cache),
}

/// The latents of one pass that layers further up still read; none at all for a model without cross terms.
#[derive(Clone, Debug)]
pub struct PassLatents {
    /// The last layer that reads a layer's latents, for those that have a reader.
    last_reader: BTreeMap<usize, usize>,
    kept: BTreeMap<usize, Tensor<3>>,
    /// What a cache would keep numbers as: a pass without one sees the same.
    dtype: CacheDtype,
    codecs: BTreeMap<usize, Codec>,
}

impl PassLatents {
    /// An empty store for one pass through the layers of `config`, in their order.
    pub fn new(config: &DecoderConfig) -> Self {
        let mut last_reader = BTreeMap::new();
        for reader in 0..config.n_layers() {
            last_reader.extend(config.reads(reader).into_iter().map(|read| (read, reader)));
        }
        let codec = |layer| Some((layer, Codec::new(config.cache_dtype, config.latent(layer)?)));
        let codecs = (0..config.n_layers()).filter_map(codec).collect();
        Self { last_reader, kept: BTreeMap::new(), dtype: config.cache_dtype, codecs }
    }

    /// As if these layers had left these latents already: to run a layer again by itself. A latent that no layer reads is
    /// let go.
    pub fn holding(config: &DecoderConfig, latents: impl IntoIterator<Item = (usize, Tensor<3>)>) -> Self {
        let mut pass = Self::new(config);
        pass.kept.extend(latents.into_iter().filter(|(layer, _)| pass.last_reader.contains_key(layer)));
        pass
    }

    /// The latents of a layer, while they are held: from when it has run until its last reader has.
    ///
    /// # Shapes
    /// - `[batch, t, width]` of that layer
    pub fn get(&self, layer: usize) -> Option<Tensor<3>> {
        self.kept.get(&layer).cloned()
    }

    /// The layers whose latents are held at this moment.
    pub fn layers(&self) -> Vec<usize> {
        self.kept.keys().copied().collect()
    }

    /// Takes a layer's latents and drops those that neither it nor a later layer reads. A layer may be run again. Returns
    /// the latents as a cache would have kept them.
    fn put(&mut self, layer: usize, latent: Tensor<3>) -> Tensor<3> {
        let latent = match self.codecs.get(&layer) {
            Some(codec) => codec.rounded(latent),
            None => latent,
        };
        let last_reader = &self.last_reader;
        self.kept.retain(|earlier, _| last_reader[earlier] >= layer);
        if last_reader.contains_key(&layer) {
            self.kept.insert(layer, latent.clone());
        }
        latent
    }
}

impl Memory<'static> {
    /// For one pass without a cache through the layers of `config`; also where a caller holds one block at a time, one
    /// memory a batch of sequences.
    pub fn of_pass(config: &DecoderConfig) -> Self {
        Memory::Pass(PassLatents::new(config))
    }
}

impl Memory<'_> {
    /// Stores a layer's keys and values of new tokens and returns those of all that it may see, with the first one's token.
    ///
    /// # Shapes
    /// - `k`, `v`: `[batch, n_kv_heads, t_q, d_head]` → `[batch, n_kv_heads, t_kv − first, d_head]`
    pub(crate) fn keys_values(
        &mut self,
        layer: usize,
        past: usize,
        k: Tensor<4>,
        v: Tensor<4>,
    ) -> (Tensor<4>, Tensor<4>, usize) {
        match self {
            Memory::Pass(pass) => {
                let dtype = pass.dtype.float();
                (rounded(k, dtype), rounded(v, dtype), 0)
            }
            Memory::Cache(cache) => match &mut cache.layers[layer] {
                LayerCache::Dense(cache) => cache.append(past, k, v),
                LayerCache::Latent(_) => wrong_cache(layer),
            },
        }
    }

    /// Stores a layer's latents of new tokens.
    ///
    /// # Shapes
    /// - `latent`: `[batch, t_q, width]`
    pub(crate) fn store(&mut self, layer: usize, past: usize, latent: Tensor<3>) {
        match self {
            Memory::Pass(pass) => {
                pass.put(layer, latent);
            }
            Memory::Cache(cache) => match &mut cache.layers[layer] {
                LayerCache::Latent(cache) => cache.append(past, latent),
                LayerCache::Dense(_) => wrong_cache(layer),
            },
        }
    }

    /// The first token whose latents a layer keeps.
    pub(crate) fn first(&self, layer: usize) -> usize {
        match self {
            Memory::Pass(_) => 0,
            Memory::Cache(cache) => match &cache.layers[layer] {
                LayerCache::Latent(cache) => cache.first(),
                LayerCache::Dense(_) => wrong_cache(layer),
            },
        }
    }

    /// Stores a layer's latents of new tokens and returns those of all that it keeps.
    ///
    /// # Shapes
    /// - `latent`: `[batch, t_q, width]` → `[batch, kept, width]`
    pub(crate) fn append(&mut self, layer: usize, past: usize, latent: Tensor<3>) -> Tensor<3> {
        match self {
            Memory::Pass(pass) => pass.put(layer, latent),
            Memory::Cache(_) => {
                let end = past + latent.dims()[1];
                self.store(layer, past, latent);
                self.latents(layer, self.first(layer)..end)
            }
        }
    }

    /// The latents of some tokens, of this layer or an earlier one, as they are kept. A pass without a cache keeps those of
    /// earlier layers only.
    ///
    /// # Shapes
    /// - `[batch, tokens, width]` of that layer
    pub(crate) fn latents(&self, layer: usize, tokens: Range<usize>) -> Tensor<3> {
        self.kept(layer, tokens).numbers()
    }

    /// [`latents`](Self::latents) in the type in which they are kept.
    pub(crate) fn kept(&self, layer: usize, tokens: Range<usize>) -> Kept<'_> {
        match self {
            Memory::Pass(pass) => match pass.kept.get(&layer) {
                Some(latent) => Kept::Float(latent.clone().narrow(1, tokens.start, tokens.len())),
                None => panic!("the latents of layer {layer} were not kept: the pass is of another decoder"),
            },
            Memory::Cache(cache) => match &cache.layers[layer] {
                LayerCache::Latent(cache) => cache.tokens(tokens),
                LayerCache::Dense(_) => wrong_cache(layer),
            },
        }
    }
}

fn wrong_cache(layer: usize) -> ! {
    panic!("layer {layer}: the cache was made for another decoder")
}
