//! The families that are known, and how to add one.

use mla_core::DecoderConfig;

use crate::config_json::ConfigJson;
use crate::custom_code;
use crate::detect;
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
    registered: Vec<Box<dyn ModelHandler>>,
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
            registered: Vec::new(),
        }
    }

    /// Adds a family.
    pub fn register(&mut self, handler: Box<dyn ModelHandler>) {
        self.registered.push(handler);
    }

    /// The handler for a configuration.
    ///
    /// # Errors
    /// When the model type is unknown, missing, or one of a model that has no cache to shrink.
    pub fn handler(&self, json: &ConfigJson) -> Result<&dyn ModelHandler, Error> {
        let found = detect::model_type(json)?;
        let takes = |handler: &&dyn ModelHandler| handler.model_types().contains(&found.as_str());
        let registered = self.registered.iter().rev().map(Box::as_ref).find(takes);
        let handler = registered.or_else(|| self.handlers.iter().map(Box::as_ref).find(takes));
        detect::refuse(json, &found, handler.is_some())?;
        if registered.is_none() && handler.is_some() {
            custom_code::refuse(json, &found)?;
        }
        let unknown = || Error::UnknownModelType {
            path: json.path().into(),
            found: found.clone(),
            known: self.known(),
        };
        handler.ok_or_else(unknown)
    }

    /// Every model type that can be read.
    pub fn known(&self) -> Vec<String> {
        let handlers = self.handlers.iter().chain(&self.registered);
        handlers.flat_map(|handler| handler.model_types()).map(|&name| name.to_owned()).collect()
    }
}
