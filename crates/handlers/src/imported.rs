//! A folder of DeepSeek's layout, tuned elsewhere, brought into ours.
//!
//! What a run moved in such a folder it moved apart: each query head's part of `kv_b_proj`, and what its queries read the shared key
//! with. So the graph is one with as many K and V heads as query heads, each as wide as its queries: `d_head = nope + rope`. Its
//! `W_up` has rows of 0 where a key of the latent has no rotated part and where values are narrower, and its shared key is read
//! by the last `rope` numbers of each query as they are. Nothing is approximated but the norm on the latent, which
//! [the export](crate::DeepseekPlan) made linear and which has to be so still:
//! `x / √(mean(x²) + ε) · w = x · w / √ε` where `mean(x²)` is far below ε.
//!
//! `W_up` then has no orthonormal columns. The caller, who has linear algebra, gives a factorisation: `W_up W_down = Q (R W_down)`.

use std::path::Path;

use mla_core::decoder::{LatentWidth, SharedKeyConfig};
use mla_core::{DecoderConfig, LayerSlot, Matrix, Part, Slot};
use serde_json::{Map, Value, json};

use crate::checkpoint::{Checkpoint, Dtype};
use crate::config_json::ConfigJson;
use crate::error::Error;
use crate::layout::deepseek::{DONOR_NUMBERS, EPSILON, largest_mean_square};
use crate::layout::{Container, Encoded, FolderLayout, cast, stored_in};
use crate::mla::{LayerRanks, MlaSection, SharedRope, identity};
use crate::model::check;
use crate::registry::Registry;
use crate::spec::TensorSpec;
use crate::tokenizer::Tokenizer;

/// The most that the mean square of a latent may be, as a share of ε: twice the relative error of taking the norm for linear.
const LARGEST: f64 = 1e-2;

/// Splits `W_up` into one with orthonormal columns and what goes to `W_down`: `[Q, R]`.
pub type Split<'a> = dyn Fn(&Matrix) -> [Matrix; 2] + 'a;

/// A folder to bring in.
pub struct Imported {
    json: ConfigJson,
    checkpoint: Checkpoint,
    sizes: Sizes,
    config: DecoderConfig,
    section: MlaSection,
    specs: Vec<TensorSpec>,
    /// Of each layer, the numbers of the latent that are not 0 whatever is read: padding is left out.
    live: Vec<Vec<usize>>,
}

#[derive(Clone, Copy)]
struct Sizes {
    d_model: usize,
    n_layers: usize,
    heads: usize,
    nope: usize,
    rope: usize,
    values: usize,
    rank: usize,
    d_ff: usize,
    vocab: usize,
}

impl Sizes {
    /// Width of a head of our graph.
    fn head(&self) -> usize {
        self.nope + self.rope
    }

    fn read(json: &ConfigJson) -> Result<Self, Error> {
        Ok(Self {
            d_model: json.size("hidden_size")?,
            n_layers: json.size("num_hidden_layers")?,
            heads: json.size("num_attention_heads")?,
            nope: json.size("qk_nope_head_dim")?,
            rope: json.size("qk_rope_head_dim")?,
            values: json.size("v_head_dim")?,
            rank: json.size("kv_lora_rank")?,
            d_ff: json.size("intermediate_size")?,
            vocab: json.size("vocab_size")?,
        })
    }
}

