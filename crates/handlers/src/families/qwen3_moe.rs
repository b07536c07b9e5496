//! Qwen3-MoE: Qwen3 with experts on most layers.

use mla_core::DecoderConfig;
use mla_core::decoder::{LayerConfig, MlpConfig, MlpKind, QkNorm};

use super::mixtral::experts;
use super::qwen2::QWEN2;
use super::skeleton::{Defaults, LayerType, activation, attention_bias, set_windows, skeleton};
use super::table;
use crate::config_json::ConfigJson;
use crate::error::Error;
use crate::registry::ModelHandler;
use crate::spec::TensorSpec;

/// Qwen3-30B-A3B and kin (Yang et al. 2025).
pub struct Qwen3Moe;

const QWEN3_MOE: Defaults = Defaults { n_kv_heads: Some(4), ..QWEN2 };

impl ModelHandler for Qwen3Moe {
    fn model_types(&self) -> &[&str] {
        &["qwen3_moe"]
    }

    fn config(&self, json: &ConfigJson) -> Result<DecoderConfig, Error> {
        let mut config = skeleton(json, &QWEN3_MOE)?;
        config.biases = attention_bias(json, false)?;
        if json.flag_or("use_sliding_window", false)? {
            let types = vec![LayerType::Sliding; config.n_layers()];
            set_windows(&mut config, &types, json.size_or("sliding_window", Some(4096))?);
        }
        let (n_experts, top_k) = experts(json, [128, 8], config.n_layers())?;
        let activation = activation(json, "hidden_act", "silu")?;
        let renormalised = json.flag_or("norm_topk_prob", false)?;
        let kind = MlpKind::Experts { activation, n_experts, top_k, renormalised };
        let sparse = MlpConfig { kind, d_ff: json.size_or_none("moe_intermediate_size")?.unwrap_or(768) };
        let dense = json.numbers("mlp_only_layers")?.unwrap_or_default();
        let step = json.size_or_none("decoder_sparse_step")?.unwrap_or(1);
        for (place, layer) in config.layers.iter_mut().enumerate() {
            layer.qk_norm = Some(QkNorm::Head);
            let is_dense = dense.contains(&(place as f64)) || !(place + 1).is_multiple_of(step);
            *layer = LayerConfig { mlp: if is_dense { layer.mlp } else { sparse }, ..layer.clone() };
        }
        Ok(config)
    }

    fn tensors(&self, config: &DecoderConfig) -> Vec<TensorSpec> {
        table::with_layers(config, |layer| {
            let experts = table::experts(config, layer, "mlp", ["gate_proj", "up_proj", "down_proj"]);
            let dense = table::mlp(config, layer);
            [table::norms(config, layer), table::attention(config, layer), dense, experts].concat()
        })
    }

    fn is_buffer(&self, key: &str) -> bool {
        table::is_buffer(key)
    }
}
