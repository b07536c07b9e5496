//! OLMo 2: norms after attention and MLP instead of before them, and one over all of q and of k.

use mla_core::DecoderConfig;
use mla_core::decoder::{BlockKind, QkNorm};

use super::skeleton::{Defaults, LLAMA, attention_bias, skeleton};
use super::table;
use crate::config_json::ConfigJson;
use crate::error::Error;
use crate::registry::ModelHandler;
use crate::spec::TensorSpec;

/// OLMo 2 (Walsh et al. 2025).
pub struct Olmo2;

/// The defaults of OLMo 2, and of OLMo 3 but for its base.
pub(super) const OLMO: Defaults = Defaults { norm_eps: 1e-5, ..LLAMA };

impl ModelHandler for Olmo2 {
    fn model_types(&self) -> &[&str] {
        &["olmo2"]
    }

    fn config(&self, json: &ConfigJson) -> Result<DecoderConfig, Error> {
        let mut config = skeleton(json, &OLMO)?;
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

/// What OLMo 2 and 3 have in common.
pub(super) fn make_olmo(json: &ConfigJson, config: &mut DecoderConfig) -> Result<(), Error> {
    config.block = BlockKind::PostNorm;
    config.biases = attention_bias(json, false)?;
    for layer in &mut config.layers {
        layer.qk_norm = Some(QkNorm::Whole);
    }
    Ok(())
}