impl Imported {
    /// Opens a folder and checks that it says what `shrink export --format deepseek` can say.
    ///
    /// # Errors
    /// When it says anything else, with the reason; when a tensor is missing, has another shape or has no place in the layout; when the
    /// norm on the latent is not linear any more.
    pub fn open(folder: &Path, registry: &Registry) -> Result<Self, Error> {
        let json = ConfigJson::read(&folder.join("config.json"))?;
        let kind = json.text_or("model_type", "")?;
        if kind != "deepseek_v3" {
            return Err(refuse(folder, format!("its model_type is {kind:?}, not \"deepseek_v3\"")));
        }
        let sizes = Sizes::read(&json)?;
        let theta = fits(&json, &sizes).map_err(|reason| refuse(folder, reason))?;
        let donor = ConfigJson::from_fields(json.path(), donor(&json, &sizes, theta));
        let handler = registry.handler(&donor)?;
        let graph = handler.config(&donor)?;
        // A run that saves its model alone leaves a folder that nobody can talk to.
        Tokenizer::open(folder)?;
        let checkpoint = Checkpoint::open(folder)?;
        let theirs = sizes.specs(&json)?;
        check(&theirs, &checkpoint)?;
        let unknown = checkpoint.keys().find(|key| theirs.iter().all(|spec| spec.key != **key));
        if let Some(key) = unknown.filter(|key| !key.ends_with("rotary_emb.inv_freq")) {
            let reason =
                format!("{key} has no place in it (an adapter is merged into the model before it is saved)");
            return Err(refuse(folder, reason));
        }
        let mut live = Vec::with_capacity(sizes.n_layers);
        for layer in 0..sizes.n_layers {
            live.push(live_numbers(&checkpoint, &sizes, layer)?);
        }
        let section = section(&graph, &sizes, theta, &live, json.size_or_none(DONOR_NUMBERS)?);
        let config = section.apply(graph);
        let specs = section.tensors(&handler.tensors(&config.donor()), &config);
        Ok(Self { json: donor, checkpoint, sizes, config, section, specs, live })
    }

    /// The graph that it becomes.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The folder to write.
    pub fn plan<'a>(
        &'a self,
        split: &'a Split<'a>,
        extra: Vec<(String, Vec<u8>)>,
        max_shard_bytes: u64,
    ) -> ImportPlan<'a> {
        ImportPlan { from: self, split, extra, max_shard_bytes }
    }

    fn values(&self, key: &str) -> Result<Matrix, Error> {
        matrix(&self.checkpoint, key)
    }

    /// `W_up` `[2 · d_kv, live]` and `W_down` `[live, d_model]` of a layer, without the norm between them.
    fn factors(&self, layer: usize) -> Result<[Matrix; 2], Error> {
        let (sizes, live) = (&self.sizes, &self.live[layer]);
        let name = |part: &str| format!("model.layers.{layer}.self_attn.{part}.weight");
        let (read, gain, made) = (
            self.values(&name("kv_a_proj_with_mqa"))?,
            self.values(&name("kv_a_layernorm"))?,
            self.values(&name("kv_b_proj"))?,
        );
        let mut down = Vec::with_capacity(live.len() * sizes.d_model);
        for &number in live {
            let back = f64::from(gain.data[number]) / EPSILON.sqrt();
            let row = &read.data[number * sizes.d_model..(number + 1) * sizes.d_model];
            down.extend(row.iter().map(|&x| (f64::from(x) * back) as f32));
        }
        let down = Matrix::new(live.len(), sizes.d_model, down);
        let d_kv = sizes.heads * sizes.head();
        let mut up = Matrix::new(2 * d_kv, live.len(), vec![0.0; 2 * d_kv * live.len()]);
        for head in 0..sizes.heads {
            let theirs = head * (sizes.nope + sizes.values);
            let keys = (0..sizes.nope).map(|i| (head * sizes.head() + i, theirs + i));
            let values = (0..sizes.values).map(|i| (d_kv + head * sizes.head() + i, theirs + sizes.nope + i));
            for (ours, theirs) in keys.chain(values) {
                let from = &made.data[theirs * sizes.rank..(theirs + 1) * sizes.rank];
                let to = &mut up.data[ours * live.len()..(ours + 1) * live.len()];
                to.iter_mut().zip(live).for_each(|(to, &number)| *to = from[number]);
            }
        }
        Ok([up, down])
    }

    /// Rows that make the shared key, in halves, `[d_rope, d_model]`.
    fn down_shared(&self, layer: usize) -> Result<Vec<f32>, Error> {
        let read = self.values(&format!("model.layers.{layer}.self_attn.kv_a_proj_with_mqa.weight"))?;
        let Sizes { rank, rope, d_model, .. } = self.sizes;
        let row = |number: usize| &read.data[(rank + number) * d_model..(rank + number + 1) * d_model];
        Ok(halves(rope).flat_map(row).copied().collect())
    }

    /// The last numbers of each head's queries read the shared key as they are: `[d_kv, d_rope]`.
    fn up_shared(&self) -> Vec<f32> {
        let Sizes { heads, nope, rope, .. } = self.sizes;
        let mut up = vec![0.0; heads * self.sizes.head() * rope];
        for head in 0..heads {
            for (column, number) in halves(rope).enumerate() {
                up[(head * self.sizes.head() + nope + number) * rope + column] = 1.0;
            }
        }
        up
    }

    /// `W_o` with columns of 0 where our values are wider: `[d_model, heads · head]`.
    fn output(&self, key: &str) -> Result<Vec<f32>, Error> {
        let theirs = self.values(key)?;
        let mut rows = Vec::with_capacity(self.sizes.d_model * self.sizes.heads * self.sizes.head());
        for head in theirs.data.chunks_exact(self.sizes.values) {
            rows.extend(head);
            rows.resize(rows.len() + self.sizes.head() - self.sizes.values, 0.0);
        }
        Ok(rows)
    }
}

