//! Telling what a configuration is before a handler reads it.

use std::fmt;

use serde_json::Value;

use crate::config_json::ConfigJson;
use crate::error::Error;

/// Model types that were trained with Multi-Head Latent Attention.
const LATENT: [&str; 18] = [
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "deepseek_mtp",
    "kimi_k2",
    "kimi_k25",
    "kimi_k3",
    "kimi_linear",
    "longcat_flash",
    "longcat_flash_ngram",
    "glm4_moe_lite",
    "glm4_moe_lite_mtp",
    "glm_moe_dsa",
    "youtu",
    "minicpm3",
    "mistral4",
    "pangu_ultra_moe",
    "pangu_ultra_moe_mtp",
];
/// Class names of the same, where the type does not tell.
const LATENT_CLASSES: [&str; 6] =
    ["DeepseekV2", "DeepseekV3", "MistralLarge3", "Mistral4", "LongcatFlash", "MiniCPM3"];

/// Types whose layers are of full attention only now and then.
const HYBRID: [&str; 25] = [
    "qwen3_next",
    "qwen3_5",
    "qwen3_5_text",
    "qwen3_5_moe",
    "qwen3_5_moe_text",
    "granitemoehybrid",
    "jamba",
    "bamba",
    "falcon_h1",
    "nemotron_h",
    "lfm2",
    "lfm2_moe",
    "lfm2_vl",
    "zamba",
    "zamba2",
    "recurrent_gemma",
    "griffin",
    "minimax",
    "minimax_m1",
    "minimax_text_01",
    "olmo_hybrid",
    "plamo2",
    "hymba",
    "phi4flash",
    "stripedhyena",
];
const RECURRENT: [&str; 12] = [
    "mamba",
    "mamba2",
    "falcon_mamba",
    "rwkv",
    "rwkv5",
    "rwkv6",
    "rwkv7",
    "xlstm",
    "retnet",
    "gla",
    "gated_deltanet",
    "hgrn2",
];
const ENCODER_DECODER: [&str; 22] = [
    "t5",
    "mt5",
    "umt5",
    "longt5",
    "t5gemma",
    "t5gemma2",
    "switch_transformers",
    "bart",
    "mbart",
    "pegasus",
    "marian",
    "m2m_100",
    "nllb-moe",
    "led",
    "blenderbot",
    "prophetnet",
    "whisper",
    "moonshine",
    "speech_to_text",
    "encoder-decoder",
    "vision-encoder-decoder",
    "seamless_m4t",
];
const ENCODER: [&str; 22] = [
    "bert",
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "distilbert",
    "albert",
    "electra",
    "deberta",
    "deberta-v2",
    "modernbert",
    "eurobert",
    "mpnet",
    "nomic_bert",
    "longformer",
    "ernie",
    "vit",
    "clip",
    "siglip",
    "siglip2",
    "wav2vec2",
    "hubert",
];

/// Where the language model of a larger one is described.
const NESTED: [&str; 4] = ["text_config", "language_config", "llm_config", "thinker_config"];

/// Why a model of a known type has no cache that a conversion could make smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsuited {
    /// Most layers keep a state of fixed size, some keys and values.
    Hybrid,
    /// No layer keeps keys and values.
    Recurrent,
    /// Keys and values are those of a text that another half of the model has read.
    EncoderDecoder,
    /// The whole text is read at once, and nothing is kept.
    Encoder,
}

impl Unsuited {
    /// What the user can do about it, or why nothing.
    pub(crate) fn hint(self) -> &'static str {
        match self {
            Unsuited::Hybrid => {
                "only its full-attention layers have a cache to shrink; shrink converts models whose every layer has one"
            }
            Unsuited::Recurrent => {
                "its memory has a fixed size already: there are no keys and values to shrink"
            }
            Unsuited::EncoderDecoder => {
                "shrink converts decoder-only models: this one has no KV cache that grows with the whole text"
            }
            Unsuited::Encoder => {
                "it reads a text at once and continues none, so it keeps no KV cache; shrink converts decoder-only models"
            }
        }
    }
}

impl fmt::Display for Unsuited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unsuited::Hybrid => {
                "mixes full attention with layers of linear attention, convolution or a state space"
            }
            Unsuited::Recurrent => "is recurrent and has no attention",
            Unsuited::EncoderDecoder => "is an encoder-decoder",
            Unsuited::Encoder => "is an encoder",
        })
    }
}

