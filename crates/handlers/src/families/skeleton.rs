//! What LLaMA-like configurations have in common, and what each family's is where `config.json` does not say.
//!
//! Defaults are those of the family's configuration class in transformers: an absent field and one that is `null` are
//! different things.

use mla_core::decoder::{
    Activation, Biases, BlockKind, HeadKind, LayerConfig, MlpConfig, MlpKind, NormKind, PositionKind, Scales,
};
use mla_core::{CacheDtype, DecoderConfig};

use super::rope::{RopeDefaults, context, rope};
use crate::config_json::ConfigJson;
use crate::error::Error;

/// Heads together are never wider than this; with at most 10 000 layers, no count of cached numbers can overflow.
pub(super) const MAX_WIDTH: usize = 1 << 24;
/// More layers than any decoder has.
pub(super) const MAX_LAYERS: usize = 10_000;

/// A family's defaults.
#[derive(Clone, Copy, Debug)]
pub(super) struct Defaults {
    /// Query heads; `None` where `config.json` has to say.
    pub(super) n_heads: Option<usize>,
    /// Key/value heads; `None` for as many as query heads.
    pub(super) n_kv_heads: Option<usize>,
    /// Width of a head; `None` for what the heads leave of the width.
    pub(super) d_head: Option<usize>,
    /// Rows of the embedding; `None` where `config.json` has to say.
    pub(super) vocab_size: Option<usize>,
    /// The context.
    pub(super) max_positions: usize,
    /// Added to the variance inside a norm.
    pub(super) norm_eps: f64,
    /// The base of the rotary embedding.
    pub(super) theta: f64,
    /// Whether the head is the embedding.
    pub(super) tied: bool,
    /// The field that names the nonlinearity, and its default.
    pub(super) activation: (&'static str, &'static str),
}

/// LLaMA's.
pub(super) const LLAMA: Defaults = Defaults {
    n_heads: None,
    n_kv_heads: None,
    d_head: None,
    vocab_size: None,
    max_positions: 2048,
    norm_eps: 1e-6,
    theta: 10_000.0,
    tied: false,
    activation: ("hidden_act", "silu"),
};

/// Sizes that everything else is checked against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) d_model: usize,
    pub(super) n_heads: usize,
    pub(super) n_kv_heads: usize,
    pub(super) d_head: usize,
    pub(super) n_layers: usize,
    pub(super) max_positions: usize,
}

/// Reads the sizes.
pub(super) fn sizes(json: &ConfigJson, defaults: &Defaults) -> Result<Sizes, Error> {
    let required = |field, default: Option<usize>| {
        json.size_or_none(field)?.or(default).ok_or_else(|| json.missing(field))
    };
    let d_model = json.size("hidden_size")?;
    let n_heads = required("num_attention_heads", defaults.n_heads)?;
    let n_kv_heads = json.size_or("num_key_value_heads", defaults.n_kv_heads)?.unwrap_or(n_heads);
    let d_head = json.size_or("head_dim", defaults.d_head)?.unwrap_or(d_model / n_heads);
    let bad = |field: &str, expected: String, found: usize| {
        json.bad(field, expected, json.get(field).unwrap_or(&found.into()))
    };
    if !n_heads.is_multiple_of(n_kv_heads) {
        let expected = format!("a divisor of num_attention_heads = {n_heads}");
        return Err(bad("num_key_value_heads", expected, n_kv_heads));
    }
    if d_head == 0 || !d_head.is_multiple_of(2) {
        return Err(bad("head_dim", "an even number (rotary pairs)".into(), d_head));
    }
    if n_heads.saturating_mul(d_head) > MAX_WIDTH {
        return Err(bad("head_dim", format!("n_heads · d_head of at most {MAX_WIDTH}"), d_head));
    }
    let max_positions = json.size_or_none("max_position_embeddings")?.unwrap_or(defaults.max_positions);
    let n_layers = json.count("num_hidden_layers", MAX_LAYERS)?;
    Ok(Sizes { d_model, n_heads, n_kv_heads, d_head, n_layers, max_positions })
}

