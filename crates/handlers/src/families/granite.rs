//! Granite 3: LLaMA with multipliers on the embedding, the scores, what a block adds, and the logits.

use mla_core::DecoderConfig;
use mla_core::decoder::Biases;

use super::skeleton::{LLAMA, attention_bias, skeleton};
use super::table;
use crate::config_json::ConfigJson;
use crate::error::Error;
use crate::registry::ModelHandler;
use crate::spec::TensorSpec;

/// Granite 3 (IBM 2024).
pub struct Granite;

impl ModelHandler for Granite {
    fn model_types(&self) -> &[&str] {
        &["granite"]
    }

    fn config(&self, json: &ConfigJson) -> Result<DecoderConfig, Error> {
        let mut config = skeleton(json, &LLAMA)?;
        config.biases = Biases { mlp: json.flag_or("mlp_bias", false)?, ..attention_bias(json, false)? };
        config.scales.embedding = json.positive_or("embedding_multiplier", 1.0)?;
        config.scales.residual = json.positive_or("residual_multiplier", 1.0)?;
        config.scales.logits = 1.0 / json.positive_or("logits_scaling", 1.0)?;
        let scale = json.positive_or("attention_multiplier", 1.0)?;
        for layer in &mut config.layers {
            layer.scores.scale = scale;
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
