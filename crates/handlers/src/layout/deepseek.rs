//! `DeepseekV3ForCausalLM`: the layout in which other engines run one rotary key that all heads share beside a latent.
//!
//! What has to be spelled otherwise than in ours:
//!
//! - **A norm stands on the latent** (`kv_a_layernorm`), a fitted latent has none. `y = x / √(mean(x²) + ε) · w` is linear where
//!   `mean(x²)` is far below ε: the rows that make the latent are scaled so far down, by s, that no input brings it beyond a share
//!   of ε, and `w = √ε / s` scales it back. That needs a norm computed in f32 and a type with f32's range: bf16, not f16;
//! - **ε is 1e-6** everywhere: transformers' norm on the latent has it whatever the configuration says, and others take the
//!   configuration's;
//! - **pairs lie side by side** (2i, 2i + 1), as DeepSeek's weights have them;
//! - **queries are as many numbers as keys**: what reads the shared key stands behind what reads the others, and both are scaled by
//!   what engines divide scores by;
//! - the head is written out, and experts are declared that no layer has.

use std::path::Path;

use mla_core::decoder::{
    Activation, BlockKind, HeadKind, LatentWidth, MlpKind, NormKind, PositionKind, SharedKeyConfig,
};
use mla_core::positions::{RopeConfig, RopeScaling};
use mla_core::{DecoderConfig, LayerSlot, Matrix, Part, Slot, WeightSource};
use serde_json::{Map, Value, json};

use super::{Container, Encoded, FolderLayout, cast, check_finite, read};
use crate::checkpoint::Dtype;
use crate::error::Error;
use crate::model::Model;

/// ε of every norm; transformers has it on the latent whatever the configuration says.
pub(crate) const EPSILON: f64 = 1e-6;
/// The most that the mean square of a scaled latent may be, as a share of ε, whatever the input.
const LARGEST: f64 = 1e-4;
/// The field that says what the donor cached, numbers a token and layer.
pub(crate) const DONOR_NUMBERS: &str = "shrink_donor_numbers";
/// Experts that are declared, since engines ask for a number, and that no layer has.
const EXPERTS: usize = 8;

/// A converted model to write as DeepSeek's.
pub struct DeepseekPlan<'a> {
    model: &'a Model,
    /// Numbers a token of the latent, with those it is padded by.
    padded: usize,
    d_rope: usize,
    theta: f64,
    dtype: Dtype,
    gains: Dtype,
    extra: Vec<(String, Vec<u8>)>,
    max_shard_bytes: u64,
}

/// What a model of this layout is asked for.
#[derive(Clone, Debug)]
pub struct DeepseekOptions {
    /// The type of every matrix.
    pub dtype: Dtype,
    /// The type of the norms' gains.
    pub gains: Dtype,
    /// A rank that the latent is padded to with zeros, for kernels that know one only.
    pub pad_rank: Option<usize>,
    /// Further files, by name.
    pub extra: Vec<(String, Vec<u8>)>,
    /// Bytes of one shard at most.
    pub max_shard_bytes: u64,
}

impl<'a> DeepseekPlan<'a> {
    /// Checks that the layout can say what the model is.
    ///
    /// # Errors
    /// When it cannot, with the reason; when the type or the rank does not fit.
    pub fn new(model: &'a Model, options: DeepseekOptions) -> Result<Self, Error> {
        Self::named("deepseek", model, options)
    }

    /// As [`new`](Self::new), for a layout of another name that holds the same.
    pub(super) fn named(
        format: &'static str,
        model: &'a Model,
        options: DeepseekOptions,
    ) -> Result<Self, Error> {
        let config = model.config();
        let (shared, rank, rope) = fits(config).map_err(|reason| Error::Export { format, reason })?;
        if options.dtype == Dtype::F16 {
            let reason = "f16 has not the range for the scaled latent: take bf16 or f32".into();
            return Err(Error::Export { format, reason });
        }
        let padded = options.pad_rank.unwrap_or(rank);
        if padded < rank {
            let reason = format!("the latent has {rank} numbers a token, and cannot be padded to {padded}");
            return Err(Error::Export { format, reason });
        }
        let DeepseekOptions { dtype, gains, extra, max_shard_bytes, .. } = options;
        let (d_rope, theta) = (shared.d_rope(), rope.theta);
        Ok(Self { model, padded, d_rope, theta, dtype, gains, extra, max_shard_bytes })
    }

