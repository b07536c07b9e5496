//! Phi-3 and Phi-4: LLaMA with q, k and v fused in one matrix and gate and up in another, and LongRoPE.

use mla_core::decoder::PositionKind;
use mla_core::{DecoderConfig, LayerSlot};

use super::rope::{RopeDefaults, context, rope};
use super::skeleton::{Defaults, LLAMA, LayerType, set_windows, sizes, without_rope};
use super::table;
use crate::config_json::ConfigJson;
use crate::error::Error;
use crate::registry::ModelHandler;
use crate::spec::TensorSpec;

/// Phi-3, Phi-3.5 and Phi-4, mini and medium (Abdin et al. 2024).
pub struct Phi3;

const PHI3: Defaults = Defaults { max_positions: 4096, norm_eps: 1e-5, ..LLAMA };

impl ModelHandler for Phi3 {
    fn model_types(&self) -> &[&str] {
        &["phi3"]
    }

    fn config(&self, json: &ConfigJson) -> Result<DecoderConfig, Error> {
        let sizes = sizes(json, &PHI3)?;
        let defaults = RopeDefaults {
            partial: Some(("partial_rotary_factor", 1.0)),
            trained: Some(4096),
            ..RopeDefaults::of(sizes.d_head, PHI3.theta, sizes.max_positions)
        };
        let rope = rope(json, defaults)?;
        let mut config = without_rope(json, &PHI3, sizes)?;
        config.max_positions = context(&rope, sizes.max_positions);
        config.position = PositionKind::Rope(vec![rope]);
        let types = vec![LayerType::Sliding; config.n_layers()];
        set_windows(&mut config, &types, json.size_or_none("sliding_window")?);
        Ok(config)
    }

    fn tensors(&self, config: &DecoderConfig) -> Vec<TensorSpec> {
        table::with_layers(config, |layer| layer_tensors(config, layer))
    }

    fn is_buffer(&self, key: &str) -> bool {
        table::is_buffer(key)
    }
}

fn layer_tensors(config: &DecoderConfig, layer: usize) -> Vec<TensorSpec> {
    let (d_model, d_q, d_kv) = (config.d_model, config.n_heads * config.d_head, config.d_kv());
    let d_ff = config.layers[layer].mlp.d_ff;
    let base = format!("model.layers.{layer}");
    let name = |name: &str| format!("{base}.{name}");
    let qkv: [(table::PartSlot, usize); 3] =
        [(LayerSlot::Query, d_q), (LayerSlot::Key, d_kv), (LayerSlot::Value, d_kv)];
    let gate_up: [(table::PartSlot, usize); 2] = [(LayerSlot::Gate, d_ff), (LayerSlot::Up, d_ff)];
    [
        table::norms(config, layer),
        table::fused(&name("self_attn.qkv_proj"), layer, &qkv, d_model, false),
        table::affine(&name("self_attn.o_proj"), layer, LayerSlot::Output, [d_model, d_q], false),
        table::fused(&name("mlp.gate_up_proj"), layer, &gate_up, d_model, false),
        table::affine(&name("mlp.down_proj"), layer, LayerSlot::Down, [d_model, d_ff], false),
    ]
    .concat()
}