/// An imported folder to write.
pub struct ImportPlan<'a> {
    from: &'a Imported,
    split: &'a Split<'a>,
    extra: Vec<(String, Vec<u8>)>,
    max_shard_bytes: u64,
}

impl<'a> ImportPlan<'a> {
    fn tensor(&self, spec: &TensorSpec) -> Result<Encoded<'a>, Error> {
        let (from, split) = (self.from, self.split);
        let (key, shape) = (spec.key.clone(), spec.shape.clone());
        let of_factor = |dtype: Dtype, make: Box<dyn Fn() -> Result<Vec<f32>, Error> + 'a>| {
            let name = key.clone();
            let bytes = Box::new(move || cast(&name, &make()?, dtype));
            Encoded { key: key.clone(), shape: shape.clone(), dtype, bytes }
        };
        let dtype_of = |key: &str| {
            let tensor = from.checkpoint.get(key).unwrap_or_else(|| panic!("{key}"));
            from.checkpoint.dtype(key, tensor)
        };
        Ok(match spec.slot {
            Slot::Layer(layer, LayerSlot::UpJoint) => of_factor(
                Dtype::F32,
                Box::new(move || {
                    let [up, _] = from.factors(layer)?;
                    let [q, _] = split(&up);
                    Ok(q.data)
                }),
            ),
            Slot::Layer(layer, LayerSlot::DownJoint) => of_factor(
                Dtype::F32,
                Box::new(move || {
                    let [up, down] = from.factors(layer)?;
                    let [_, r] = split(&up);
                    Ok(product(&r, &down))
                }),
            ),
            Slot::Layer(layer, LayerSlot::DownShared(_)) => {
                of_factor(Dtype::F32, Box::new(move || from.down_shared(layer)))
            }
            Slot::Layer(_, LayerSlot::UpShared) => of_factor(Dtype::F32, Box::new(|| Ok(from.up_shared()))),
            Slot::Layer(_, LayerSlot::Output(Part::Weight)) => {
                let name = key.clone();
                of_factor(dtype_of(&key)?, Box::new(move || from.output(&name)))
            }
            _ => {
                let (name, dtype) = (key.clone(), dtype_of(&key)?);
                let bytes = Box::new(move || stored_in(&from.checkpoint, &name, dtype));
                Encoded { key: key.clone(), shape: shape.clone(), dtype, bytes }
            }
        })
    }
}

impl FolderLayout for ImportPlan<'_> {
    fn container(&self) -> Container {
        let mut fields = self.from.json.fields().clone();
        let mut section = json!(self.from.section);
        identity::take_name(&mut fields, &mut section);
        fields.insert("mla".into(), section);
        Container::Safetensors { config: fields, max_shard_bytes: self.max_shard_bytes }
    }

    fn tensors(&self) -> Result<Vec<Encoded<'_>>, Error> {
        self.from.specs.iter().map(|spec| self.tensor(spec)).collect()
    }

    fn extras(&self) -> &[(String, Vec<u8>)] {
        &self.extra
    }

    fn code(&self) -> &[(&str, &str)] {
        &identity::CODE
    }

    fn companions(&self) -> &Path {
        self.from.checkpoint.folder()
    }
}

fn refuse(folder: &Path, reason: String) -> Error {
    Error::Import { path: folder.into(), reason }
}