    pub(super) fn model(&self) -> &'a Model {
        self.model
    }

    /// Numbers a token of the latent, with those it is padded by.
    pub(super) fn rank(&self) -> usize {
        self.padded
    }

    /// The base of the rotary embedding.
    pub(super) fn theta(&self) -> f64 {
        self.theta
    }

    /// Numbers a token and layer that engines cache.
    pub fn cached_numbers(&self) -> usize {
        self.padded + self.d_rope
    }

    /// A tensor that is made of the model's; one of one dimension is a norm's gain.
    pub(super) fn made(
        &self,
        key: String,
        shape: Vec<usize>,
        make: impl Fn() -> Result<Vec<f32>, Error> + 'a,
    ) -> Encoded<'a> {
        let dtype = if shape.len() == 1 { self.gains } else { self.dtype };
        let (name, model) = (key.clone(), self.model);
        let bytes = Box::new(move || {
            let values = make()?;
            check_finite(model, &name, &values)?;
            cast(&name, &values, dtype)
        });
        Encoded { key, shape, dtype, bytes }
    }

    /// A slot's numbers times a factor.
    fn scaled(&self, key: String, slot: Slot, by: f64) -> Result<Encoded<'a>, Error> {
        let model = self.model;
        let shape = model.shape(slot)?;
        Ok(self.made(key, shape, move || {
            let matrix = read(model, slot)?;
            Ok(matrix.data.iter().map(|&x| if by == 1.0 { x } else { (f64::from(x) * by) as f32 }).collect())
        }))
    }

    /// A norm's gain.
    fn norm(&self, key: String, slot: impl Fn(Part) -> Slot) -> Result<Encoded<'a>, Error> {
        let (model, slot) = (self.model, slot(Part::Weight));
        let plus = gain_offset(model.config());
        let shape = model.shape(slot)?;
        Ok(self.made(key, shape, move || Ok(read(model, slot)?.data.iter().map(|x| x + plus).collect())))
    }

    fn attention(&self, layer: usize, tensors: &mut Vec<Encoded<'a>>) {
        let config = self.model.config();
        let (model, padded, d_rope) = (self.model, self.padded, self.d_rope);
        let name = |rest: &str| format!("model.layers.{layer}.self_attn.{rest}.weight");
        let heads = config.n_heads;
        let (d_model, d_head) = (config.d_model, config.d_head);
        tensors.push(self.made(name("q_proj"), vec![heads * (d_head + d_rope), d_model], move || {
            queries(model, layer, d_rope)
        }));
        let shape = vec![padded + d_rope, d_model];
        tensors.push(self.made(name("kv_a_proj_with_mqa"), shape, move || {
            let (down, scale) = (down(model, layer)?, scale(model, layer, padded)?);
            let mut rows: Vec<f32> = down.data.iter().map(|&x| (f64::from(x) * scale) as f32).collect();
            rows.resize(padded * d_model, 0.0);
            let shared = read(model, Slot::Layer(layer, LayerSlot::DownShared(Part::Weight)))?;
            for row in side_by_side(d_rope) {
                rows.extend(&shared.data[row * d_model..(row + 1) * d_model]);
            }
            Ok(rows)
        }));
        tensors.push(self.made(name("kv_a_layernorm"), vec![padded], move || {
            Ok(vec![(EPSILON.sqrt() / scale(model, layer, padded)?) as f32; padded])
        }));
        let shape = vec![heads * 2 * d_head, padded];
        tensors.push(self.made(name("kv_b_proj"), shape, move || up(model, layer, padded)));
    }

    fn config(&self) -> Map<String, Value> {
        let config = self.model.config();
        let donor = self.model.json();
        let d_ff = config.layers[0].mlp.d_ff;
        let fields = json!({
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            "vocab_size": config.vocab_size,
            "hidden_size": config.d_model,
            "intermediate_size": d_ff,
            "num_hidden_layers": config.n_layers(),
            "num_attention_heads": config.n_heads,
            "num_key_value_heads": config.n_heads,
            "kv_lora_rank": self.padded,
            "q_lora_rank": null,
            "qk_rope_head_dim": self.d_rope,
            "qk_nope_head_dim": config.d_head,
            "v_head_dim": config.d_head,
            "hidden_act": "silu",
            "max_position_embeddings": config.max_positions,
            "rms_norm_eps": EPSILON,
            "rope_theta": self.theta,
            "rope_interleave": true,
            // YaRN that scales nothing: some engines take the path of DeepSeek's own models with it, and go wrong without.
            "rope_parameters": {
                "rope_type": "yarn", "factor": 1.0, "rope_theta": self.theta,
                "original_max_position_embeddings": config.max_positions,
                "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1,
            },
            "attention_bias": false,
            "attention_dropout": 0.0,
            "tie_word_embeddings": false,
            "moe_intermediate_size": 64,
            "n_routed_experts": EXPERTS,
            "n_shared_experts": 1,
            "num_experts_per_tok": 1,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": config.n_layers(),
            "moe_layer_freq": 1,
            "routed_scaling_factor": 1.0,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "norm_topk_prob": true,
            "num_nextn_predict_layers": 0,
            "initializer_range": 0.02,
            "use_cache": true,
            "torch_dtype": self.dtype.torch_name(),
            // For the way back: what the donor cached, which the graph does not say.
            DONOR_NUMBERS: config.donor_numbers(0),
        });
        let Value::Object(mut fields) = fields else { return Map::new() };
        for token in ["bos_token_id", "eos_token_id", "pad_token_id"] {
            if let Some(value) = donor.get(token) {
                fields.insert(token.into(), value.clone());
            }
        }
        fields
    }
}

