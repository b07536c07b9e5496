//! Models whose graph is none to convert: each is refused by name and reason.

use handlers::{Error, Unsuited};
use serde_json::{Value, json};

use super::refuses;
use crate::scratch::Scratch;

#[test]
fn a_model_born_with_latent_attention_is_recognised() {
    let scratch = Scratch::of("llama");
    for (model_type, rank, expected) in [
        ("deepseek_v3", json!(512), Some(512)),
        ("deepseek_v2", json!(1536), Some(1536)),
        ("deepseek_v3", Value::Null, None),
        ("minicpm3", json!(256), Some(256)),
        ("llama", json!(64), Some(64)),
    ] {
        scratch.set("model_type", model_type);
        scratch.set("kv_lora_rank", rank);
        refuses!(
            scratch.open(),
            Error::NativeMla { model_type: found, kv_lora_rank, .. } if found == model_type && *kv_lora_rank == expected
        );
    }
}

#[test]
fn every_latent_family_is_refused_by_its_name() {
    let scratch = Scratch::of("llama");
    for model_type in [
        "deepseek_v2",
        "deepseek_v32",
        "kimi_k2",
        "kimi_linear",
        "longcat_flash",
        "glm4_moe_lite",
        "glm_moe_dsa",
        "youtu",
        "minicpm3",
        "mistral4",
    ] {
        scratch.set("model_type", model_type);
        refuses!(scratch.open(), Error::NativeMla { model_type: found, .. } if found == model_type);
    }
    scratch.set("model_type", "acme");
    scratch.set("architectures", json!(["MistralLarge3ForCausalLM"]));
    refuses!(scratch.open(), Error::NativeMla { .. });
}

#[test]
fn a_language_model_inside_another_is_looked_at() {
    let scratch = Scratch::of("llama");
    scratch.set("model_type", "mistral3");
    scratch.set("text_config", json!({ "model_type": "mistral4" }));
    refuses!(scratch.open(), Error::NativeMla { model_type, .. } if model_type == "mistral4");
    scratch.set("text_config", json!({ "model_type": "acme", "kv_lora_rank": 256 }));
    refuses!(scratch.open(), Error::NativeMla { kv_lora_rank: Some(256), .. });
    scratch.set("text_config", json!({ "model_type": "qwen3_5_text" }));
    refuses!(scratch.open(), Error::Unsuited { model_type, kind: Unsuited::Hybrid, .. } if model_type == "qwen3_5_text");
    scratch.set("thinker_config", json!({ "text_config": { "model_type": "qwen3_next" } }));
    scratch.set("text_config", Value::Null);
    refuses!(scratch.open(), Error::Unsuited { kind: Unsuited::Hybrid, .. });
    // What sees or hears in a model decides nothing.
    scratch.set("thinker_config", Value::Null);
    scratch.set("vision_config", json!({ "model_type": "siglip" }));
    scratch.set("audio_config", json!({ "model_type": "whisper" }));
    refuses!(scratch.open(), Error::UnknownModelType { found, .. } if found == "mistral3");
}

#[test]
fn what_keeps_no_cache_in_every_layer_is_refused_with_the_reason() {
    let scratch = Scratch::of("llama");
    for (kind, types) in [
        (
            Unsuited::Hybrid,
            &[
                "qwen3_next",
                "qwen3_5",
                "qwen3_5_moe",
                "granitemoehybrid",
                "jamba",
                "bamba",
                "falcon_h1",
                "nemotron_h",
                "lfm2",
                "zamba2",
                "recurrent_gemma",
                "minimax",
            ][..],
        ),
        (Unsuited::Recurrent, &["mamba", "mamba2", "rwkv", "falcon_mamba"]),
        (Unsuited::EncoderDecoder, &["t5", "bart", "whisper", "marian"]),
        (Unsuited::Encoder, &["bert", "roberta", "modernbert", "deberta-v2"]),
    ] {
        for &model_type in types {
            scratch.set("model_type", model_type);
            refuses!(scratch.open(), Error::Unsuited { model_type: found, kind: reason, .. }
                if found == model_type && *reason == kind);
        }
    }
}

#[test]
fn a_family_that_nobody_listed_is_told_by_its_fields() {
    let scratch = Scratch::of("llama");
    scratch.set("model_type", "acme");
    scratch.set("layer_types", json!(["linear_attention", "full_attention", "linear_attention"]));
    refuses!(scratch.open(), Error::Unsuited { kind: Unsuited::Hybrid, .. });
    scratch.set("layer_types", json!(["full_attention", "sliding_attention", "full_attention"]));
    refuses!(scratch.open(), Error::UnknownModelType { .. });
    scratch.set("is_encoder_decoder", true);
    refuses!(scratch.open(), Error::Unsuited { kind: Unsuited::EncoderDecoder, .. });
    // Granite 4 micro has this type and attention in every layer.
    scratch.set("is_encoder_decoder", false);
    scratch.set("model_type", "granitemoehybrid");
    scratch.set("layer_types", json!(["attention", "attention", "attention"]));
    refuses!(scratch.open(), Error::UnknownModelType { .. });
}

#[test]
fn code_of_its_own_under_the_type_of_another_is_refused() {
    let scratch = Scratch::of("gpt2");
    let own = json!({
        "AutoConfig": "configuration_gpt2_mq.GPT2CustomConfig",
        "AutoModelForCausalLM": "modeling_gpt2_mq.GPT2LMHeadCustomModel",
    });
    for (fields, field) in [
        (json!({ "attention_head_type": "multiquery" }), "attention_head_type"),
        (json!({ "multi_query": true }), "multi_query"),
        (json!({ "architectures": ["GPTBigCodeForCausalLM"] }), "architectures"),
        (json!({ "architectures": ["GPT2LMHeadCustomModel"], "auto_map": own.clone() }), "architectures"),
    ] {
        let scratch = Scratch::of("gpt2");
        for (name, value) in fields.as_object().expect("fields") {
            scratch.set(name, value.clone());
        }
        refuses!(scratch.open(), Error::CustomCode { model_type, field: found, .. }
            if model_type == "gpt2" && found == field);
    }
    scratch.set("attention_head_type", "multihead");
    scratch.set("multi_query", false);
    scratch.open().expect("it says that it is a plain one");
}

#[test]
fn plain_models_open_whatever_else_their_configuration_names() {
    let auto_map = json!({ "AutoModelForCausalLM": "modeling_x.X" });
    for (architectures, auto_map) in [
        (json!(["LlamaForCausalLM"]), auto_map.clone()),
        (json!(["LLaMAForCausalLM"]), Value::Null),
        (json!(["LlamaModel"]), auto_map.clone()),
        // transformers goes by the type where the repository brings no code for the model.
        (json!(["MyTunedForCausalLM"]), Value::Null),
        (json!(["MyTunedForCausalLM"]), json!({ "AutoTokenizer": ["tokenization_x.X", null] })),
        (json!([]), auto_map.clone()),
        (Value::Null, auto_map),
    ] {
        let scratch = Scratch::of("llama");
        scratch.set("architectures", architectures.clone());
        scratch.set("auto_map", auto_map);
        assert!(scratch.open().is_ok(), "{architectures}");
    }
}
