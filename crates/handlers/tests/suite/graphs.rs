//! Converted graphs of every kind, and donors deep enough for them.

use burn::tensor::{Device, Tensor};
use handlers::Model;
use mla_core::decoder::{AttentionKind, LatentConfig, LatentWidth, LayerConfig};
use mla_core::{DecoderConfig, Slot, SourceError, WeightSource};

/// A twin whose layers repeat: as many as a group, a window and a kept layer need.
pub struct Deep<'a> {
    model: &'a Model,
    config: DecoderConfig,
}

impl<'a> Deep<'a> {
    /// Layers of the deep donor.
    pub const LAYERS: usize = 6;

    pub fn new(model: &'a Model) -> Self {
        let mut config = model.config().clone();
        config.layers = config.layers.iter().cycle().take(Self::LAYERS).cloned().collect();
        Self { model, config }
    }

    fn original(&self, slot: Slot) -> Slot {
        match slot {
            Slot::Layer(layer, slot) => Slot::Layer(layer % self.model.config().n_layers(), slot),
            other => other,
        }
    }
}

impl WeightSource for Deep<'_> {
    fn config(&self) -> &DecoderConfig {
        &self.config
    }

    fn matrix(&self, slot: Slot, device: &Device) -> Result<Tensor<2>, SourceError> {
        self.model.matrix(self.original(slot), device)
    }

    fn vector(&self, slot: Slot, device: &Device) -> Result<Tensor<1>, SourceError> {
        self.model.vector(self.original(slot), device)
    }

    fn rows(&self, slot: Slot, rows: &[u32], device: &Device) -> Result<Tensor<2>, SourceError> {
        self.model.rows(self.original(slot), rows, device)
    }
}

/// Every kind of converted graph over a donor, by name.
pub fn graphs(donor: &DecoderConfig) -> Vec<(&'static str, DecoderConfig)> {
    vec![
        ("joint", joint(donor)),
        ("cascade", cascade(donor, 2, |_| false)),
        ("cascade with kept layers", cascade(donor, 2, |layer| layer % 4 == 1)),
        ("groups", groups(donor, 2)),
        ("groups with cross terms", reading(groups(donor, 3), 3)),
    ]
}

/// One latent for keys and values, of a width of its own in each layer.
pub fn joint(donor: &DecoderConfig) -> DecoderConfig {
    over(donor, |layer| Some(LatentConfig::alone(layer, LatentWidth::Joint { d_latent: 9 + layer })))
}

/// Layers that read those of a window before them, with widths that differ; the fourth has one latent for both.
pub fn cascade(donor: &DecoderConfig, window: usize, kept: impl Fn(usize) -> bool) -> DecoderConfig {
    let width = |layer| match layer {
        3 => LatentWidth::Joint { d_latent: 7 },
        _ => LatentWidth::Split { d_latent_k: 3 + layer, d_latent_v: 8 - layer },
    };
    let latent = |layer| (!kept(layer)).then(|| LatentConfig::alone(layer, width(layer)));
    reading(over(donor, latent), window)
}

/// Groups of neighbours that share one `W_up`; every second group has one latent for keys and values.
pub fn groups(donor: &DecoderConfig, size: usize) -> DecoderConfig {
    over(donor, |layer| {
        let leader = layer - layer % size;
        let width = match leader / size % 2 {
            0 => LatentWidth::Split { d_latent_k: 5, d_latent_v: 6 },
            _ => LatentWidth::Joint { d_latent: 10 },
        };
        Some(LatentConfig { up_of: leader, ..LatentConfig::alone(layer, width) })
    })
}

/// The same graph with cross terms over a window.
pub fn reading(mut config: DecoderConfig, window: usize) -> DecoderConfig {
    for (layer, place) in config.layers.iter_mut().enumerate() {
        if let AttentionKind::Latent(latent) = &mut place.attention {
            latent.reads_from = Some(layer.saturating_sub(window));
        }
    }
    config
}

fn over(donor: &DecoderConfig, latent: impl Fn(usize) -> Option<LatentConfig>) -> DecoderConfig {
    let attention = |layer| latent(layer).map_or(AttentionKind::Grouped, AttentionKind::Latent);
    let layer =
        |(layer, place): (usize, &LayerConfig)| LayerConfig { attention: attention(layer), ..place.clone() };
    DecoderConfig { layers: donor.layers.iter().enumerate().map(layer).collect(), ..donor.clone() }
}
