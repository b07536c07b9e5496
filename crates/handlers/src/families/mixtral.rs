//! Mixtral: Mistral with a sparse mixture of experts for an MLP.

use mla_core::DecoderConfig;
use mla_core::decoder::MlpKind;

use super::mistral::MISTRAL;
use super::skeleton::{Defaults, LayerType, activation, set_windows, skeleton};
use super::table;
use crate::config_json::ConfigJson;
use crate::error::Error;
use crate::registry::ModelHandler;
use crate::spec::TensorSpec;

/// Mixtral 8x7B and kin (Jiang et al. 2024).
pub struct Mixtral;

const MIXTRAL: Defaults = Defaults { norm_eps: 1e-5, theta: 1e6, ..MISTRAL };

impl ModelHandler for Mixtral {
    fn model_types(&self) -> &[&str] {
        &["mixtral"]
    }

    fn config(&self, json: &ConfigJson) -> Result<DecoderConfig, Error> {
        let mut config = skeleton(json, &MIXTRAL)?;
        let types = vec![LayerType::Sliding; config.n_layers()];
        set_windows(&mut config, &types, json.size_or_none("sliding_window")?);
        let (n_experts, top_k) = experts(json, [8, 2], config.n_layers())?;
        let activation = activation(json, "hidden_act", "silu")?;
        for layer in &mut config.layers {
            layer.mlp.kind = MlpKind::Experts { activation, n_experts, top_k, renormalised: true };
        }
        Ok(config)
    }

    fn tensors(&self, config: &DecoderConfig) -> Vec<TensorSpec> {
        table::with_layers(config, |layer| {
            let experts = table::experts(config, layer, "block_sparse_moe", ["w1", "w3", "w2"]);
            [table::norms(config, layer), table::attention(config, layer), experts].concat()
        })
    }

    fn is_buffer(&self, key: &str) -> bool {
        table::is_buffer(key)
    }
}

/// How many experts a layer has, and how many of them see a token. Bounded together with the layers: the table has three
/// entries or more an expert of each. Their number goes by two names.
pub(super) fn experts(
    json: &ConfigJson,
    [n_experts, top_k]: [usize; 2],
    n_layers: usize,
) -> Result<(usize, usize), Error> {
    let field = if json.get("num_experts").is_some() { "num_experts" } else { "num_local_experts" };
    let n_experts = match json.get(field) {
        Some(_) => json.count(field, 100_000 / n_layers)?,
        None => n_experts,
    };
    let top_k = json.size_or_none("num_experts_per_tok")?.unwrap_or(top_k);
    match top_k <= n_experts {
        true => Ok((n_experts, top_k)),
        false => Err(json.bad("num_experts_per_tok", format!("at most {n_experts}"), &top_k.into())),
    }
}
