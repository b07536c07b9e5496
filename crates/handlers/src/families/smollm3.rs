//! SmolLM3: LLaMA without a rotary embedding in every fourth layer.

use mla_core::DecoderConfig;
use mla_core::decoder::Biases;
use serde_json::Value;

use super::skeleton::{Defaults, LLAMA, LayerType, attention_bias, layer_types, set_windows, skeleton};
use super::table;
use crate::config_json::ConfigJson;
use crate::error::Error;
use crate::registry::ModelHandler;
use crate::spec::TensorSpec;

/// SmolLM3 (Bakouch et al. 2025; layers without positions: Yang et al. 2025, RoPE to NoPE and back).
pub struct SmolLm3;

const SMOLLM3: Defaults =
    Defaults { n_kv_heads: Some(4), max_positions: 32_768, theta: 2e6, tied: true, ..LLAMA };

impl ModelHandler for SmolLm3 {
    fn model_types(&self) -> &[&str] {
        &["smollm3"]
    }

    fn config(&self, json: &ConfigJson) -> Result<DecoderConfig, Error> {
        let mut config = skeleton(json, &SMOLLM3)?;
        config.biases = Biases { mlp: json.flag_or("mlp_bias", false)?, ..attention_bias(json, false)? };
        let n_layers = config.n_layers();
        let interval = json.size_or_none("no_rope_layer_interval")?.unwrap_or(4);
        let usual =
            || (1..=n_layers).map(|layer| f64::from(u8::from(!layer.is_multiple_of(interval)))).collect();
        let rotates: Vec<f64> = json.numbers("no_rope_layers")?.unwrap_or_else(usual);
        if rotates.len() < n_layers {
            let expected = format!("0 or 1 a layer, {n_layers} of them");
            return Err(json.bad(
                "no_rope_layers",
                expected,
                json.get("no_rope_layers").unwrap_or(&Value::Null),
            ));
        }
        for (layer, rotates) in config.layers.iter_mut().zip(&rotates) {
            layer.rope = layer.rope.filter(|_| *rotates != 0.0);
        }
        if json.flag_or("use_sliding_window", false)? {
            let usual =
                |layer: usize| if rotates[layer] == 0.0 { LayerType::Sliding } else { LayerType::Full };
            let types = layer_types(json, n_layers, usual)?;
            set_windows(&mut config, &types, json.size_or_none("sliding_window")?);
        }
        Ok(config)
    }

    fn tensors(&self, config: &DecoderConfig) -> Vec<TensorSpec> {
        table::tensors(config)
    }

    fn is_buffer(&self, key: &str) -> bool {
        table::is_buffer(key)
    }
}
