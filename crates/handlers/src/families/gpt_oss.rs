//! gpt-oss: a learned sink a head, a window on every other layer, YaRN, biases everywhere, and experts in fused tensors.

use mla_core::decoder::{Activation, Biases, MlpConfig, MlpKind, PositionKind};
use mla_core::positions::{RopeConfig, RopeScaling};
use mla_core::{DecoderConfig, LayerSlot, Part, Slot};

use super::mixtral::experts;
use super::rope::{RopeDefaults, context, rope};
use super::skeleton::{
    Defaults, LLAMA, LayerType, attention_bias, layer_types, set_windows, sizes, without_rope,
};
use super::table;
use crate::config_json::ConfigJson;
use crate::error::Error;
use crate::registry::ModelHandler;
use crate::spec::TensorSpec;

/// gpt-oss (OpenAI 2025), with its experts in plain floats.
pub struct GptOss;

const GPT_OSS: Defaults = Defaults {
    n_kv_heads: Some(8),
    d_head: Some(64),
    max_positions: 131_072,
    norm_eps: 1e-5,
    theta: 150_000.0,
    ..LLAMA
};

impl ModelHandler for GptOss {
    fn model_types(&self) -> &[&str] {
        &["gpt_oss"]
    }

    fn config(&self, json: &ConfigJson) -> Result<DecoderConfig, Error> {
        let sizes = sizes(json, &GPT_OSS)?;
        let mut config = without_rope(json, &GPT_OSS, sizes)?;
        config.biases = Biases { mlp: true, ..attention_bias(json, true)? };
        let every_other = |layer| if layer % 2 == 0 { LayerType::Sliding } else { LayerType::Full };
        let types = layer_types(json, config.n_layers(), every_other)?;
        set_windows(&mut config, &types, json.size_or("sliding_window", Some(128))?);
        let said = json.get("rope_parameters").is_some() || json.get("rope_scaling").is_some();
        let found = rope(json, RopeDefaults::of(sizes.d_head, GPT_OSS.theta, sizes.max_positions))?;
        let rope = if said { found } else { usual_rope(found) };
        config.max_positions = context(&rope, sizes.max_positions);
        config.position = PositionKind::Rope(vec![rope]);
        let (n_experts, top_k) = experts(json, [128, 4], config.n_layers())?;
        let activation = Activation::ClampedSwiglu {
            gain: json.positive_or("swiglu_alpha", 1.702)?,
            limit: json.positive_or("swiglu_limit", 7.0)?,
        };
        let kind = MlpKind::Experts { activation, n_experts, top_k, renormalised: true };
        for layer in &mut config.layers {
            layer.scores.sinks = true;
            layer.mlp = MlpConfig { kind, ..layer.mlp };
        }
        Ok(config)
    }

    fn tensors(&self, config: &DecoderConfig) -> Vec<TensorSpec> {
        table::with_layers(config, |layer| {
            [table::norms(config, layer), table::attention(config, layer), experts_of(config, layer)].concat()
        })
    }

    fn is_buffer(&self, key: &str) -> bool {
        table::is_buffer(key)
    }
}

/// The YaRN of a configuration that says nothing.
fn usual_rope(plain: RopeConfig) -> RopeConfig {
    let (factor, original_max) = (32.0, 4096);
    let scaling =
        RopeScaling::Yarn { factor, original_max, beta_fast: 32.0, beta_slow: 1.0, truncate: false };
    RopeConfig { amplitude: 0.1 * f64::ln(factor) + 1.0, scaling, ..plain }
}

/// A router, and experts in two tensors of all, stored `[expert, d_in, d_out]`, gate and up in alternate outputs.
fn experts_of(config: &DecoderConfig, layer: usize) -> Vec<TensorSpec> {
    let mlp = config.layers[layer].mlp;
    let MlpKind::Experts { n_experts, .. } = mlp.kind else { return Vec::new() };
    let (d_model, d_ff) = (config.d_model, mlp.d_ff);
    let base = format!("model.layers.{layer}.mlp");
    let mut specs =
        table::affine(&format!("{base}.router"), layer, LayerSlot::Router, [n_experts, d_model], true);
    let of = |name: &str, slot: &dyn Fn(Part) -> LayerSlot, d_out, d_in| {
        let key = format!("{base}.experts.{name}");
        let weight = Slot::Layer(layer, slot(Part::Weight));
        let bias = Slot::Layer(layer, slot(Part::Bias));
        [
            TensorSpec::matrix(key.clone(), weight, d_out, d_in).transposed(),
            TensorSpec::vector(format!("{key}_bias"), bias, d_out),
        ]
    };
    for e in 0..n_experts {
        let gate = of("gate_up_proj", &|part| LayerSlot::ExpertGate(e, part), 2 * d_ff, d_model);
        let up = of("gate_up_proj", &|part| LayerSlot::ExpertUp(e, part), 2 * d_ff, d_model);
        let down = of("down_proj", &|part| LayerSlot::ExpertDown(e, part), d_model, d_ff);
        let gate = gate.map(|spec| spec.outputs_every(0..1, 2));
        let up = up.map(|spec| spec.outputs_every(1..2, 2));
        specs.extend([gate, up, down].concat().into_iter().map(|spec| spec.of_experts(e, n_experts)));
    }
    specs
}
