//! Telling what a configuration is before a handler reads it.

use serde_json::Value;

use crate::config_json::ConfigJson;
use crate::error::Error;

/// Model types that were trained with Multi-Head Latent Attention.
const NATIVE: [&str; 3] = ["deepseek_v2", "deepseek_v3", "deepseek_v32"];

/// The model type in `config.json`.
///
/// # Errors
/// When the field is missing or the model was born with latent attention: by its type, or by a `kv_lora_rank`.
pub(crate) fn model_type(config: &ConfigJson) -> Result<String, Error> {
    let model_type = config.text_or("model_type", "")?.to_owned();
    if is_native_mla(config) {
        let kv_lora_rank = config.get("kv_lora_rank").and_then(Value::as_u64);
        return Err(Error::NativeMla { path: config.path().into(), model_type, kv_lora_rank });
    }
    match model_type.is_empty() {
        true => Err(config.missing("model_type")),
        false => Ok(model_type),
    }
}

/// Whether the model was trained with Multi-Head Latent Attention (DeepSeek V2, V3 and kin).
pub fn is_native_mla(config: &ConfigJson) -> bool {
    config.get("kv_lora_rank").is_some()
        || config.text_or("model_type", "").is_ok_and(|name| NATIVE.contains(&name))
}