impl FolderLayout for DeepseekPlan<'_> {
    fn container(&self) -> Container {
        Container::Safetensors { config: self.config(), max_shard_bytes: self.max_shard_bytes }
    }

    fn tensors(&self) -> Result<Vec<Encoded<'_>>, Error> {
        let config = self.model.config();
        let scales = config.scales;
        let mut tensors =
            vec![self.scaled("model.embed_tokens.weight".into(), Slot::TokenEmbedding, scales.embedding)?];
        for layer in 0..config.n_layers() {
            let name = |rest: &str| format!("model.layers.{layer}.{rest}.weight");
            let slot = |slot: LayerSlot| Slot::Layer(layer, slot);
            let weight = Part::Weight;
            tensors.push(self.norm(name("input_layernorm"), |part| slot(LayerSlot::InputNorm(part)))?);
            self.attention(layer, &mut tensors);
            let more = scales.residual;
            tensors.push(self.scaled(name("self_attn.o_proj"), slot(LayerSlot::Output(weight)), more)?);
            tensors.push(self.norm(name("post_attention_layernorm"), |part| slot(LayerSlot::MlpNorm(part)))?);
            for (rest, part, by) in [
                ("mlp.gate_proj", LayerSlot::Gate(weight), 1.0),
                ("mlp.up_proj", LayerSlot::Up(weight), 1.0),
                ("mlp.down_proj", LayerSlot::Down(weight), more),
            ] {
                tensors.push(self.scaled(name(rest), slot(part), by)?);
            }
        }
        tensors.push(self.norm("model.norm.weight".into(), Slot::FinalNorm)?);
        let head = match config.head {
            HeadKind::Tied => Slot::TokenEmbedding,
            HeadKind::Own => Slot::Head,
        };
        tensors.push(self.scaled("lm_head.weight".into(), head, scales.logits)?);
        Ok(tensors)
    }

    fn extras(&self) -> &[(String, Vec<u8>)] {
        &self.extra
    }

    fn companions(&self) -> &Path {
        self.model.folder()
    }
}

