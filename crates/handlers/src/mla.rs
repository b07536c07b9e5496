//! What a converted folder adds to its donor's: the `mla` section of `config.json` and the latent tensors' names.

use mla_core::decoder::AttentionKind;
use mla_core::{DecoderConfig, LayerSlot, Part, Slot};
use serde::{Deserialize, Serialize};

use crate::config_json::ConfigJson;
use crate::error::Error;
use crate::spec::TensorSpec;

/// The `mla` section of `config.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MlaSection {
    /// Layout of this section; readers refuse one they do not know.
    pub version: u32,
    /// How the factors were found: `separate`, …
    pub method: String,
    /// The metric they minimise: `mse`, …
    pub objective: String,
    /// One entry a layer; `null` for a layer that keeps its original attention.
    pub layers: Vec<Option<LayerRanks>>,
    /// Whether the original `W_k` and `W_v` are stored too.
    #[serde(default)]
    pub store_original_weights: bool,
}

/// Latent widths of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRanks {
    /// Latent numbers a token for keys.
    pub d_latent_k: usize,
    /// Latent numbers a token for values.
    pub d_latent_v: usize,
}

impl MlaSection {
    /// The layout this version writes.
    pub const VERSION: u32 = 1;

    /// Reads the section, if the configuration has one.
    ///
    /// # Errors
    /// When it is malformed, of a later version, or does not fit the graph.
    pub fn read(json: &ConfigJson, config: &DecoderConfig) -> Result<Option<Self>, Error> {
        let Some(value) = json.get("mla") else { return Ok(None) };
        let bad = |expected: String| json.bad("mla", expected, value);
        let section: Self =
            serde_json::from_value(value.clone()).map_err(|e| bad(format!("a valid section ({e})")))?;
        if section.version != Self::VERSION {
            return Err(bad(format!("version {}, which this shrink reads", Self::VERSION)));
        }
        if section.layers.len() != config.n_layers() {
            return Err(bad(format!("{} layers, as the model has", config.n_layers())));
        }
        let fits = |rank: usize| (1..=config.d_kv()).contains(&rank);
        if section.layers.iter().flatten().any(|layer| !fits(layer.d_latent_k) || !fits(layer.d_latent_v)) {
            return Err(bad(format!("latent widths from 1 to d_kv = {}", config.d_kv())));
        }
        Ok(Some(section))
    }

    /// The donor's graph with this section's attention.
    pub fn apply(&self, mut config: DecoderConfig) -> DecoderConfig {
        for (layer, ranks) in config.layers.iter_mut().zip(&self.layers) {
            if let Some(LayerRanks { d_latent_k, d_latent_v }) = *ranks {
                layer.attention = AttentionKind::Latent { d_latent_k, d_latent_v };
            }
        }
        config
    }

    /// The tensors of the converted folder, from those of the donor.
    ///
    /// A latent layer's `W_k` and `W_v` give way to `….mla.w_down_k`, `w_up_k`, `w_down_v`, `w_up_v`, all
    /// `[d_out, d_in]`. Where they were part of a fused tensor, `W_q` moves to `….mla.w_q`; fused biases stay.
    pub fn tensors(&self, donor: &[TensorSpec], config: &DecoderConfig) -> Vec<TensorSpec> {
        let (d_model, d_kv) = (config.d_model, config.d_kv());
        let mut specs = Vec::with_capacity(donor.len());
        for spec in donor {
            let Slot::Layer(layer, slot) = spec.slot else {
                specs.push(spec.clone());
                continue;
            };
            let Some(ranks) = self.layers[layer] else {
                specs.push(spec.clone());
                continue;
            };
            let matrix = |name: &str, slot, rows, cols| {
                TensorSpec::matrix(
                    format!("{}.mla.{name}", module_of(&spec.key)),
                    Slot::Layer(layer, slot),
                    rows,
                    cols,
                )
            };
            match slot {
                LayerSlot::Key(Part::Weight) => {
                    specs.push(matrix("w_down_k", LayerSlot::DownKey, ranks.d_latent_k, d_model));
                    specs.push(matrix("w_up_k", LayerSlot::UpKey, d_kv, ranks.d_latent_k));
                    if self.store_original_weights {
                        specs.push(matrix("w_k", slot, d_kv, d_model));
                    }
                }
                LayerSlot::Value(Part::Weight) => {
                    specs.push(matrix("w_down_v", LayerSlot::DownValue, ranks.d_latent_v, d_model));
                    specs.push(matrix("w_up_v", LayerSlot::UpValue, d_kv, ranks.d_latent_v));
                    if self.store_original_weights {
                        specs.push(matrix("w_v", slot, d_kv, d_model));
                    }
                }
                LayerSlot::Query(Part::Weight) if spec.outputs.is_some() => {
                    specs.push(matrix("w_q", slot, config.n_heads * config.d_head, d_model));
                }
                _ => specs.push(spec.clone()),
            }
        }
        specs
    }
}

/// The attention module of a projection: `model.layers.3.self_attn` of `model.layers.3.self_attn.k_proj.weight`.
fn module_of(key: &str) -> &str {
    let projection = key.rsplit_once('.').map_or(key, |(projection, _)| projection);
    projection.rsplit_once('.').map_or(projection, |(module, _)| module)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_projections_module_is_what_stands_before_its_name() {
        assert_eq!(module_of("model.layers.3.self_attn.k_proj.weight"), "model.layers.3.self_attn");
        assert_eq!(module_of("h.0.attn.c_attn.weight"), "h.0.attn");
        assert_eq!(module_of("weight"), "weight");
    }
}
