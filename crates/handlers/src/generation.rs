//! `generation_config.json`: where a sequence ends.

use std::path::Path;

use serde_json::Value;

use crate::config_json::ConfigJson;
use crate::error::Error;

/// What the model's authors set for generation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GenerationConfig {
    /// Every id that ends a sequence.
    pub eos: Vec<u32>,
}

impl GenerationConfig {
    /// Reads `generation_config.json`, or `config.json` where that says nothing.
    ///
    /// # Errors
    /// When a file is no JSON or an id is no id.
    pub fn read(folder: &Path, config: &ConfigJson) -> Result<Self, Error> {
        let path = folder.join("generation_config.json");
        if path.exists() {
            let generation = ConfigJson::read(&path)?;
            if generation.get("eos_token_id").is_some() {
                return Self::parse(&generation);
            }
        }
        Self::parse(config)
    }

    fn parse(config: &ConfigJson) -> Result<Self, Error> {
        let field = "eos_token_id";
        let id = |value: &Value| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| config.bad(field, "a token id or a list of token ids", value))
        };
        let eos = match config.get(field) {
            None => Vec::new(),
            Some(Value::Array(ids)) => ids.iter().map(id).collect::<Result<_, _>>()?,
            Some(one) => vec![id(one)?],
        };
        Ok(Self { eos })
    }
}