/// Why the layout cannot say any conversion of a graph, whatever its latents; `None` where it can.
pub fn beyond_deepseek(config: &DecoderConfig) -> Option<String> {
    frame_fits(config).err()
}

/// What surrounds the keys and values.
fn frame_fits(config: &DecoderConfig) -> Result<(), String> {
    let not = |what: &str| format!("the layout has no {what}; shrink runs the folder as it is");
    if config.biases.qkv || config.biases.output || config.biases.mlp {
        return Err(not("biases of queries, keys and values that engines read"));
    }
    if config.norm == NormKind::Layer || config.block != BlockKind::PreNorm {
        return Err(not("norms but RMSNorm before attention and MLP"));
    }
    if config.scales.logit_softcap.is_some() {
        return Err(not("bound of the logits"));
    }
    let first = &config.layers[0];
    for place in &config.layers {
        if place.window.is_some() {
            return Err(not("sliding windows"));
        }
        if place.qk_norm.is_some() {
            return Err(not("norm of queries and keys"));
        }
        if place.scores.softcap.is_some() || place.scores.sinks {
            return Err(not("bound of scores, and no sinks"));
        }
        if place.mlp.kind != MlpKind::Gated(Activation::Silu) || place.mlp != first.mlp {
            return Err(not("MLP but the gated one with SiLU, of one width"));
        }
    }
    Ok(())
}

/// The shared key, the rank and the rotary embedding of a model that the layout can say; else the reason, and what works.
fn fits(config: &DecoderConfig) -> Result<(&SharedKeyConfig, usize, &RopeConfig), String> {
    frame_fits(config)?;
    let not = |what: &str| format!("the layout has no {what}; shrink runs the folder as it is");
    for layer in 0..config.n_layers() {
        let latent = config.latent(layer);
        if latent.and_then(|latent| latent.shared_key()).is_none() {
            return Err(format!(
                "layer {layer} has no key that all heads share: convert with --method deepseek --layout deepseek"
            ));
        }
    }
    let latent = config.latent(0).ok_or("it caches no latents")?;
    let shared = latent.shared_key().ok_or("it has no shared key")?;
    let alike = (0..config.n_layers()).all(|layer| {
        config.latent(layer).is_some_and(|other| other.keys == latent.keys && other.width == latent.width)
    });
    let series = shared.pairs.iter().copied().eq(0..shared.pairs.len());
    let PositionKind::Rope(ropes) = &config.position else { return Err(not("learned positions")) };
    let rope = ropes.get(shared.rope).ok_or("its rotary embedding is not there")?;
    let LatentWidth::Joint { d_latent } = latent.width else {
        return Err(
            "keys and values have a latent each: convert with --method deepseek --layout deepseek".into()
        );
    };
    if !(alike && series && rope.d_rotary == shared.d_rope()) {
        return Err("its layers differ in rank or in what turns: convert with --layout deepseek".into());
    }
    if rope.scaling != RopeScaling::None || rope.amplitude != 1.0 {
        return Err(not("scaled rotary embedding"));
    }
    Ok((shared, d_latent, rope))
}

/// What is added to a stored gain.
fn gain_offset(config: &DecoderConfig) -> f32 {
    if config.norm == NormKind::RmsPlusOne { 1.0 } else { 0.0 }
}

/// The places of numbers that lie in halves, pair by pair.
fn side_by_side(d_rope: usize) -> impl Iterator<Item = usize> {
    (0..d_rope / 2).flat_map(move |pair| [pair, pair + d_rope / 2])
}

