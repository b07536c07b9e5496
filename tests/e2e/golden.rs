//! What transformers computes with the bundled model.

use serde_json::Value;

use crate::folder::golden;

/// `goldens/demo/golden.json`.
pub struct Golden(Value);

impl Golden {
    pub fn read() -> Self {
        let text = std::fs::read_to_string(golden("demo/golden.json")).expect("the demo's goldens");
        Self(serde_json::from_str(&text).expect("a JSON file"))
    }

    /// Of the first 40 windows of 256 tokens of heldout.txt.
    pub fn perplexity(&self) -> f64 {
        self.0["perplexity"]["value"].as_f64().expect("a perplexity")
    }

    pub fn prompt(&self) -> &str {
        self.0["greedy"]["prompt"].as_str().expect("a prompt")
    }

    /// The greedy continuation of the prompt.
    pub fn continuation(&self) -> &str {
        self.0["greedy"]["text"].as_str().expect("a text")
    }

    /// The tokens of the continuation.
    pub fn continuation_ids(&self) -> Vec<u64> {
        ids(&self.0["greedy"]["ids"])
    }

    /// Sample texts and how many tokens each has.
    pub fn texts(&self) -> Vec<(&str, usize)> {
        let samples = self.0["tokens"].as_array().expect("samples");
        samples.iter().map(|s| (s["text"].as_str().expect("a text"), ids(&s["ids"]).len())).collect()
    }
}

/// A list of token ids.
pub fn ids(value: &Value) -> Vec<u64> {
    let ids = value.as_array().unwrap_or_else(|| panic!("no list: {value}"));
    ids.iter().map(|id| id.as_u64().expect("a token id")).collect()
}
