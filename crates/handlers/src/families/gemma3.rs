//! Gemma 3: Gemma 2 with a norm on q and k in place of the bounds, and five sliding layers to a full one, each kind with
//! a rotary embedding of its own.

use mla_core::DecoderConfig;
use mla_core::decoder::{PositionKind, QkNorm};

use super::gemma2::{GEMMA, make_gemma};
use super::rope::{RopeDefaults, context, rope_of_kind};
use super::skeleton::{Defaults, LayerType, layer_types, set_windows, sizes, without_rope};
use super::table;
use crate::config_json::ConfigJson;
use crate::error::Error;
use crate::registry::ModelHandler;
use crate::spec::TensorSpec;

/// Gemma 3 (Kamath et al. 2025), as a text model or as the text half (`text_config`) of one that sees. Of the latter the
/// vision tower is not used.
pub struct Gemma3;

const GEMMA3: Defaults = Defaults { vocab_size: Some(262_208), max_positions: 131_072, ..GEMMA };

impl ModelHandler for Gemma3 {
    fn model_types(&self) -> &[&str] {
        &["gemma3_text", "gemma3"]
    }

    fn config(&self, json: &ConfigJson) -> Result<DecoderConfig, Error> {
        let text = json.object("text_config")?;
        let json = text.as_ref().unwrap_or(json);
        let sizes = sizes(json, &GEMMA3)?;
        let mut config = without_rope(json, &GEMMA3, sizes)?;
        let pattern = json.size_or_none("sliding_window_pattern")?.unwrap_or(6);
        let usual = |layer: usize| {
            if (layer + 1).is_multiple_of(pattern) { LayerType::Full } else { LayerType::Sliding }
        };
        let types = layer_types(json, config.n_layers(), usual)?;
        set_windows(&mut config, &types, json.size_or("sliding_window", Some(4096))?);
        let global = RopeDefaults::of(sizes.d_head, 1e6, sizes.max_positions);
        let local = RopeDefaults { theta: 1e4, theta_field: "rope_local_base_freq", ..global };
        let scaling = json.object("rope_scaling")?;
        let global = rope_of_kind(json, "full_attention", scaling.as_ref(), global)?;
        let local = rope_of_kind(json, "sliding_attention", None, local)?;
        config.max_positions = context(&global, sizes.max_positions);
        config.position = PositionKind::Rope(vec![global, local]);
        for (layer, kind) in config.layers.iter_mut().zip(&types) {
            layer.qk_norm = Some(QkNorm::Head);
            layer.rope = Some(usize::from(*kind == LayerType::Sliding));
        }
        make_gemma(json, &mut config, [None, None])?;
        // Read, saved and never used by the reference implementation.
        config.layers.iter_mut().for_each(|layer| layer.scores.softcap = None);
        Ok(config)
    }

    fn tensors(&self, config: &DecoderConfig) -> Vec<TensorSpec> {
        let mut specs = table::tensors(config);
        for spec in &mut specs {
            spec.key = spec.key.strip_prefix("model.").unwrap_or(&spec.key).to_owned();
        }
        specs
    }

    fn prefixes(&self) -> &[&str] {
        &["model.", "language_model.model.", "model.language_model.", "language_model.", ""]
    }

    fn is_buffer(&self, key: &str) -> bool {
        table::is_buffer(key) || key.ends_with(".lm_head.weight")
    }
}