fn down(model: &Model, layer: usize) -> Result<Matrix, Error> {
    read(model, Slot::Layer(layer, LayerSlot::DownJoint))
}

/// What rebuilds keys and values: `[heads, 2 d_head, padded]`, of each head its keys, then its values.
pub(super) fn up(model: &Model, layer: usize, padded: usize) -> Result<Vec<f32>, Error> {
    let config = model.config();
    let up = read(model, Slot::Layer(layer, LayerSlot::UpJoint))?;
    let (d_head, d_kv, group) = (config.d_head, config.d_kv(), config.n_heads / config.n_kv_heads);
    let mut rows = Vec::with_capacity(config.n_heads * 2 * d_head * padded);
    for head in 0..config.n_heads {
        let own = head / group * d_head;
        for row in (own..own + d_head).chain(d_kv + own..d_kv + own + d_head) {
            rows.extend(&up.data[row * up.cols..(row + 1) * up.cols]);
            rows.resize(rows.len() + padded - up.cols, 0.0);
        }
    }
    Ok(rows)
}

/// How far the rows of the latent are scaled down. What scales it back is a power of two, which every type holds exactly.
fn scale(model: &Model, layer: usize, padded: usize) -> Result<f64, Error> {
    let gain = read(model, Slot::Layer(layer, LayerSlot::InputNorm(Part::Weight)))?;
    let plus = f64::from(gain_offset(model.config()));
    let gain: Vec<f64> = gain.data.iter().map(|&x| f64::from(x) + plus).collect();
    let largest = largest_mean_square(&down(model, layer)?.data, &gain, padded);
    let back = if largest > 0.0 { (largest / LARGEST).sqrt() } else { 1.0 };
    Ok(EPSILON.sqrt() / back.log2().ceil().exp2())
}

/// The most that the mean square of `rank` latent numbers can be, whatever the input: a normed input is no longer than `√d_model`
/// before its gain g, so `‖W_d diag(g)‖² d_model / rank`.
///
/// # Shapes
/// - `down`: row-major `[.., d_model]`, `gain`: `[d_model]`
pub(crate) fn largest_mean_square(down: &[f32], gain: &[f64], rank: usize) -> f64 {
    let numbers = down.iter().zip(gain.iter().cycle());
    let square: f64 = numbers.map(|(&x, gain)| (f64::from(x) * gain).powi(2)).sum();
    square * gain.len() as f64 / rank as f64
}

/// Of each head, what the keys of the latent are scored with, then what reads the shared key: both scaled so that a score divided
/// by the root of their number is the donor's.
fn queries(model: &Model, layer: usize, d_rope: usize) -> Result<Vec<f32>, Error> {
    let config = model.config();
    let (d_head, d_model) = (config.d_head, config.d_model);
    let fix = config.layers[layer].scores.scale * ((d_head + d_rope) as f64).sqrt();
    let w_q = read(model, Slot::Layer(layer, LayerSlot::Query(Part::Weight)))?;
    let up = read(model, Slot::Layer(layer, LayerSlot::UpShared))?;
    let group = config.n_heads / config.n_kv_heads;
    let mut rows = Vec::with_capacity(config.n_heads * (d_head + d_rope) * d_model);
    let mut sum = vec![0f64; d_model];
    for head in 0..config.n_heads {
        let own = &w_q.data[head * d_head * d_model..(head + 1) * d_head * d_model];
        rows.extend(own.iter().map(|&x| (f64::from(x) * fix) as f32));
        for column in side_by_side(d_rope) {
            sum.fill(0.0);
            for (dimension, row) in own.chunks_exact(d_model).enumerate() {
                // A pair of the shared key reads one pair of a head.
                let by = f64::from(up.data[(head / group * d_head + dimension) * d_rope + column]);
                if by != 0.0 {
                    sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += by * f64::from(x));
                }
            }
            rows.extend(sum.iter().map(|&x| (x * fix) as f32));
        }
    }
    Ok(rows)
}
