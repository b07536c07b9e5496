//! Telling what a configuration is before a handler reads it.

use crate::config_json::ConfigJson;
use crate::error::Error;

/// The model type in `config.json`.
///
/// # Errors
/// When the field is missing or the model was born with latent attention (DeepSeek V2, V3 and kin: `kv_lora_rank`).
pub(crate) fn model_type(config: &ConfigJson) -> Result<String, Error> {
    let model_type = config.text_or("model_type", "")?.to_owned();
    if let Some(kv_lora_rank) = native_mla(config) {
        return Err(Error::NativeMla { path: config.path().into(), model_type, kv_lora_rank });
    }
    match model_type.is_empty() {
        true => Err(config.missing("model_type")),
        false => Ok(model_type),
    }
}

/// The latent width of a model that was trained with Multi-Head Latent Attention; `None` for any other.
pub fn native_mla(config: &ConfigJson) -> Option<u64> {
    let rank = config.get("kv_lora_rank").and_then(serde_json::Value::as_u64);
    let by_name = matches!(config.text_or("model_type", ""), Ok(name) if name.starts_with("deepseek_v"));
    rank.or(by_name.then_some(512))
}
