//! Mistral 7B and kin: LLaMA with a sliding window on every layer.

use mla_core::DecoderConfig;

use super::llama;
use crate::config_json::ConfigJson;
use crate::error::Error;
use crate::registry::ModelHandler;
use crate::spec::TensorSpec;

/// Mistral (Jiang et al. 2023). `sliding_window: null` means none.
pub struct Mistral;

impl ModelHandler for Mistral {
    fn model_types(&self) -> &[&str] {
        &["mistral"]
    }

    fn config(&self, json: &ConfigJson) -> Result<DecoderConfig, Error> {
        let mut config = llama::skeleton(json)?;
        llama::set_window(&mut config, json.size_or_none("sliding_window")?, 0);
        Ok(config)
    }

    fn tensors(&self, config: &DecoderConfig) -> Vec<TensorSpec> {
        llama::tensors(config)
    }

    fn is_buffer(&self, key: &str) -> bool {
        llama::is_buffer(key)
    }
}
