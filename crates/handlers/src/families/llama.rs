//! LLaMA 2, 3 and 3.x; the skeleton that Mistral, Mixtral and Qwen2 share.

use mla_core::attention::{RopeConfig, RopeScaling};
use mla_core::decoder::{
    Activation, AttentionKind, Biases, HeadKind, LayerConfig, MlpKind, NormKind, PositionKind,
};
use mla_core::{CacheDtype, DecoderConfig, LayerSlot, Part, Slot};

use crate::config_json::ConfigJson;
use crate::error::Error;
use crate::registry::ModelHandler;
use crate::spec::TensorSpec;

/// LLaMA 2, 3, 3.1, 3.2 and everything saved as `llama` (SmolLM2, …).
pub struct Llama;

impl ModelHandler for Llama {
    fn model_types(&self) -> &[&str] {
        &["llama"]
    }

    fn config(&self, json: &ConfigJson) -> Result<DecoderConfig, Error> {
        let mut config = skeleton(json)?;
        let attention = json.flag_or("attention_bias", false)?;
        config.biases = Biases { qkv: attention, output: attention, mlp: json.flag_or("mlp_bias", false)? };
        Ok(config)
    }

    fn tensors(&self, config: &DecoderConfig) -> Vec<TensorSpec> {
        tensors(config)
    }

    fn is_buffer(&self, key: &str) -> bool {
        is_buffer(key)
    }
}

/// Names the weight and the bias of one affine map or norm.
pub(super) type PartSlot = fn(Part) -> LayerSlot;

/// Heads together are never wider than this; with at most 10 000 layers, no count of cached numbers can overflow.
pub(super) const MAX_WIDTH: usize = 1 << 24;

/// What all LLaMA-like configurations have in common: pre-norm RMSNorm, rotary positions, a gated MLP, no biases, no
/// sliding window.
pub(super) fn skeleton(json: &ConfigJson) -> Result<DecoderConfig, Error> {
    let d_model = json.size("hidden_size")?;
    let n_heads = json.size("num_attention_heads")?;
    let n_kv_heads = json.size_or_none("num_key_value_heads")?.unwrap_or(n_heads);
    let d_head = json.size_or_none("head_dim")?.unwrap_or(d_model / n_heads);
    let bad = |field: &str, expected: String| {
        json.bad(field, expected, json.get(field).unwrap_or(&serde_json::Value::Null))
    };
    if !n_heads.is_multiple_of(n_kv_heads) {
        return Err(bad("num_key_value_heads", format!("a divisor of num_attention_heads = {n_heads}")));
    }
    if d_head == 0 || !d_head.is_multiple_of(2) {
        return Err(bad("head_dim", "an even number (rotary pairs)".into()));
    }
    if n_heads * d_head > MAX_WIDTH {
        return Err(bad("head_dim", format!("n_heads · d_head of at most {MAX_WIDTH}")));
    }
    let max_positions = json.size_or_none("max_position_embeddings")?.unwrap_or(2048);
    let rope = rope(json, max_positions)?;
    let stretch = match rope.scaling {
        RopeScaling::Dynamic { factor, .. } => factor,
        _ => 1.0,
    };
    let plain = LayerConfig { window: None, attention: AttentionKind::Grouped };
    Ok(DecoderConfig {
        d_model,
        n_heads,
        n_kv_heads,
        d_head,
        d_ff: json.size("intermediate_size")?,
        vocab_size: json.size("vocab_size")?,
        max_positions: (max_positions as f64 * stretch) as usize,
        norm: NormKind::Rms,
        norm_eps: json.positive_or("rms_norm_eps", 1e-6)?,
        position: PositionKind::Rope(rope),
        mlp: MlpKind::Gated(activation(json, "hidden_act", "silu")?),
        biases: Biases { qkv: false, output: false, mlp: false },
        head: match json.flag_or("tie_word_embeddings", false)? {
            true => HeadKind::Tied,
            false => HeadKind::Own,
        },
        cache_dtype: CacheDtype::F32,
        layers: vec![plain; json.count("num_hidden_layers", 10_000)?],
    })
}

/// The nonlinearity named in a configuration.
pub(super) fn activation(json: &ConfigJson, field: &str, default: &str) -> Result<Activation, Error> {
    match json.text_or(field, default)? {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        other => Err(json.bad(field, "silu, gelu, gelu_new or relu", &other.into())),
    }
}