/// The base of the rotary embedding of a folder that can be brought in; else the reason why not.
fn fits(json: &ConfigJson, sizes: &Sizes) -> Result<f64, String> {
    let is = |field: &str, value: Value| json.get(field).is_none_or(|found| *found == value);
    let dense = json.get("first_k_dense_replace").and_then(Value::as_u64);
    if json.get("q_lora_rank").is_some_and(|rank| !rank.is_null()) {
        return Err("its queries are compressed, too".into());
    }
    if dense.is_none_or(|dense| dense < sizes.n_layers as u64) {
        return Err("it has experts".into());
    }
    if !(is("attention_bias", json!(false)) && is("hidden_act", json!("silu"))) {
        return Err("it has biases, or another MLP than SiLU's".into());
    }
    if sizes.values > sizes.head() || sizes.rope % 2 == 1 || sizes.rank > 2 * sizes.heads * sizes.head() {
        return Err("its heads have sizes that no conversion has".into());
    }
    let rope = json.get("rope_parameters").or_else(|| json.get("rope_scaling"));
    let of_rope = |field: &str| rope.and_then(|rope| rope.get(field)).filter(|value| !value.is_null());
    let kind = of_rope("rope_type").or_else(|| of_rope("type")).and_then(Value::as_str).unwrap_or("default");
    let factor = of_rope("factor").and_then(Value::as_f64).unwrap_or(1.0);
    if !(kind == "default" || kind == "yarn" && factor == 1.0) || !is("rope_interleave", json!(true)) {
        return Err("its rotary embedding is scaled, or its pairs do not lie side by side".into());
    }
    let theta = of_rope("rope_theta").or_else(|| json.get("rope_theta")).and_then(Value::as_f64);
    theta.filter(|theta| theta.is_finite() && *theta > 0.0).ok_or_else(|| "it has no rope_theta".into())
}

/// The configuration of a graph with a K and V head for each query head, as wide as those.
fn donor(json: &ConfigJson, sizes: &Sizes, theta: f64) -> Map<String, Value> {
    let mut fields = Map::new();
    for (field, value) in [
        ("model_type", json!("llama")),
        ("architectures", json!(["LlamaForCausalLM"])),
        ("hidden_act", json!("silu")),
        ("num_key_value_heads", sizes.heads.into()),
        ("head_dim", sizes.head().into()),
        ("rope_theta", theta.into()),
        ("attention_bias", false.into()),
        ("mlp_bias", false.into()),
    ] {
        fields.insert(field.into(), value);
    }
    for field in [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
        "torch_dtype",
        "dtype",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    ] {
        if let Some(value) = json.get(field) {
            fields.insert(field.into(), value.clone());
        }
    }
    fields
}

fn section(
    graph: &DecoderConfig,
    sizes: &Sizes,
    theta: f64,
    live: &[Vec<usize>],
    donor_numbers: Option<usize>,
) -> MlaSection {
    let mut section = MlaSection::from_config("deepseek", "imported", graph, false);
    section.donor_numbers = donor_numbers;
    section.shared_rope = Some(SharedRope { theta, d_rotary: sizes.rope });
    let shared = SharedKeyConfig { rope: graph.ropes().len(), pairs: (0..sizes.rope / 2).collect() };
    section.layers = live
        .iter()
        .map(|live| {
            let width = LatentWidth::Joint { d_latent: live.len() };
            let shared = Some(shared.clone());
            Some(LayerRanks { width, up_of: None, reads_from: None, balanced: false, shared })
        })
        .collect();
    section
}

impl Sizes {
    /// The tensors of the layout.
    fn specs(&self, json: &ConfigJson) -> Result<Vec<TensorSpec>, Error> {
        let Self { d_model, heads, rank, .. } = *self;
        let embedding = Slot::TokenEmbedding;
        let mut specs = vec![TensorSpec::matrix("model.embed_tokens.weight", embedding, self.vocab, d_model)];
        for layer in 0..self.n_layers {
            let slot = |slot: LayerSlot| Slot::Layer(layer, slot);
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            let read = slot(LayerSlot::DownJoint);
            for (part, slot, rows, columns) in [
                ("self_attn.q_proj", slot(LayerSlot::Query(Part::Weight)), heads * self.head(), d_model),
                ("self_attn.kv_a_proj_with_mqa", read, rank + self.rope, d_model),
                ("self_attn.kv_b_proj", slot(LayerSlot::UpJoint), heads * (self.nope + self.values), rank),
                ("self_attn.o_proj", slot(LayerSlot::Output(Part::Weight)), d_model, heads * self.values),
                ("mlp.gate_proj", slot(LayerSlot::Gate(Part::Weight)), self.d_ff, d_model),
                ("mlp.up_proj", slot(LayerSlot::Up(Part::Weight)), self.d_ff, d_model),
                ("mlp.down_proj", slot(LayerSlot::Down(Part::Weight)), d_model, self.d_ff),
            ] {
                specs.push(TensorSpec::matrix(name(part), slot, rows, columns));
            }
            for (part, slot, size) in [
                ("self_attn.kv_a_layernorm", read, rank),
                ("input_layernorm", slot(LayerSlot::InputNorm(Part::Weight)), d_model),
                ("post_attention_layernorm", slot(LayerSlot::MlpNorm(Part::Weight)), d_model),
            ] {
                specs.push(TensorSpec::vector(name(part), slot, size));
            }
        }
        specs.push(TensorSpec::vector("model.norm.weight", Slot::FinalNorm(Part::Weight), d_model));
        if !json.flag_or("tie_word_embeddings", false)? {
            specs.push(TensorSpec::matrix("lm_head.weight", Slot::Head, self.vocab, d_model));
        }
        Ok(specs)
    }
}

