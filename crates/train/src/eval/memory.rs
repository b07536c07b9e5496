//! Cache sizes from a configuration alone.

use mla_core::DecoderConfig;

/// The cache of one sequence length, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSize {
    /// Tokens a sequence.
    pub tokens: usize,
    /// The donor's: `2 · n_layers · tokens · d_kv · bytes · batch`, of a layer with a window no more than its tokens.
    pub donor_bytes: u64,
    /// This model's: what its layers keep a token, times the tokens that each keeps, times the batch.
    pub model_bytes: u64,
}

/// Bytes a token, of all layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenBytes {
    /// The donor's.
    pub donor: usize,
    /// This model's.
    pub model: usize,
    layers: Vec<LayerBytes>,
}

/// Bytes a token of one layer, and how many tokens it keeps at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LayerBytes {
    donor: (usize, Option<usize>),
    model: (usize, Option<usize>),
}

impl TokenBytes {
    /// Both in numbers of `element_bytes`.
    pub fn plain(config: &DecoderConfig, element_bytes: usize) -> Self {
        Self::of(config, element_bytes, |layer| config.cached_numbers(layer) * element_bytes)
    }

    /// The donor's in numbers of `element_bytes`, the model's as it is allocated.
    pub fn allocated(config: &DecoderConfig, element_bytes: usize) -> Self {
        Self::of(config, element_bytes, |layer| config.cached_bytes(layer))
    }

    fn of(config: &DecoderConfig, element_bytes: usize, model: impl Fn(usize) -> usize) -> Self {
        let retention = config.retention();
        let of_layer = |layer: usize| LayerBytes {
            donor: (config.donor_numbers(layer) * element_bytes, config.layers[layer].window),
            model: (model(layer), retention[layer]),
        };
        let layers: Vec<_> = (0..config.n_layers()).map(of_layer).collect();
        Self {
            donor: layers.iter().map(|layer| layer.donor.0).sum(),
            model: layers.iter().map(|layer| layer.model.0).sum(),
            layers,
        }
    }
}

/// Cache sizes of sequences of several lengths.
pub fn cache_sizes(a_token: &TokenBytes, lengths: &[usize], batch: usize) -> Vec<CacheSize> {
    let bytes = |of: fn(&LayerBytes) -> (usize, Option<usize>), tokens: usize| {
        let of_layer = |layer: &LayerBytes| {
            let (bytes, window) = of(layer);
            let kept = window.map_or(tokens, |window| window.min(tokens));
            [kept, batch].into_iter().fold(bytes as u64, |product, n| product.saturating_mul(n as u64))
        };
        a_token.layers.iter().map(of_layer).fold(0, u64::saturating_add)
    };
    let size = |&tokens: &usize| CacheSize {
        tokens,
        donor_bytes: bytes(|layer| layer.donor, tokens),
        model_bytes: bytes(|layer| layer.model, tokens),
    };
    lengths.iter().map(size).collect()
}
