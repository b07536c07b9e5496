//! Cache sizes from a configuration alone.

use mla_core::DecoderConfig;

/// The cache of one sequence length, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSize {
    /// Tokens a sequence.
    pub tokens: usize,
    /// The donor's: `2 · n_layers · tokens · d_kv · bytes · batch`.
    pub donor_bytes: u64,
    /// This model's: `Σ_layers (d_latent_k + d_latent_v) · tokens · bytes · batch`.
    pub model_bytes: u64,
}

/// Cache sizes of sequences of several lengths, `element_bytes` a number.
pub fn cache_sizes(
    config: &DecoderConfig,
    lengths: &[usize],
    batch: usize,
    element_bytes: usize,
) -> Vec<CacheSize> {
    let bytes = |numbers: usize, tokens: usize| {
        [tokens, batch, element_bytes]
            .into_iter()
            .fold(numbers as u64, |product, n| product.saturating_mul(n as u64))
    };
    let donor = 2 * config.d_kv() * config.n_layers();
    let size = |&tokens: &usize| CacheSize {
        tokens,
        donor_bytes: bytes(donor, tokens),
        model_bytes: bytes(config.cached_numbers_total(), tokens),
    };
    lengths.iter().map(size).collect()
}
