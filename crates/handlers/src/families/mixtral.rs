//! Mixtral: Mistral with a sparse mixture of experts for an MLP.

use mla_core::decoder::MlpKind;
use mla_core::{DecoderConfig, LayerSlot, Slot};

use super::llama;
use crate::config_json::ConfigJson;
use crate::error::Error;
use crate::registry::ModelHandler;
use crate::spec::TensorSpec;

/// Mixtral 8x7B and kin (Jiang et al. 2024).
pub struct Mixtral;

impl ModelHandler for Mixtral {
    fn model_types(&self) -> &[&str] {
        &["mixtral"]
    }

    fn config(&self, json: &ConfigJson) -> Result<DecoderConfig, Error> {
        let mut config = llama::skeleton(json)?;
        llama::set_window(&mut config, json.size_or_none("sliding_window")?, 0);
        // Bounded together with the layers: the table has three entries an expert of each.
        let n_experts = json.count("num_local_experts", 100_000 / config.n_layers())?;
        let top_k = json.size("num_experts_per_tok")?;
        if top_k > n_experts {
            return Err(json.bad("num_experts_per_tok", format!("at most {n_experts}"), &top_k.into()));
        }
        let activation = llama::activation(json, "hidden_act", "silu")?;
        config.mlp = MlpKind::Experts { activation, n_experts, top_k };
        Ok(config)
    }

    fn tensors(&self, config: &DecoderConfig) -> Vec<TensorSpec> {
        let mut specs = llama::tensors(config);
        let MlpKind::Experts { n_experts, .. } = config.mlp else { return specs };
        let (d_model, d_ff) = (config.d_model, config.d_ff);
        for layer in 0..config.n_layers() {
            let base = format!("model.layers.{layer}.block_sparse_moe");
            let matrix = |name: String, slot, d_out, d_in| {
                TensorSpec::matrix(format!("{base}.{name}.weight"), Slot::Layer(layer, slot), d_out, d_in)
            };
            specs.push(matrix("gate".into(), LayerSlot::Router, n_experts, d_model));
            for e in 0..n_experts {
                specs.push(matrix(format!("experts.{e}.w1"), LayerSlot::ExpertGate(e), d_ff, d_model));
                specs.push(matrix(format!("experts.{e}.w2"), LayerSlot::ExpertDown(e), d_model, d_ff));
                specs.push(matrix(format!("experts.{e}.w3"), LayerSlot::ExpertUp(e), d_ff, d_model));
            }
        }
        specs
    }

    fn is_buffer(&self, key: &str) -> bool {
        llama::is_buffer(key)
    }
}
