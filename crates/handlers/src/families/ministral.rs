//! Ministral: Mistral with a window on some layers.

use mla_core::DecoderConfig;

use super::mistral::MISTRAL;
use super::skeleton::{LayerType, layer_types, set_windows, skeleton};
use super::table;
use crate::config_json::ConfigJson;
use crate::error::Error;
use crate::registry::ModelHandler;
use crate::spec::TensorSpec;

/// Ministral 8B and kin: `layer_types` says which layers slide, all of them where it is absent.
pub struct Ministral;

impl ModelHandler for Ministral {
    fn model_types(&self) -> &[&str] {
        &["ministral"]
    }

    fn config(&self, json: &ConfigJson) -> Result<DecoderConfig, Error> {
        let mut config = skeleton(json, &MISTRAL)?;
        let types = layer_types(json, config.n_layers(), |_| LayerType::Sliding)?;
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