/// What all LLaMA-like configurations have in common: pre-norm RMSNorm, one rotary embedding, a gated MLP, no biases, no
/// sliding window.
pub(super) fn skeleton(json: &ConfigJson, defaults: &Defaults) -> Result<DecoderConfig, Error> {
    let sizes = sizes(json, defaults)?;
    let rope = rope(json, RopeDefaults::of(sizes.d_head, defaults.theta, sizes.max_positions))?;
    let mut config = without_rope(json, defaults, sizes)?;
    config.max_positions = context(&rope, sizes.max_positions);
    config.position = PositionKind::Rope(vec![rope]);
    Ok(config)
}

/// [`skeleton`] of a family whose rotary embeddings its own file reads: every layer takes the first.
pub(super) fn without_rope(
    json: &ConfigJson,
    defaults: &Defaults,
    sizes: Sizes,
) -> Result<DecoderConfig, Error> {
    let Sizes { d_model, n_heads, n_kv_heads, d_head, n_layers, max_positions } = sizes;
    let (field, default) = defaults.activation;
    let mlp = MlpConfig {
        kind: MlpKind::Gated(activation(json, field, default)?),
        d_ff: json.size("intermediate_size")?,
    };
    let vocab_size = json.size_or_none("vocab_size")?.or(defaults.vocab_size);
    Ok(DecoderConfig {
        d_model,
        n_heads,
        n_kv_heads,
        d_head,
        vocab_size: vocab_size.ok_or_else(|| json.missing("vocab_size"))?,
        max_positions,
        norm: NormKind::Rms,
        norm_eps: json.positive_or("rms_norm_eps", defaults.norm_eps)?,
        block: BlockKind::PreNorm,
        position: PositionKind::Rope(Vec::new()),
        biases: Biases { qkv: false, output: false, mlp: false },
        scales: Scales::default(),
        head: match json.flag_or("tie_word_embeddings", defaults.tied)? {
            true => HeadKind::Tied,
            false => HeadKind::Own,
        },
        cache_dtype: CacheDtype::F32,
        layers: vec![LayerConfig::plain(d_head, Some(0), mlp); n_layers],
    })
}

/// `attention_bias`: one on each of q, k, v and o.
pub(super) fn attention_bias(json: &ConfigJson, default: bool) -> Result<Biases, Error> {
    let attention = json.flag_or("attention_bias", default)?;
    Ok(Biases { qkv: attention, output: attention, mlp: false })
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

/// Which layers see a window only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LayerType {
    Full,
    Sliding,
}

/// `layer_types`, or what the family makes of its absence.
pub(super) fn layer_types(
    json: &ConfigJson,
    n_layers: usize,
    absent: impl Fn(usize) -> LayerType,
) -> Result<Vec<LayerType>, Error> {
    let Some(types) = json.texts("layer_types")? else { return Ok((0..n_layers).map(absent).collect()) };
    let bad = |expected: String| {
        json.bad("layer_types", expected, json.get("layer_types").unwrap_or(&serde_json::Value::Null))
    };
    if types.len() != n_layers {
        return Err(bad(format!("an entry a layer, {n_layers} of them")));
    }
    let parse = |name: &&str| match *name {
        // The shorter name is that of older releases.
        "full_attention" | "attention" => Ok(LayerType::Full),
        "sliding_attention" => Ok(LayerType::Sliding),
        _ => Err(bad("full_attention or sliding_attention a layer".into())),
    };
    types.iter().map(parse).collect()
}

/// Gives the sliding layers their window; a window that is absent or `null` is none.
pub(super) fn set_windows(config: &mut DecoderConfig, types: &[LayerType], window: Option<usize>) {
    for (layer, kind) in config.layers.iter_mut().zip(types) {
        layer.window = window.filter(|_| *kind == LayerType::Sliding);
    }
}
