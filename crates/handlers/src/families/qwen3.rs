//! Qwen3: LLaMA with a norm on each head of q and k.

use mla_core::DecoderConfig;
use mla_core::decoder::QkNorm;

use super::qwen2::{QWEN2, set_upper_windows};
use super::skeleton::{Defaults, attention_bias, skeleton};
use super::table;
use crate::config_json::ConfigJson;
use crate::error::Error;
use crate::registry::ModelHandler;
use crate::spec::TensorSpec;

/// Qwen3 (Yang et al. 2025).
pub struct Qwen3;

const QWEN3: Defaults = Defaults { d_head: Some(128), ..QWEN2 };

impl ModelHandler for Qwen3 {
    fn model_types(&self) -> &[&str] {
        &["qwen3"]
    }

    fn config(&self, json: &ConfigJson) -> Result<DecoderConfig, Error> {
        let mut config = skeleton(json, &QWEN3)?;
        config.biases = attention_bias(json, false)?;
        set_upper_windows(json, &mut config)?;
        for layer in &mut config.layers {
            layer.qk_norm = Some(QkNorm::Head);
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