/// Reads `rope_theta` and `rope_scaling`, or transformers 5's `rope_parameters`.
fn rope(json: &ConfigJson, max_positions: usize) -> Result<RopeConfig, Error> {
    let parameters = json.object("rope_parameters")?;
    let theta = match &parameters {
        Some(parameters) => {
            parameters.positive_or("rope_theta", json.positive_or("rope_theta", 10_000.0)?)?
        }
        None => json.positive_or("rope_theta", 10_000.0)?,
    };
    let Some(scaling) = parameters.or(json.object("rope_scaling")?) else {
        return Ok(RopeConfig { theta, scaling: RopeScaling::None });
    };
    let kind = scaling.text_or("rope_type", scaling.text_or("type", "default")?)?;
    let original_max = || scaling.size_or_none("original_max_position_embeddings");
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: factor(&scaling)? },
        "dynamic" => RopeScaling::Dynamic { factor: factor(&scaling)?, original_max: max_positions },
        "llama3" => RopeScaling::Llama3 {
            factor: factor(&scaling)?,
            low_freq_factor: scaling.positive("low_freq_factor")?,
            high_freq_factor: scaling.positive("high_freq_factor")?,
            original_max: original_max()?.unwrap_or(max_positions),
        },
        other => {
            return Err(json.bad("rope_scaling", "type default, linear, dynamic or llama3", &other.into()));
        }
    };
    Ok(RopeConfig { theta, scaling })
}

/// How far the context is stretched.
fn factor(scaling: &ConfigJson) -> Result<f64, Error> {
    let factor = scaling.positive("factor")?;
    match factor >= 1.0 {
        true => Ok(factor),
        false => Err(scaling.bad("factor", "at least 1", &factor.into())),
    }
}

/// The windows of layers from `first` on.
pub(super) fn set_window(config: &mut DecoderConfig, window: Option<usize>, first: usize) {
    for layer in config.layers.iter_mut().skip(first) {
        layer.window = window;
    }
}

/// Every tensor of a LLaMA-like checkpoint.
pub(super) fn tensors(config: &DecoderConfig) -> Vec<TensorSpec> {
    let d_model = config.d_model;
    let mut specs = vec![
        TensorSpec::matrix("model.embed_tokens.weight", Slot::TokenEmbedding, config.vocab_size, d_model),
        TensorSpec::vector("model.norm.weight", Slot::FinalNorm(Part::Weight), d_model),
    ];
    if config.head == HeadKind::Own {
        specs.push(TensorSpec::matrix("lm_head.weight", Slot::Head, config.vocab_size, d_model));
    }
    for layer in 0..config.n_layers() {
        specs.extend(attention_tensors(config, layer));
        if let MlpKind::Gated(_) = config.mlp {
            specs.extend(mlp_tensors(config, layer));
        }
    }
    specs
}

fn attention_tensors(config: &DecoderConfig, layer: usize) -> Vec<TensorSpec> {
    let (d_model, d_q, d_kv) = (config.d_model, config.n_heads * config.d_head, config.d_kv());
    let base = format!("model.layers.{layer}");
    let norm = |name: &str, slot: PartSlot| {
        TensorSpec::vector(format!("{base}.{name}.weight"), Slot::Layer(layer, slot(Part::Weight)), d_model)
    };
    let mut specs = vec![
        norm("input_layernorm", LayerSlot::InputNorm),
        norm("post_attention_layernorm", LayerSlot::MlpNorm),
    ];
    let projections: [(&str, PartSlot, usize, usize, bool); 4] = [
        ("q_proj", LayerSlot::Query, d_q, d_model, config.biases.qkv),
        ("k_proj", LayerSlot::Key, d_kv, d_model, config.biases.qkv),
        ("v_proj", LayerSlot::Value, d_kv, d_model, config.biases.qkv),
        ("o_proj", LayerSlot::Output, d_model, d_q, config.biases.output),
    ];
    for (name, slot, d_out, d_in, biased) in projections {
        specs.extend(affine(&format!("{base}.self_attn.{name}"), layer, slot, [d_out, d_in], biased));
    }
    specs
}

fn mlp_tensors(config: &DecoderConfig, layer: usize) -> Vec<TensorSpec> {
    let (d_model, d_ff) = (config.d_model, config.d_ff);
    let projections: [(&str, PartSlot, [usize; 2]); 3] = [
        ("gate_proj", LayerSlot::Gate, [d_ff, d_model]),
        ("up_proj", LayerSlot::Up, [d_ff, d_model]),
        ("down_proj", LayerSlot::Down, [d_model, d_ff]),
    ];
    let base = format!("model.layers.{layer}.mlp");
    let specs =
        |(name, slot, shape)| affine(&format!("{base}.{name}"), layer, slot, shape, config.biases.mlp);
    projections.into_iter().flat_map(specs).collect()
}

/// `name.weight` and, where there is one, `name.bias`.
pub(super) fn affine(
    name: &str,
    layer: usize,
    slot: PartSlot,
    [d_out, d_in]: [usize; 2],
    biased: bool,
) -> Vec<TensorSpec> {
    let weight = Slot::Layer(layer, slot(Part::Weight));
    let mut specs = vec![TensorSpec::matrix(format!("{name}.weight"), weight, d_out, d_in)];
    if biased {
        specs.push(TensorSpec::vector(format!("{name}.bias"), Slot::Layer(layer, slot(Part::Bias)), d_out));
    }
    specs
}

/// Frequencies that old checkpoints carry, and a tied head written out: neither is needed.
pub(super) fn is_buffer(key: &str) -> bool {
    key.ends_with("rotary_emb.inv_freq") || key == "lm_head.weight"
}
