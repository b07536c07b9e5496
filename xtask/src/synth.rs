//! Synthetic model folders: true shapes, random weights.
//!
//! Time and memory of a conversion depend on shapes and hardly on values, so that a model of 7.6 G weights need not be
//! downloaded to be measured. Values are small enough that activations stay finite.

mod families;
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
    /// GPT-2 medium, with 16,384 positions
    #[value(name = "gpt2-medium")]
    Gpt2Medium,
}

/// How a checkpoint names and lays out its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Qwen2,
    Gpt2,
}

/// The sizes of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model {
    family: Family,
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
                family: Family::Qwen2,
                d_model: 3584,
                n_layers: layers.unwrap_or(28),
                n_heads: 28,
                n_kv_heads: 4,
                d_head: 128,
                d_mlp: 18944,
                vocab_size: 152_064,
                max_positions: 131_072,
            },
            // https://huggingface.co/openai-community/gpt2-medium, config.json; 1024 positions there
            Self::Gpt2Medium => Model {
                family: Family::Gpt2,
                d_model: 1024,
                n_layers: layers.unwrap_or(24),
                n_heads: 16,
                n_kv_heads: 16,
                d_head: 64,
                d_mlp: 4096,
                vocab_size: 50_257,
                max_positions: 16_384,
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
        match self.family {
            Family::Qwen2 => families::qwen2_config(self),
            Family::Gpt2 => families::gpt2_config(self),
        }
    }

    /// Every tensor under the name that transformers gives it.
    fn tensors(&self) -> Vec<Spec> {
        match self.family {
            Family::Qwen2 => families::qwen2_tensors(self),
            Family::Gpt2 => families::gpt2_tensors(self),
        }
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
            family: Family::Qwen2,
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
    fn gpt2_medium_has_as_many_weights_as_its_card_says_but_for_positions() {
        let model = Shape::Gpt2Medium.model(None);
        assert_eq!(model.weights() - (16_384 - 1024) * 1024, 354_823_168);
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
