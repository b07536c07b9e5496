//! The families that are known, and how to add one.

use mla_core::DecoderConfig;

use crate::config_json::ConfigJson;
use crate::error::Error;
use crate::families;
use crate::spec::TensorSpec;

/// A family of models: how its `config.json` reads and where its tensors lie.
pub trait ModelHandler: Send + Sync {
    /// Values of `model_type` this handler takes.
    fn model_types(&self) -> &[&str];

    /// The graph a configuration describes, every layer with its original attention.
    ///
    /// # Errors
    /// When a field is missing or has a value the family does not know.
    fn config(&self, json: &ConfigJson) -> Result<DecoderConfig, Error>;

    /// Where each slot of the graph lies in a checkpoint.
    fn tensors(&self, config: &DecoderConfig) -> Vec<TensorSpec>;

    /// Prefixes that may stand before every key, the usual one first.
    fn prefixes(&self) -> &[&str] {
        &[""]
    }

    /// Whether a key without a spec is known to be no weight (mask buffers and the like).
    fn is_buffer(&self, _key: &str) -> bool {
        false
    }
}

/// The handlers at hand. Later registrations win, so a project may replace one of ours.
pub struct Registry {
    handlers: Vec<Box<dyn ModelHandler>>,
}

impl Registry {
    /// Every family of [`families`].
    pub fn builtin() -> Self {
        Self {
            handlers: vec![
                Box::new(families::Gemma2),
                Box::new(families::Gemma3),
                Box::new(families::Gpt2),
                Box::new(families::GptNeoX),
                Box::new(families::GptOss),
                Box::new(families::Granite),
                Box::new(families::Llama),
                Box::new(families::Ministral),
                Box::new(families::Mistral),
                Box::new(families::Mixtral),
                Box::new(families::Olmo2),
                Box::new(families::Olmo3),
                Box::new(families::Phi3),
                Box::new(families::Qwen2),
                Box::new(families::Qwen3),
                Box::new(families::Qwen3Moe),
                Box::new(families::SmolLm3),
            ],
        }
    }

    /// Adds a family.
    pub fn register(&mut self, handler: Box<dyn ModelHandler>) {
        self.handlers.push(handler);
    }

    /// The handler for a configuration.
    ///
    /// # Errors
    /// When the model type is unknown, missing, or natively latent.
    pub fn handler(&self, json: &ConfigJson) -> Result<&dyn ModelHandler, Error> {
        let found = crate::detect::model_type(json)?;
        let mut latest_first = self.handlers.iter().rev().map(Box::as_ref);
        match latest_first.find(|handler| handler.model_types().contains(&found.as_str())) {
            Some(handler) => Ok(handler),
            None => Err(Error::UnknownModelType { path: json.path().into(), found, known: self.known() }),
        }
    }

    /// Every model type that can be read.
    pub fn known(&self) -> Vec<String> {
        self.handlers.iter().flat_map(|handler| handler.model_types()).map(|&name| name.to_owned()).collect()
    }
}
