//! DeepSeek's layout in one GGUF file, as llama.cpp's `deepseek2`.
//!
//! The tensors are those of [`DeepseekPlan`], under other names, but that what rebuilds keys and values is two of them, the keys'
//! transposed: llama.cpp absorbs both. The tokenizer goes into the file.

use std::path::Path;

use mla_core::decoder::HeadKind;
use mla_core::{DecoderConfig, WeightSource};
use serde_json::Value as Json;

use super::deepseek::{DeepseekOptions, DeepseekPlan, EPSILON, up};
use super::{Container, Encoded, FolderLayout, transpose};
use crate::checkpoint::Dtype;
use crate::error::Error;
use crate::gguf::Value;
use crate::model::Model;
use crate::tokenizer::gguf::{Ends, metadata};

/// A converted model to write as GGUF.
pub struct GgufPlan<'a> {
    deepseek: DeepseekPlan<'a>,
    metadata: Vec<(String, Value)>,
}

impl<'a> GgufPlan<'a> {
    /// Checks that llama.cpp runs what the model is, and reads its tokenizer as llama.cpp does.
    ///
    /// # Errors
    /// As [`DeepseekPlan::new`], and when llama.cpp has no tokenizer like the model's.
    pub fn new(model: &'a Model, name: &str, options: DeepseekOptions) -> Result<Self, Error> {
        let deepseek = DeepseekPlan::named("gguf", model, DeepseekOptions { gains: Dtype::F32, ..options })?;
        let config = model.config();
        let id = |field: &str| {
            model.json().get(field).and_then(Json::as_u64).and_then(|id| u32::try_from(id).ok())
        };
        let ends = Ends { bos: id("bos_token_id"), eos: &model.generation().eos, pad: id("pad_token_id") };
        let mut fields = graph(config, &deepseek, name);
        fields.extend(metadata(model.folder(), config.vocab_size, &ends)?);
        Ok(Self { deepseek, metadata: fields })
    }

    /// Numbers a token and layer that llama.cpp caches.
    pub fn cached_numbers(&self) -> usize {
        self.deepseek.cached_numbers()
    }
}

impl GgufPlan<'_> {
    /// What rebuilds keys `[heads, rank, d_head]` and values `[heads, d_head, rank]`.
    fn up(&self, layer: usize) -> [Encoded<'_>; 2] {
        let (model, rank) = (self.deepseek.model(), self.deepseek.rank());
        let (heads, d_head) = (model.config().n_heads, model.config().d_head);
        let of_heads = move |values: bool| {
            let rows = up(model, layer, rank)?;
            let parts = rows.chunks_exact(d_head * rank).skip(usize::from(values)).step_by(2);
            Ok(match values {
                true => parts.flatten().copied().collect(),
                false => parts.flat_map(|keys| transpose(keys, d_head, rank)).collect(),
            })
        };
        let name = |part: &str| format!("blk.{layer}.attn_{part}_b.weight");
        [
            self.deepseek.made(name("k"), vec![heads, rank, d_head], move || of_heads(false)),
            self.deepseek.made(name("v"), vec![heads, d_head, rank], move || of_heads(true)),
        ]
    }
}

impl FolderLayout for GgufPlan<'_> {
    fn container(&self) -> Container {
        Container::Gguf { metadata: self.metadata.clone() }
    }

    fn tensors(&self) -> Result<Vec<Encoded<'_>>, Error> {
        let config = self.deepseek.model().config();
        let own_head = config.head == HeadKind::Own || config.scales.embedding != config.scales.logits;
        let mut tensors = Vec::new();
        for tensor in self.deepseek.tensors()? {
            match place(&tensor.key) {
                Place::Head if !own_head => (),
                Place::Up(layer) => tensors.extend(self.up(layer)),
                Place::Head => tensors.push(Encoded { key: "output.weight".into(), ..tensor }),
                Place::Other(key) => tensors.push(Encoded { key, ..tensor }),
            }
        }
        Ok(tensors)
    }

    fn extras(&self) -> &[(String, Vec<u8>)] {
        self.deepseek.extras()
    }

    fn companions(&self) -> &Path {
        self.deepseek.companions()
    }
}

/// Where a tensor of the layout goes.
enum Place {
    /// It rebuilds keys and values of a layer.
    Up(usize),
    /// The head; a tied one is left out.
    Head,
    /// As it is, under this name.
    Other(String),
}

fn place(key: &str) -> Place {
    let stem = key.trim_end_matches(".weight");
    let inner = stem.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let other = |name: String| Place::Other(name + ".weight");
    match inner.and_then(|(layer, part)| Some((layer.parse().ok()?, part))) {
        Some((layer, "self_attn.kv_b_proj")) => Place::Up(layer),
        Some((layer, part)) => other(format!("blk.{layer}.{}", part_of_layer(part))),
        None => match stem {
            "lm_head" => Place::Head,
            "model.embed_tokens" => other("token_embd".into()),
            "model.norm" => other("output_norm".into()),
            _ => other(stem.into()),
        },
    }
}

fn part_of_layer(part: &str) -> &str {
    match part {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        _ => match part.rsplit('.').next().unwrap_or(part) {
            "q_proj" => "attn_q",
            "kv_a_proj_with_mqa" => "attn_kv_a_mqa",
            "kv_a_layernorm" => "attn_kv_a_norm",
            "o_proj" => "attn_output",
            "gate_proj" => "ffn_gate",
            "up_proj" => "ffn_up",
            "down_proj" => "ffn_down",
            other => other,
        },
    }
}

/// The metadata that describe the graph. A layer's own keys and values are those of heads that are rebuilt (`_mla`); what is cached
/// is one key and value for all of them.
fn graph(config: &DecoderConfig, plan: &DeepseekPlan<'_>, name: &str) -> Vec<(String, Value)> {
    let (rank, d_rope) = (plan.rank(), plan.cached_numbers() - plan.rank());
    let general = [("architecture", "deepseek2".into()), ("type", "model".into()), ("name", name.into())];
    let of_model = [
        ("block_count", config.n_layers()),
        ("context_length", config.max_positions),
        ("embedding_length", config.d_model),
        ("feed_forward_length", config.layers[0].mlp.d_ff),
        ("vocab_size", config.vocab_size),
        ("rope.dimension_count", d_rope),
        ("attention.head_count", config.n_heads),
        ("attention.head_count_kv", 1),
        ("attention.q_lora_rank", 0),
        ("attention.kv_lora_rank", rank),
        ("attention.key_length", rank + d_rope),
        ("attention.value_length", rank),
        ("attention.key_length_mla", config.d_head + d_rope),
        ("attention.value_length_mla", config.d_head),
        // No layer has experts, and the architecture asks for their numbers.
        ("leading_dense_block_count", config.n_layers()),
        ("expert_count", 0),
        ("expert_used_count", 0),
        ("expert_shared_count", 0),
        ("expert_feed_forward_length", config.layers[0].mlp.d_ff),
    ];
    let numbers =
        [("rope.freq_base", plan.theta() as f32), ("attention.layer_norm_rms_epsilon", EPSILON as f32)];
    let general = general.into_iter().map(|(key, value)| (format!("general.{key}"), value));
    let sizes = of_model.into_iter().map(|(key, size)| (key, Value::size(size)));
    let numbers = numbers.into_iter().map(|(key, number)| (key, Value::F32(number)));
    general.chain(sizes.chain(numbers).map(|(key, value)| (format!("deepseek2.{key}"), value))).collect()
}
