//! Qwen2 and Qwen2.5: LLaMA with biases on q, k and v, and a window on the upper layers of some.

use mla_core::DecoderConfig;
use mla_core::decoder::Biases;
use serde_json::Value;

use super::llama;
use crate::config_json::ConfigJson;
use crate::error::Error;
use crate::registry::ModelHandler;
use crate::spec::TensorSpec;

/// Qwen2 (Yang et al. 2024).
pub struct Qwen2;

impl ModelHandler for Qwen2 {
    fn model_types(&self) -> &[&str] {
        &["qwen2"]
    }

    fn config(&self, json: &ConfigJson) -> Result<DecoderConfig, Error> {
        let mut config = llama::skeleton(json)?;
        config.biases = Biases { qkv: true, output: false, mlp: false };
        if !json.flag_or("use_sliding_window", false)? {
            return Ok(config);
        }
        let window = json.size_or_none("sliding_window")?;
        match json.get("layer_types") {
            Some(Value::Array(types)) => {
                for (layer, kind) in config.layers.iter_mut().zip(types) {
                    layer.window = window.filter(|_| kind == "sliding_attention");
                }
            }
            Some(other) => return Err(json.bad("layer_types", "a list with an entry a layer", other)),
            None => {
                let first = json.get("max_window_layers").and_then(Value::as_u64).unwrap_or(28);
                llama::set_window(&mut config, window, first as usize);
            }
        }
        Ok(config)
    }

    fn tensors(&self, config: &DecoderConfig) -> Vec<TensorSpec> {
        llama::tensors(config)
    }

    fn is_buffer(&self, key: &str) -> bool {
        llama::is_buffer(key)
    }
}
