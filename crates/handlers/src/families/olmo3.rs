//! OLMo 3: OLMo 2 with a window on three of four layers, and YaRN on the others.

use mla_core::DecoderConfig;
use mla_core::decoder::PositionKind;

use super::olmo2::{OLMO, make_olmo};
use super::rope::{RopeDefaults, context, rope_of_kind};
use super::skeleton::{LayerType, layer_types, set_windows, sizes, without_rope};
use super::table;
use crate::config_json::ConfigJson;
use crate::error::Error;
use crate::registry::ModelHandler;
use crate::spec::TensorSpec;

/// OLMo 3 (2025).
pub struct Olmo3;

impl ModelHandler for Olmo3 {
    fn model_types(&self) -> &[&str] {
        &["olmo3"]
    }

    fn config(&self, json: &ConfigJson) -> Result<DecoderConfig, Error> {
        let sizes = sizes(json, &OLMO)?;
        let mut config = without_rope(json, &OLMO, sizes)?;
        let usual =
            |layer: usize| if (layer + 1).is_multiple_of(4) { LayerType::Full } else { LayerType::Sliding };
        let types = layer_types(json, config.n_layers(), usual)?;
        set_windows(&mut config, &types, json.size_or("sliding_window", Some(4096))?);
        let defaults = RopeDefaults::of(sizes.d_head, 500_000.0, sizes.max_positions);
        let scaling = json.object("rope_scaling")?;
        let full = rope_of_kind(json, "full_attention", scaling.as_ref(), defaults)?;
        let sliding = rope_of_kind(json, "sliding_attention", None, defaults)?;
        config.max_positions = context(&full, sizes.max_positions);
        config.position = PositionKind::Rope(vec![full, sliding]);
        for (layer, kind) in config.layers.iter_mut().zip(&types) {
            layer.rope = Some(usize::from(*kind == LayerType::Sliding));
        }
        make_olmo(json, &mut config)?;
        Ok(config)
    }

    fn tensors(&self, config: &DecoderConfig) -> Vec<TensorSpec> {
        table::tensors(config)
    }

    fn is_buffer(&self, key: &str) -> bool {
        table::is_buffer(key)
    }
}
