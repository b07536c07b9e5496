//! Synthetic model folders: true shapes, random weights.
//!
//! Time and memory of a conversion depend on shapes and hardly on values, so that a model of 7.6 G weights need not be
//! downloaded to be measured. Values are small enough that activations stay finite.

mod noise;
mod shards;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde_json::{Value, json};

use noise::Noise;
use shards::Writer;

/// A tokenizer whose tokens every vocabulary here has, relative to the repository.
pub const TOKENIZER: &str = "goldens/demo/tokenizer.json";
/// Standard deviation of matrices and of biases, as models are initialised.
const STANDARD_DEVIATION: f64 = 0.02;
/// A bf16 number.
const BYTES: usize = 2;

/// Whose shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// Qwen2.5-7B
    #[value(name = "qwen2.5-7b")]
    Qwen25_7b,
}

/// The sizes of a Qwen2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model {
    d_model: usize,
    n_layers: usize,
    n_heads: usize,
    n_kv_heads: usize,
    d_head: usize,
    d_mlp: usize,
    vocab_size: usize,
    max_positions: usize,
}

/// A tensor to write.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Spec {
    name: String,
    shape: Vec<usize>,
    fill: Fill,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fill {
    /// Normal, with mean 0.
    Noise,
    /// As a norm's weights are initialised.
    Ones,
}

impl Shape {
    /// The sizes, with another number of layers if one is given.
    pub fn model(self, layers: Option<usize>) -> Model {
        match self {
            // https://huggingface.co/Qwen/Qwen2.5-7B, config.json
            Self::Qwen25_7b => Model {
                d_model: 3584,
                n_layers: layers.unwrap_or(28),
                n_heads: 28,
                n_kv_heads: 4,
                d_head: 128,
                d_mlp: 18944,
                vocab_size: 152_064,
                max_positions: 131_072,
            },
        }
    }
}

impl Model {
    /// Its layers.
    pub fn n_layers(&self) -> usize {
        self.n_layers
    }

    /// Its weights.
    pub fn weights(&self) -> usize {
        self.tensors().iter().map(Spec::numbers).sum()
    }

    /// The bytes of its weights.
    pub fn weight_bytes(&self) -> u64 {
        (BYTES * self.weights()) as u64
    }

    fn config(&self) -> Value {
        json!({
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_size": self.d_model,
            "intermediate_size": self.d_mlp,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "hidden_act": "silu",
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_positions,
            "rope_theta": 1_000_000.0,
            "rms_norm_eps": 1e-6,
            "use_sliding_window": false,
            "tie_word_embeddings": false,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "torch_dtype": "bfloat16",
        })
    }

    /// Every tensor under the name that transformers gives it.
    fn tensors(&self) -> Vec<Spec> {
        let noise = |name: String, shape: &[usize]| Spec { name, shape: shape.to_vec(), fill: Fill::Noise };
        let ones = |name: String| Spec { name, shape: vec![self.d_model], fill: Fill::Ones };
        let (d_q, d_kv) = (self.n_heads * self.d_head, self.n_kv_heads * self.d_head);
        let mut tensors = vec![noise("model.embed_tokens.weight".into(), &[self.vocab_size, self.d_model])];
        for layer in 0..self.n_layers {
            let of = |part: &str| format!("model.layers.{layer}.{part}");
            tensors.push(ones(of("input_layernorm.weight")));
            for (part, rows) in [("q_proj", d_q), ("k_proj", d_kv), ("v_proj", d_kv)] {
                tensors.push(noise(of(&format!("self_attn.{part}.weight")), &[rows, self.d_model]));
                tensors.push(noise(of(&format!("self_attn.{part}.bias")), &[rows]));
            }
            tensors.push(noise(of("self_attn.o_proj.weight"), &[self.d_model, d_q]));
            tensors.push(ones(of("post_attention_layernorm.weight")));
            for part in ["gate_proj", "up_proj"] {
                tensors.push(noise(of(&format!("mlp.{part}.weight")), &[self.d_mlp, self.d_model]));
            }
            tensors.push(noise(of("mlp.down_proj.weight"), &[self.d_model, self.d_mlp]));
        }
        tensors.push(ones("model.norm.weight".into()));
        tensors.push(noise("lm_head.weight".into(), &[self.vocab_size, self.d_model]));
        tensors
    }
}

impl Spec {
    fn numbers(&self) -> usize {
        self.shape.iter().product()
    }

    fn bytes(&self) -> u64 {
        (BYTES * self.numbers()) as u64
    }
}

/// Writes a model folder, a piece of a tensor at a time; the bytes of its weights.
///
/// # Errors
/// When the folder is there, the tokenizer is not, or the disk is full.
pub fn write(folder: &Path, model: &Model, tokenizer: &Path) -> Result<u64> {
    if folder.exists() {
        bail!("{} is there already", folder.display());
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let json = |name: &str, value: &Value| {
        let path = folder.join(name);
        fs::write(&path, format!("{value:#}\n")).with_context(|| format!("cannot write {}", path.display()))
    };
    json("config.json", &model.config())?;
    json("generation_config.json", &json!({ "bos_token_id": 0, "eos_token_id": 0 }))?;
    json("tokenizer_config.json", &json!({ "tokenizer_class": "PreTrainedTokenizerFast" }))?;
    fs::copy(tokenizer, folder.join("tokenizer.json"))
        .with_context(|| format!("cannot copy {}", tokenizer.display()))?;
    let noise = Noise::new(STANDARD_DEVIATION);
    let mut writer = Writer::new(folder, &model.tensors(), shards::LARGEST);
    writer.write(|spec, into| match spec.fill {
        Fill::Noise => noise.fill(&spec.name, into),
        Fill::Ones => noise::ones(into),
    })?;
    Ok(model.weight_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Model {
        Model {
            d_model: 8,
            n_layers: 2,
            n_heads: 4,
            n_kv_heads: 2,
            d_head: 2,
            d_mlp: 16,
            vocab_size: 1024,
            max_positions: 64,
        }
    }

    #[test]
    fn qwen_has_as_many_weights_as_its_card_says() {
        let model = Shape::Qwen25_7b.model(None);
        // 7.61 G, of which 6.53 G are not embeddings.
        assert_eq!(model.weights(), 7_615_616_512);
        assert_eq!(model.weights() - 2 * model.vocab_size * model.d_model, 6_525_621_760);
        assert_eq!(Shape::Qwen25_7b.model(Some(2)).n_layers(), 2);
    }

    #[test]
    fn a_folder_is_complete_and_comes_out_the_same_twice() {
        let place = tempfile::tempdir().expect("a folder");
        let tokenizer = place.path().join("tokenizer.json");
        fs::write(&tokenizer, "{}").expect("written");
        let folders = ["a", "b"].map(|name| place.path().join(name));
        for folder in &folders {
            assert_eq!(write(folder, &small(), &tokenizer).expect("written"), small().weight_bytes());
        }
        let index = fs::read_to_string(folders[0].join("model.safetensors.index.json")).expect("an index");
        let index: Value = serde_json::from_str(&index).expect("json");
        assert_eq!(index["metadata"]["total_size"], small().weight_bytes());
        assert_eq!(index["weight_map"].as_object().map(serde_json::Map::len), Some(2 * 12 + 3));
        for name in ["config.json", "tokenizer.json", "model-00001-of-00001.safetensors"] {
            let [a, b] = folders.each_ref().map(|folder| fs::read(folder.join(name)).expect("a file"));
            assert!(a == b && !a.is_empty(), "{name}");
        }
        assert!(write(&folders[0], &small(), &tokenizer).is_err());
    }
}
