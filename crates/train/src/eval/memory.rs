//! Cache sizes from a configuration alone.

/// The cache of one sequence length, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSize {
    /// Tokens a sequence.
    pub tokens: usize,
    /// The donor's: `2 · n_layers · tokens · d_kv · bytes · batch`.
    pub donor_bytes: u64,
    /// This model's: what its layers keep a token, times `tokens · batch`.
    pub model_bytes: u64,
}

/// Bytes a token, of all layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBytes {
    /// The donor's.
    pub donor: usize,
    /// This model's.
    pub model: usize,
}

impl TokenBytes {
    /// Both in numbers of `element_bytes`.
    pub fn plain(config: &mla_core::DecoderConfig, element_bytes: usize) -> Self {
        Self {
            donor: 2 * config.d_kv() * config.n_layers() * element_bytes,
            model: config.cached_numbers_total() * element_bytes,
        }
    }

    /// The donor's in numbers of `element_bytes`, the model's as it is allocated.
    pub fn allocated(config: &mla_core::DecoderConfig, element_bytes: usize) -> Self {
        Self { model: config.cached_bytes_total(), ..Self::plain(config, element_bytes) }
    }
}

/// Cache sizes of sequences of several lengths.
pub fn cache_sizes(a_token: TokenBytes, lengths: &[usize], batch: usize) -> Vec<CacheSize> {
    let bytes = |a_token: usize, tokens: usize| {
        [tokens, batch].into_iter().fold(a_token as u64, |product, n| product.saturating_mul(n as u64))
    };
    let size = |&tokens: &usize| CacheSize {
        tokens,
        donor_bytes: bytes(a_token.donor, tokens),
        model_bytes: bytes(a_token.model, tokens),
    };
    lengths.iter().map(size).collect()
}
