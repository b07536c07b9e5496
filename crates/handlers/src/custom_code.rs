//! Telling models that carry another family's `model_type` and bring code of their own.
//!
//! transformers goes by `model_type`, unless `auto_map` names code in the repository and the user trusts it. So neither field
//! says anything alone: many plain models have an `auto_map` left, and fine-tunes call their architecture as they like.

use serde_json::Value;

use crate::config_json::ConfigJson;
use crate::error::Error;

/// What follows the family in the names of transformers' classes, in lower case.
const CLASSES: [&str; 12] = [
    "model",
    "lmheadmodel",
    "doubleheadsmodel",
    "forcausallm",
    "forconditionalgeneration",
    "forsequenceclassification",
    "fortokenclassification",
    "forquestionanswering",
    "forrewardmodel",
    "textmodel",
    "pretrainedmodel",
    "textforcausallm",
];

/// Refuses a configuration whose other fields say that the graph is not that of its `model_type`.
///
/// # Errors
/// When they do, naming the field.
pub(crate) fn refuse(config: &ConfigJson, model_type: &str) -> Result<(), Error> {
    let refused = |field: &str, found: String| {
        Err(Error::CustomCode {
            path: config.path().into(),
            model_type: model_type.into(),
            field: field.into(),
            found,
        })
    };
    // Fields of GPTBigCode, which began as a GPT-2 with one head of keys and values.
    if model_type == "gpt2" {
        if config.get("multi_query") == Some(&Value::Bool(true)) {
            return refused("multi_query", "true".into());
        }
        if let Some(found) = config.get("attention_head_type").filter(|kind| *kind != "multihead") {
            return refused("attention_head_type", found.to_string());
        }
    }
    let names: Vec<&str> = match config.get("architectures") {
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let is_foreign = !names.is_empty() && !names.iter().any(|name| is_class_of(name, model_type));
    let is_big_code = names.iter().any(|name| name.starts_with("GPTBigCode")) && model_type == "gpt2";
    if is_big_code || is_foreign && brings_code(config) {
        return refused("architectures", names.join(", "));
    }
    Ok(())
}

/// Whether the repository has its own code for the model, not only for its tokenizer.
fn brings_code(config: &ConfigJson) -> bool {
    let map = config.get("auto_map").and_then(Value::as_object);
    map.is_some_and(|map| map.keys().any(|name| name.starts_with("AutoModel")))
}

/// Whether a class is one of transformers' for the type: `LlamaForCausalLM`, and `LLaMAForCausalLM` of old, for `llama`.
fn is_class_of(name: &str, model_type: &str) -> bool {
    let family: String =
        model_type.trim_end_matches("_text").chars().filter(|c| c.is_alphanumeric()).collect();
    let name = name.to_lowercase();
    name.strip_prefix(&family.to_lowercase()).is_some_and(|rest| CLASSES.contains(&rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_told_from_names_that_only_begin_like_one() {
        for (name, model_type) in [
            ("GPT2LMHeadModel", "gpt2"),
            ("LlamaForCausalLM", "llama"),
            ("LLaMAForCausalLM", "llama"),
            ("Qwen2ForCausalLM", "qwen2"),
            ("Qwen2MoeForCausalLM", "qwen2_moe"),
            ("Gemma3ForCausalLM", "gemma3_text"),
            ("MistralModel", "mistral"),
            ("LlamaForSequenceClassification", "llama"),
        ] {
            assert!(is_class_of(name, model_type), "{name}");
        }
        for (name, model_type) in [
            ("GPT2LMHeadCustomModel", "gpt2"),
            ("GPTBigCodeForCausalLM", "gpt2"),
            ("LlamaForCausalLMEagle", "llama"),
            ("Qwen2MoeForCausalLM", "qwen2"),
        ] {
            assert!(!is_class_of(name, model_type), "{name}");
        }
    }
}
