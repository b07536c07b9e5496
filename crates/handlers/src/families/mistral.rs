//! Mistral: LLaMA with a sliding window on every layer.

use mla_core::DecoderConfig;

use super::skeleton::{Defaults, LLAMA, LayerType, set_windows, skeleton};
use super::table;
use crate::config_json::ConfigJson;
use crate::error::Error;
use crate::registry::ModelHandler;
use crate::spec::TensorSpec;

/// Mistral 7B, Mistral Small and kin (Jiang et al. 2023). Without `sliding_window` the window is 4096; `null` means none.
pub struct Mistral;

/// Mistral's defaults, and Ministral's.
pub(super) const MISTRAL: Defaults = Defaults { n_kv_heads: Some(8), max_positions: 131_072, ..LLAMA };

impl ModelHandler for Mistral {
    fn model_types(&self) -> &[&str] {
        &["mistral"]
    }

    fn config(&self, json: &ConfigJson) -> Result<DecoderConfig, Error> {
        let mut config = skeleton(json, &MISTRAL)?;
        let types = vec![LayerType::Sliding; config.n_layers()];
        set_windows(&mut config, &types, json.size_or("sliding_window", Some(4096))?);
        Ok(config)
    }

    fn tensors(&self, config: &DecoderConfig) -> Vec<TensorSpec> {
        table::tensors(config)
    }

    fn is_buffer(&self, key: &str) -> bool {
        table::is_buffer(key)
    }
}
