//! What a conversion is asked for.

use mla_core::DecoderConfig;
use mla_core::decoder::AttentionKind;

use crate::error::Error;

/// How wide the latents shall be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Width {
    /// `d_latent = d_kv / ratio`, rounded down, at least 1.
    Ratio(f64),
    /// This many latent numbers for K and as many for V.
    Fixed(usize),
}

/// A conversion, checked against the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Latent width of K and of V in every layer.
    pub d_latent: usize,
}

impl Plan {
    /// Checks a wish against a model.
    ///
    /// # Errors
    /// When the width is out of range or the model caches latents already.
    pub fn new(config: &DecoderConfig, width: Width) -> Result<Self, Error> {
        let latent = |l: &mla_core::decoder::LayerConfig| matches!(l.attention, AttentionKind::Latent { .. });
        if let Some(layer) = config.layers.iter().position(latent) {
            return Err(Error::AlreadyLatent { layer });
        }
        let d_kv = config.d_kv();
        let d_latent = match width {
            // Written so that NaN is refused too.
            Width::Ratio(found) if !(1.0..=d_kv as f64).contains(&found) => {
                return Err(Error::Ratio { found, d_kv });
            }
            Width::Ratio(ratio) => (d_kv as f64 / ratio) as usize,
            Width::Fixed(found) if !(1..=d_kv).contains(&found) => {
                return Err(Error::LatentWidth { found, d_kv });
            }
            Width::Fixed(d_latent) => d_latent,
        };
        Ok(Self { d_latent: d_latent.max(1) })
    }

    /// The converted model's graph.
    pub fn apply(&self, config: &DecoderConfig) -> DecoderConfig {
        let mut config = config.clone();
        for layer in &mut config.layers {
            layer.attention = AttentionKind::Latent { d_latent_k: self.d_latent, d_latent_v: self.d_latent };
        }
        config
    }
}
