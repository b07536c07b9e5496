//! What a decode step of a converted model costs, by count.

use mla_core::DecoderConfig;
use mla_core::decoder::{LatentConfig, LatentWidth};

/// Multiply-adds of the attention of one decode step that sees `context` tokens: the weighted sums, and what rebuilding
/// K and V from the latents takes. Projections of the new token are left out: they do not grow with the context.
pub fn decode_cost(config: &DecoderConfig, context: usize) -> u64 {
    let (context, d_kv) = (context as u64, config.d_kv() as u64);
    let attended = 2 * (config.n_heads * config.d_head) as u64;
    let layer = |layer: usize| {
        let seen = config.layers[layer].window.map_or(context, |window| context.min(window as u64));
        // Beside a shared key all is absorbed: a query head meets what is cached, and sums up latents.
        if let Some(latent) = config.latent(layer).filter(|latent| latent.shared_key().is_some()) {
            let LatentConfig { width, .. } = latent;
            return seen * config.n_heads as u64 * (latent.d_rope() + 2 * width.total()) as u64;
        }
        let rebuilt = config.latent(layer).map_or(0, |latent| {
            let own = match latent.width {
                LatentWidth::Split { d_latent_k, d_latent_v } => d_latent_k + d_latent_v,
                LatentWidth::Joint { d_latent } => 2 * d_latent,
            };
            let cross: usize = config.cross_columns(layer).map_or(0, |columns| columns.into_iter().sum());
            (own + cross) as u64 * d_kv
        });
        context * rebuilt + seen * attended
    };
    (0..config.n_layers()).map(layer).sum()
}
