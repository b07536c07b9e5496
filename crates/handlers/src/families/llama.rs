//! LLaMA 2, 3 and 3.x.

use mla_core::DecoderConfig;
use mla_core::decoder::Biases;

use super::skeleton::{LLAMA, attention_bias, skeleton};
use super::table;
use crate::config_json::ConfigJson;
use crate::error::Error;
use crate::registry::ModelHandler;
use crate::spec::TensorSpec;

/// LLaMA 2, 3, 3.1, 3.2 and everything saved as `llama` (SmolLM2, …).
pub struct Llama;

impl ModelHandler for Llama {
    fn model_types(&self) -> &[&str] {
        &["llama"]
    }

    fn config(&self, json: &ConfigJson) -> Result<DecoderConfig, Error> {
        let mut config = skeleton(json, &LLAMA)?;
        config.biases = Biases { mlp: json.flag_or("mlp_bias", false)?, ..attention_bias(json, false)? };
        Ok(config)
    }

    fn tensors(&self, config: &DecoderConfig) -> Vec<TensorSpec> {
        table::tensors(config)
    }

    fn is_buffer(&self, key: &str) -> bool {
        table::is_buffer(key)
    }
}
