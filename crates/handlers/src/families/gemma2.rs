//! Gemma 2: norms before and after, gains of 1 + w, bounded scores and logits, a window on every other layer.

use mla_core::DecoderConfig;
use mla_core::decoder::{BlockKind, NormKind};

use super::skeleton::{Defaults, LLAMA, LayerType, attention_bias, layer_types, set_windows, skeleton};
use super::table;
use crate::config_json::ConfigJson;
use crate::error::Error;
use crate::registry::ModelHandler;
use crate::spec::TensorSpec;

/// Gemma 2 (Riviere et al. 2024).
pub struct Gemma2;

/// The defaults of Gemma 2, and of Gemma 3 but for its contexts.
pub(super) const GEMMA: Defaults = Defaults {
    n_heads: Some(8),
    n_kv_heads: Some(4),
    d_head: Some(256),
    vocab_size: Some(256_000),
    max_positions: 8192,
    tied: true,
    activation: ("hidden_activation", "gelu_pytorch_tanh"),
    ..LLAMA
};

impl ModelHandler for Gemma2 {
    fn model_types(&self) -> &[&str] {
        &["gemma2"]
    }

    fn config(&self, json: &ConfigJson) -> Result<DecoderConfig, Error> {
        let mut config = skeleton(json, &GEMMA)?;
        let every_other = |layer| if layer % 2 == 0 { LayerType::Sliding } else { LayerType::Full };
        let types = layer_types(json, config.n_layers(), every_other)?;
        set_windows(&mut config, &types, json.size_or("sliding_window", Some(4096))?);
        make_gemma(json, &mut config, [Some(50.0), Some(30.0)])?;
        Ok(config)
    }

    fn tensors(&self, config: &DecoderConfig) -> Vec<TensorSpec> {
        table::tensors(config)
    }

    fn is_buffer(&self, key: &str) -> bool {
        table::is_buffer(key)
    }
}

/// What all Gemmas have in common. `softcaps`: of scores and of logits, where `config.json` does not say; `null` is none.
pub(super) fn make_gemma(
    json: &ConfigJson,
    config: &mut DecoderConfig,
    softcaps: [Option<f64>; 2],
) -> Result<(), Error> {
    if json.flag_or("use_bidirectional_attention", false)? {
        return Err(json.bad("use_bidirectional_attention", "false", &true.into()));
    }
    let softcap =
        |field: &str, default: Option<f64>| match (json.fields().contains_key(field), json.get(field)) {
            (false, _) => Ok(default),
            (true, None) => Ok(None),
            (true, Some(_)) => json.positive(field).map(Some),
        };
    let [scores, logits] = softcaps;
    let scores = softcap("attn_logit_softcapping", scores)?;
    config.scales.logit_softcap = softcap("final_logit_softcapping", logits)?;
    config.scales.embedding = (config.d_model as f64).sqrt();
    config.block = BlockKind::Sandwich;
    config.norm = NormKind::RmsPlusOne;
    config.biases = attention_bias(json, false)?;
    let scale = json.positive_or("query_pre_attn_scalar", 256.0)?.powf(-0.5);
    for layer in &mut config.layers {
        layer.scores.scale = scale;
        layer.scores.softcap = scores;
    }
    Ok(())
}
