//! Qwen2 and Qwen2.5: LLaMA with biases on q, k and v, and a window on the upper layers of some.

use mla_core::DecoderConfig;
use mla_core::decoder::Biases;

use super::skeleton::{Defaults, LLAMA, LayerType, layer_types, set_windows, skeleton};
use super::table;
use crate::config_json::ConfigJson;
use crate::error::Error;
use crate::registry::ModelHandler;
use crate::spec::TensorSpec;

/// Qwen2 (Yang et al. 2024).
pub struct Qwen2;

/// Qwen2's defaults; of Qwen3 too but for the heads.
pub(super) const QWEN2: Defaults = Defaults { n_kv_heads: Some(32), max_positions: 32_768, ..LLAMA };

impl ModelHandler for Qwen2 {
    fn model_types(&self) -> &[&str] {
        &["qwen2"]
    }

    fn config(&self, json: &ConfigJson) -> Result<DecoderConfig, Error> {
        let mut config = skeleton(json, &QWEN2)?;
        config.biases = Biases { qkv: true, output: false, mlp: false };
        set_upper_windows(json, &mut config)?;
        Ok(config)
    }

    fn tensors(&self, config: &DecoderConfig) -> Vec<TensorSpec> {
        table::tensors(config)
    }

    fn is_buffer(&self, key: &str) -> bool {
        table::is_buffer(key)
    }
}

/// `use_sliding_window`: the layers that `layer_types` says, or those from `max_window_layers` on.
pub(super) fn set_upper_windows(json: &ConfigJson, config: &mut DecoderConfig) -> Result<(), Error> {
    if !json.flag_or("use_sliding_window", false)? {
        return Ok(());
    }
    let first = json.get("max_window_layers").and_then(serde_json::Value::as_u64).unwrap_or(28) as usize;
    let upper = |layer| if layer >= first { LayerType::Sliding } else { LayerType::Full };
    let types = layer_types(json, config.n_layers(), upper)?;
    set_windows(config, &types, json.size_or("sliding_window", Some(4096))?);
    Ok(())
}
