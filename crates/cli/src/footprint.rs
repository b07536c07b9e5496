//! What running a model takes of the memory, counted before it is loaded.
//!
//! A count of the large parts, not a measurement: the weights as they are computed with, the cache at its capacity, what a
//! block's activations take at their widest, logits. Small models are run by it whatever it says of the rest.

use std::collections::HashSet;

use handlers::{Model, TensorSpec};
use mla_core::{DecoderConfig, WeightDtype, WeightSource};
use train::Settings;
use train::eval::Pass;

use crate::error::UserError;
use crate::machine::memory_available;
use crate::report::bytes;
use crate::session::Session;

/// Memory of the program itself, a tokenizer and some text.
const BASE_BYTES: f64 = 85e6;
/// Bytes of a number that is computed with.
const NUMBER: f64 = 4.0;
/// Copies of its activations that a pass holds at its widest, and a backward pass, a block at a time.
const COPIES: f64 = 1.9;
const COPIES_BACKWARD: f64 = 2.6;
/// Positions whose logits are held at a time.
const LOGITS: usize = 128;
/// Copies of each matrix that trains: its values, gradients and moments, and those of a snapshot and its file.
const COPIES_TRAINED: f64 = 12.0;
/// Tokens of a prompt that are read at a time, over all sequences.
const PREFILL: usize = 512;

/// Bytes that a command takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Footprint {
    /// What large matrices are held as.
    weights: WeightDtype,
    /// The program and weights, which stay.
    held: f64,
    /// A matrix that is laid out anew while it is loaded, and is there twice for that moment.
    loading: f64,
    /// What comes with the passes, after that moment.
    running: f64,
}

impl Footprint {
    /// A program with a model's weights in f32.
    pub fn of(model: &Model) -> Self {
        Self::running(model, WeightDtype::F32)
    }

    /// A program with a model's weights, held as it is said.
    pub fn running(model: &Model, weights: WeightDtype) -> Self {
        let of = |spec: &TensorSpec| product(&spec.shape) * number(model, spec, weights);
        let largest = model.specs().iter().map(of).fold(0.0, f64::max);
        let held = BASE_BYTES + held(model, model.specs(), weights);
        Self { weights, held, loading: largest, running: 0.0 }
    }

    /// With a second model beside the first: a conversion and its donor have most weights in common, which are then held once.
    pub fn beside(self, model: &Model, first: &Model) -> Self {
        let related = model.config().donor() == first.config().donor()
            && model.section().is_some() != first.section().is_some();
        let own = match related {
            true => {
                let known: HashSet<&str> = first.specs().iter().map(|spec| spec.key.as_str()).collect();
                let own = model.specs().iter().filter(|spec| !known.contains(spec.key.as_str()));
                held(model, own, self.weights)
            }
            false => held(model, model.specs(), self.weights),
        };
        Self { held: self.held + own, ..self }
    }

    /// With a cache, and passes that read it: prompts a chunk at a time, then a token a sequence.
    pub fn cached(self, config: &DecoderConfig, sequences: usize, tokens: usize) -> Self {
        let cached = config.cache_bytes(tokens) as f64 * sequences as f64;
        let rows = sequences.max(PREFILL.min(sequences.saturating_mul(tokens)));
        self.and(cached).and(COPIES * activations(config, rows, 0)).logits(config, sequences)
    }

    /// With passes over whole windows, or over long ones a chunk at a time, with a cache.
    pub fn windows(self, config: &DecoderConfig, windows: usize, length: usize) -> Self {
        if Pass::Full.step_tokens(length) < length {
            return self.cached(config, windows, length).logits(config, LOGITS);
        }
        let wide = COPIES * activations(config, windows.saturating_mul(length), length);
        self.and(wide).logits(config, LOGITS)
    }

    /// With what training holds: of each block its input and latents, of one block the tape, of each factor what moves it.
    pub fn trained(self, config: &DecoderConfig, settings: &Settings, windows: usize) -> Self {
        // A window that was asked for beyond the context is refused when the text is cut.
        let length = settings.max_length.min(config.max_positions);
        let windows = settings.batch_size.min(windows);
        let rows = windows as f64 * length as f64;
        let kept =
            (config.n_layers() + 2) as f64 * config.d_model as f64 + config.cached_numbers_total() as f64;
        let factors = COPIES_TRAINED * train::trainable(config) as f64;
        let tape = activations(config, windows.saturating_mul(length), length);
        self.and(NUMBER * (rows * kept + factors)).and(COPIES_BACKWARD * tape).logits(config, LOGITS)
    }

    /// With the original `W_k` and `W_v` of every layer.
    pub fn originals(self, config: &DecoderConfig) -> Self {
        self.and(NUMBER * config.donor().cached_numbers_total() as f64 * config.d_model as f64)
    }

    /// Refuses what does not fit.
    ///
    /// # Errors
    /// When the memory that is left is less, and it is not to be tried all the same. Memory of a device of its own is not known.
    pub fn check(self, session: &Session, task: &'static str, overcommit: bool) -> Result<(), UserError> {
        let needed = self.bytes() as u64;
        match memory_available() {
            Some(available) if needed > available && session.computes_on_host() && !overcommit => {
                Err(UserError::TooLarge {
                    task,
                    what: "memory",
                    needed: bytes(needed),
                    available: bytes(available),
                })
            }
            _ => Ok(()),
        }
    }

    /// As computed, and as read on the host.
    fn logits(self, config: &DecoderConfig, positions: usize) -> Self {
        self.and(2.0 * NUMBER * positions as f64 * config.vocab_size as f64)
    }