/// The model type in `config.json`.
///
/// # Errors
/// When the field is missing or no text.
pub(crate) fn model_type(config: &ConfigJson) -> Result<String, Error> {
    let model_type = config.text_or("model_type", "")?.to_owned();
    match model_type.is_empty() {
        // What is latent by its fields is told even so.
        true => refuse_latent(config, "", false).and(Err(config.missing("model_type"))),
        false => Ok(model_type),
    }
}

/// Refuses what is no model to convert, by name and reason.
///
/// A family with a handler (`is_known`) is taken at its word, unless its fields say that it is latent.
///
/// # Errors
/// When the model was born with latent attention, has no full attention in every layer, or is no decoder alone.
pub(crate) fn refuse(config: &ConfigJson, model_type: &str, is_known: bool) -> Result<(), Error> {
    refuse_latent(config, model_type, is_known)?;
    if is_known {
        return Ok(());
    }
    let models = language_models(config);
    match models.iter().find_map(|model| Some((model.text_or("model_type", "").ok()?, unsuited(model)?))) {
        Some((model_type, kind)) => {
            Err(Error::Unsuited { path: config.path().into(), model_type: model_type.into(), kind })
        }
        None => Ok(()),
    }
}

fn refuse_latent(config: &ConfigJson, model_type: &str, is_known: bool) -> Result<(), Error> {
    let models = language_models(config);
    let rank = models.iter().find_map(|model| model.get("kv_lora_rank").and_then(Value::as_u64));
    if rank.is_none() && (is_known || !is_native_mla(config)) {
        return Ok(());
    }
    let mut latent = models.iter().filter_map(|model| model.text_or("model_type", "").ok());
    let model_type = latent.rfind(|name| LATENT.contains(name)).unwrap_or(model_type).into();
    Err(Error::NativeMla { path: config.path().into(), model_type, kv_lora_rank: rank })
}

/// Whether the model was trained with Multi-Head Latent Attention (DeepSeek V2, V3 and kin).
pub fn is_native_mla(config: &ConfigJson) -> bool {
    language_models(config).iter().any(|model| {
        let classes = model.get("architectures").and_then(Value::as_array);
        let mut classes = classes.into_iter().flatten().filter_map(Value::as_str);
        model.get("kv_lora_rank").is_some()
            || model.text_or("model_type", "").is_ok_and(|name| LATENT.contains(&name))
            || classes.any(|name| LATENT_CLASSES.iter().any(|start| name.starts_with(start)))
    })
}

/// The configuration and those of the language models in it.
fn language_models(config: &ConfigJson) -> Vec<ConfigJson> {
    let mut models = vec![config.clone()];
    let mut next = 0;
    // A thinker has a text model in turn; deeper ones are nobody's.
    while next < models.len() && models.len() < 8 {
        let nested = NESTED.iter().filter_map(|name| models[next].object(name).ok().flatten());
        let nested: Vec<ConfigJson> = nested.collect();
        models.extend(nested);
        next += 1;
    }
    models
}

/// Why a configuration of no known family describes nothing to convert: by its type, or by fields that many share.
fn unsuited(config: &ConfigJson) -> Option<Unsuited> {
    let name = config.text_or("model_type", "").ok()?;
    let layers = layer_kinds(config);
    let is_full = |kind: &&str| ["attention", "full_attention", "sliding_attention"].contains(kind);
    // Granite 4 has models of this type without a single Mamba layer.
    let all_full = !layers.is_empty() && layers.iter().all(is_full);
    let states = ["mamba", "linear_attention", "recurrent", "conv", "lightning_attention"];
    if HYBRID.contains(&name) && !all_full || layers.iter().any(|kind| states.contains(kind)) {
        return Some(Unsuited::Hybrid);
    }
    if RECURRENT.contains(&name) {
        return Some(Unsuited::Recurrent);
    }
    if ENCODER_DECODER.contains(&name) || config.get("is_encoder_decoder") == Some(&Value::Bool(true)) {
        return Some(Unsuited::EncoderDecoder);
    }
    ENCODER.contains(&name).then_some(Unsuited::Encoder)
}

/// What each layer is, where the configuration lists it.
fn layer_kinds(config: &ConfigJson) -> Vec<&str> {
    let lists = ["layer_types", "layers_block_type", "block_types"].iter();
    let list = lists.filter_map(|field| config.get(field)?.as_array()).next();
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}