/// The numbers of a layer's latent that something is made of and that something reads.
fn live_numbers(checkpoint: &Checkpoint, sizes: &Sizes, layer: usize) -> Result<Vec<usize>, Error> {
    let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
    let read = matrix(checkpoint, &name("self_attn.kv_a_proj_with_mqa"))?;
    let gain = matrix(checkpoint, &name("input_layernorm"))?;
    let made = matrix(checkpoint, &name("self_attn.kv_b_proj"))?;
    let back = matrix(checkpoint, &name("self_attn.kv_a_layernorm"))?;
    let latent = &read.data[..sizes.rank * sizes.d_model];
    let gain: Vec<f64> = gain.data.iter().copied().map(f64::from).collect();
    let share = largest_mean_square(latent, &gain, sizes.rank) / EPSILON;
    if share.is_nan() || share > LARGEST {
        let reason = format!(
            "the norm on the latent of layer {layer} is not linear: its inputs may reach {share:.1e} of ε, {LARGEST:.0e} is the most. \
             Its rows of kv_a_proj_with_mqa are small, and train at a rate as much smaller (docs/engines.md)"
        );
        return Err(refuse(checkpoint.folder(), reason));
    }
    let mut is_read = vec![false; sizes.rank];
    for row in made.data.chunks_exact(sizes.rank) {
        is_read.iter_mut().zip(row).for_each(|(is_read, &x)| *is_read |= x != 0.0);
    }
    let is_made = |number: usize| {
        let row = &latent[number * sizes.d_model..(number + 1) * sizes.d_model];
        back.data[number] != 0.0 && row.iter().any(|&x| x != 0.0)
    };
    let live: Vec<usize> = (0..sizes.rank).filter(|&number| is_read[number] && is_made(number)).collect();
    // A latent has one number at least.
    Ok(if live.is_empty() { vec![0] } else { live })
}

/// Places of numbers that lie pair by pair, in halves: the first of each pair, then the second.
fn halves(d_rope: usize) -> impl Iterator<Item = usize> {
    (0..2).flat_map(move |half| (0..d_rope / 2).map(move |pair| 2 * pair + half))
}

/// A tensor as f32; a vector has one row.
fn matrix(checkpoint: &Checkpoint, key: &str) -> Result<Matrix, Error> {
    let tensor = checkpoint.get(key).expect("the tensors were found when the folder was opened");
    let bytes = stored_in(checkpoint, key, Dtype::F32)?;
    let mut values = Vec::with_capacity(bytes.len() / Dtype::F32.bytes());
    Dtype::F32.decode(&bytes, &mut values);
    let [rows, columns] = match tensor.shape[..] {
        [rows, columns] => [rows, columns],
        _ => [1, values.len()],
    };
    Ok(Matrix::new(rows, columns, values))
}

/// `a b`, row-major.
fn product(a: &Matrix, b: &Matrix) -> Vec<f32> {
    let mut out = Vec::with_capacity(a.rows * b.cols);
    let mut sum = vec![0f64; b.cols];
    for row in a.data.chunks_exact(a.cols) {
        sum.fill(0.0);
        for (&x, other) in row.iter().zip(b.data.chunks_exact(b.cols)) {
            sum.iter_mut().zip(other).for_each(|(sum, &y)| *sum += f64::from(x) * f64::from(y));
        }
        out.extend(sum.iter().map(|&x| x as f32));
    }
    out
}