    fn and(self, bytes: f64) -> Self {
        Self { running: self.running + bytes, ..self }
    }

    fn bytes(self) -> f64 {
        self.held + self.loading.max(self.running)
    }
}

/// Bytes that a block's activations take, each counted once; `length` of them are compared with each other at once.
fn activations(config: &DecoderConfig, rows: usize, length: usize) -> f64 {
    let layers = 0..config.n_layers();
    let donor = config.donor();
    let kv = layers.map(|layer| donor.cached_numbers(layer)).max().unwrap_or(0) as f64;
    let d_ff = config.layers.iter().map(|layer| layer.mlp.d_ff).max().unwrap_or(0);
    let [d_model, d_ff, heads] = [config.d_model, d_ff, config.n_heads].map(|size| size as f64);
    NUMBER * rows as f64 * (6.0 * d_model + 3.0 * d_ff + 2.0 * kv + 2.0 * heads * length as f64)
}

/// Bytes of the tensors; one that several specs share parts of counts once.
fn held<'a>(model: &Model, specs: impl IntoIterator<Item = &'a TensorSpec>, weights: WeightDtype) -> f64 {
    let mut seen = HashSet::new();
    let once = specs.into_iter().filter(|spec| seen.insert(spec.key.as_str()));
    once.map(|spec| product(&spec.shape) * number(model, spec, weights)).sum()
}

/// Bytes of a number of a tensor. What a conversion put in is held in f32 always.
fn number(model: &Model, spec: &TensorSpec, weights: WeightDtype) -> f64 {
    let checkpoint = model.checkpoint();
    let is_large = spec.shape.len() > 1 && !spec.key.contains(".mla.");
    let stored = || checkpoint.dtype(&spec.key, checkpoint.get(&spec.key)?).ok();
    match weights {
        WeightDtype::Stored if is_large => stored().map_or(NUMBER, |dtype| dtype.bytes() as f64),
        _ => NUMBER,
    }
}

fn product(shape: &[usize]) -> f64 {
    shape.iter().map(|&size| size as f64).product()
}

#[cfg(test)]
mod tests {
    use super::*;
    use handlers::Registry;

    fn model(name: &str) -> Model {
        let goldens = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it") + "/../../goldens/";
        Model::open((goldens + name).as_ref(), &Registry::builtin()).expect("a model")
    }

    #[test]
    fn weights_are_counted_once_each_and_in_full() {
        for name in ["llama", "gpt2", "mixtral"] {
            let model = model(name);
            let in_file: f64 = model
                .checkpoint()
                .keys()
                .filter(|key| {
                    !model.unused().iter().any(|unused| unused == key) && !key.ends_with(".attn.bias")
                })
                .filter_map(|key| model.checkpoint().get(key))
                .map(|tensor| product(&tensor.shape))
                .sum();
            assert_eq!(held(&model, model.specs(), WeightDtype::F32), NUMBER * in_file, "{name}");
            // The goldens are stored in f32.
            assert_eq!(
                Footprint::running(&model, WeightDtype::Stored).held,
                Footprint::of(&model).held,
                "{name}"
            );
        }
    }

    #[test]
    fn a_cache_is_counted_by_its_sequences_and_tokens() {
        let model = model("llama");
        let config = model.config();
        let of = |sequences, tokens| Footprint::of(&model).cached(config, sequences, tokens).bytes();
        // Three layers of K and V of 32 numbers, of 4 bytes.
        assert_eq!(of(1, 1 << 20) - of(1, 1 << 19), (3 * 64 * 4 * (1 << 19)) as f64);
        assert!(of(1 << 40, 1 << 30) > 1e20, "no product of counts overflows");
    }

    #[test]
    fn a_long_window_is_its_cache_and_one_chunk_and_a_short_one_is_all_its_scores() {
        let model = model("llama");
        let config = model.config();
        let of = |length| Footprint::of(&model).windows(config, 1, length).bytes();
        assert_eq!(
            of(1 << 20) - of(1 << 19),
            (config.cache_bytes(1 << 20) - config.cache_bytes(1 << 19)) as f64
        );
        let scores = |length: usize| COPIES * activations(config, length, length);
        // Both are above what a matrix takes while it is loaded.
        assert!((of(512) - of(511) - scores(512) + scores(511)).abs() < 1.0);
    }

    #[test]
    fn a_donor_beside_its_conversion_is_what_they_have_not_in_common() {
        let donor = model("llama");
        let alone = Footprint::of(&donor);
        let own = held(&donor, donor.specs(), WeightDtype::F32);
        assert_eq!(alone.beside(&donor, &donor).held - alone.held, own, "strangers");
        let converted = tempfile::tempdir().expect("a temporary folder");
        for file in ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"] {
            std::fs::copy(donor.folder().join(file), converted.path().join(file)).expect("a copy");
        }
        // A conversion that keeps every layer's attention has all that its donor has.
        let mut json = serde_json::Value::Object(donor.json().fields().clone());
        json["mla"] = serde_json::json!({
            "version": 1, "method": "separate", "objective": "mse", "layers": [null, null, null]
        });
        std::fs::write(converted.path().join("config.json"), json.to_string()).expect("a file");
        let converted = Model::open(converted.path(), &Registry::builtin()).expect("a model");
        let together = Footprint::of(&converted).beside(&donor, &converted);
        assert_eq!(together, Footprint::of(&converted), "every key is in both");
    }
}
