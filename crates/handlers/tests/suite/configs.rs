//! What configurations mean that say less, or say it elsewhere: as transformers 5.24 reads them.

use handlers::{ConfigJson, Registry};
use mla_core::DecoderConfig;
use mla_core::decoder::HeadKind;
use mla_core::positions::RopeScaling;
use serde_json::{Map, Value, json};

/// A configuration with the sizes that every family needs, and some fields more.
fn config(model_type: &str, more: Value) -> DecoderConfig {
    let mut fields = json!({
        "model_type": model_type,
        "hidden_size": 256,
        "intermediate_size": 64,
        "num_attention_heads": 32,
        "num_hidden_layers": 6,
        "vocab_size": 100,
    });
    let fields = fields.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object").clone());
    read(fields.clone()).unwrap_or_else(|e| panic!("{model_type}, {more}: {e}"))
}

fn read(fields: Map<String, Value>) -> Result<DecoderConfig, handlers::Error> {
    let json = ConfigJson::from_fields("config.json", fields);
    Registry::builtin().handler(&json)?.config(&json)
}

fn theta(config: &DecoderConfig) -> f64 {
    config.rope(0).expect("a rotary embedding").theta
}

#[test]
fn an_absent_field_is_what_the_familys_class_has() {
    // Key/value heads, width of a head, context, base, epsilon, whether the head is tied.
    for (model_type, n_kv_heads, d_head, context, base, eps, tied) in [
        ("llama", 32, 8, 2048, 1e4, 1e-6, false),
        ("mistral", 8, 8, 131_072, 1e4, 1e-6, false),
        ("ministral", 8, 8, 131_072, 1e4, 1e-6, false),
        ("mixtral", 8, 8, 131_072, 1e6, 1e-5, false),
        ("qwen2", 32, 8, 32_768, 1e4, 1e-6, false),
        ("qwen3", 32, 128, 32_768, 1e4, 1e-6, false),
        ("qwen3_moe", 4, 8, 32_768, 1e4, 1e-6, false),
        ("gemma2", 4, 256, 8192, 1e4, 1e-6, true),
        ("gemma3_text", 4, 256, 131_072, 1e4, 1e-6, true),
        ("phi3", 32, 8, 4096, 1e4, 1e-5, false),
        ("olmo2", 32, 8, 2048, 1e4, 1e-5, false),
        ("olmo3", 32, 8, 2048, 5e5, 1e-5, false),
        ("smollm3", 4, 8, 32_768, 2e6, 1e-6, true),
        ("granite", 32, 8, 2048, 1e4, 1e-6, false),
        ("gpt_neox", 32, 8, 2048, 1e4, 1e-5, false),
        ("gpt_oss", 8, 64, 131_072, 1.5e5, 1e-5, false),
    ] {
        let config = config(model_type, json!({}));
        assert_eq!((config.n_kv_heads, config.d_head), (n_kv_heads, d_head), "{model_type}");
        assert_eq!((config.max_positions, theta(&config)), (context, base), "{model_type}");
        let head = if tied { HeadKind::Tied } else { HeadKind::Own };
        assert_eq!((config.norm_eps, config.head), (eps, head), "{model_type}");
    }
}

#[test]
fn a_window_that_is_absent_and_one_that_is_null_are_different() {
    let windows = |model_type, more| {
        config(model_type, more).layers.iter().map(|layer| layer.window.unwrap_or(0)).collect::<Vec<_>>()
    };
    for (model_type, absent, null) in [
        ("mistral", [4096; 6], [0; 6]),
        ("ministral", [4096; 6], [0; 6]),
        ("mixtral", [0; 6], [0; 6]),
        ("phi3", [0; 6], [0; 6]),
        ("qwen2", [0; 6], [0; 6]),
        ("gemma2", [4096, 0, 4096, 0, 4096, 0], [0; 6]),
        ("gemma3_text", [4096, 4096, 4096, 4096, 4096, 0], [0; 6]),
        ("olmo3", [4096, 4096, 4096, 0, 4096, 4096], [0; 6]),
        ("gpt_oss", [128, 0, 128, 0, 128, 0], [0; 6]),
        ("smollm3", [0; 6], [0; 6]),
    ] {
        assert_eq!(windows(model_type, json!({})), absent, "{model_type}");
        assert_eq!(windows(model_type, json!({ "sliding_window": null })), null, "{model_type}, null");
    }
    let types = json!([
        "full_attention",
        "sliding_attention",
        "attention",
        "full_attention",
        "sliding_attention",
        "full_attention"
    ]);
    let given = json!({ "sliding_window": 7, "layer_types": types });
    assert_eq!(windows("ministral", given.clone()), [0, 7, 0, 0, 7, 0]);
    // Mistral's class does not know them.
    assert_eq!(windows("mistral", given), [7; 6]);
    let qwen = json!({ "sliding_window": 7, "use_sliding_window": true, "max_window_layers": 4 });
    assert_eq!(windows("qwen2", qwen.clone()), [0, 0, 0, 0, 7, 7]);
    assert_eq!(windows("qwen3_moe", qwen), [7; 6]);
}

#[test]
fn key_value_heads_that_are_null_are_as_many_as_query_heads() {
    for model_type in ["llama", "qwen2", "phi3", "smollm3"] {
        assert_eq!(config(model_type, json!({ "num_key_value_heads": null })).n_kv_heads, 32, "{model_type}");
    }
}

#[test]
fn the_base_is_read_wherever_it_stands() {
    let llama3 = |more: Value| {
        let mut object = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64 });
        object.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        object
    };
    let within = json!({ "rope_theta": 5e5 });
    for (more, base) in [
        (json!({ "rope_theta": 7e4 }), 7e4),
        (json!({ "rope_scaling": llama3(within.clone()) }), 5e5),
        (json!({ "rope_scaling": llama3(within.clone()), "rope_theta": 7e4 }), 5e5),
        (json!({ "rope_scaling": llama3(json!({})), "rope_theta": 7e4 }), 7e4),
        (json!({ "rope_parameters": llama3(within.clone()) }), 5e5),
        (json!({ "rope_scaling": llama3(json!({})), "rope_parameters": within }), 5e5),
        (json!({ "rope_scaling": { "rope_type": "default", "rope_theta": 1e6 } }), 1e6),
    ] {
        assert_eq!(theta(&config("llama", more.clone())), base, "{more}");
    }
}

#[test]
fn rope_scaling_stands_before_rope_parameters_unless_it_is_empty() {
    let parameters = json!({ "rope_type": "linear", "factor": 3.0 });
    let scaling = |config: &DecoderConfig| config.rope(0).expect("a rotary embedding").scaling.clone();
    for (first, factor) in
        [(json!({ "type": "linear", "factor": 2.0 }), 2.0), (json!({}), 3.0), (Value::Null, 3.0)]
    {
        let config = config("llama", json!({ "rope_scaling": first, "rope_parameters": parameters }));
        assert_eq!(scaling(&config), RopeScaling::Linear { factor });
    }
}

#[test]
fn yarn_as_qwen_users_write_it() {
    let config = config(
        "qwen2",
        json!({
            "max_position_embeddings": 32_768,
            "rope_theta": 1e6,
            "rope_scaling": { "factor": 4.0, "original_max_position_embeddings": 32_768, "type": "yarn" },
        }),
    );
    let rope = config.rope(0).expect("a rotary embedding");
    assert_eq!((config.max_positions, rope.theta), (131_072, 1e6));
    assert!((rope.amplitude - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12);
    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        original_max: 32_768,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: true,
    };
    assert_eq!(rope.scaling, yarn);
}

#[test]
fn a_context_beside_the_object_stands_before_the_one_within() {
    let long = |beside: Value| {
        let mut more = json!({
            "max_position_embeddings": 131_072,
            "rope_scaling": { "type": "longrope", "short_factor": vec![1.0; 4], "long_factor": vec![2.0; 4],
                "original_max_position_embeddings": 512 },
        });
        more.as_object_mut().expect("an object").extend(beside.as_object().expect("an object").clone());
        config("phi3", more).rope(0).expect("a rotary embedding").clone()
    };
    // Phi 3's class has 4096 beside, even where config.json says nothing there.
    for (beside, trained) in [(json!({}), 4096), (json!({ "original_max_position_embeddings": 1024 }), 1024)]
    {
        let rope = long(beside);
        let RopeScaling::Long { original_max, .. } = rope.scaling else { panic!("{:?}", rope.scaling) };
        assert_eq!(original_max, trained);
        let stretch = 131_072.0 / trained as f64;
        let amplitude = (1.0 + f64::ln(stretch) / f64::ln(trained as f64)).sqrt();
        assert!((rope.amplitude - amplitude).abs() < 1e-12);
    }
}

#[test]
fn each_kind_of_layer_has_the_embedding_that_is_named_for_it() {
    let thetas = |more| {
        let config = config("gemma3_text", more);
        [0, 5].map(|layer| config.rope(layer).expect("a rotary embedding").theta)
    };
    assert_eq!(thetas(json!({})), [1e4, 1e6]);
    assert_eq!(thetas(json!({ "rope_theta": 5e5, "rope_local_base_freq": 7e3 })), [7e3, 5e5]);
    let nested =
        json!({ "sliding_attention": { "rope_theta": 2e3 }, "full_attention": { "rope_theta": 3e5 } });
    assert_eq!(thetas(json!({ "rope_parameters": nested })), [2e3, 3e5]);
    // A flat object says nothing of either kind.
    assert_eq!(thetas(json!({ "rope_parameters": { "rope_theta": 9.0 } })), [1e4, 1e6]);
    let linear = json!({ "rope_scaling": { "rope_type": "linear", "factor": 8.0 } });
    let config = config("gemma3_text", linear);
    let scalings = [0, 5].map(|layer| config.rope(layer).expect("a rotary embedding").scaling.clone());
    assert_eq!(scalings, [RopeScaling::None, RopeScaling::Linear { factor: 8.0 }]);
}

#[test]
fn a_part_of_a_head_is_rotated_in_families_that_know_it() {
    let rotated = |model_type, more| config(model_type, more).rope(0).expect("a rotary embedding").d_rotary;
    assert_eq!(rotated("phi3", json!({ "partial_rotary_factor": 0.5 })), 4);
    assert_eq!(rotated("gpt_neox", json!({ "num_attention_heads": 8 })), 8);
    assert_eq!(rotated("gpt_neox", json!({ "rotary_pct": 1.0 })), 8);
    let mut fields = Map::new();
    for (field, value) in [
        ("hidden_size", json!(64)),
        ("intermediate_size", json!(64)),
        ("num_attention_heads", json!(4)),
        ("num_hidden_layers", json!(1)),
        ("vocab_size", json!(9)),
        ("partial_rotary_factor", json!(0.5)),
        ("model_type", json!("llama")),
    ] {
        fields.insert(field.into(), value);
    }
    let error = read(fields).expect_err("LLaMA rotates whole heads");
    assert!(error.to_string().contains("partial_rotary_factor"), "{error}");
}

#[test]
fn layers_without_positions_are_those_that_are_listed() {
    let rotates = |more| {
        config("smollm3", more).layers.iter().map(|layer| u8::from(layer.rope.is_some())).collect::<Vec<_>>()
    };
    assert_eq!(rotates(json!({})), [1, 1, 1, 0, 1, 1]);
    assert_eq!(rotates(json!({ "no_rope_layer_interval": 2 })), [1, 0, 1, 0, 1, 0]);
    assert_eq!(rotates(json!({ "no_rope_layers": [0, 1, 1, 0, 0, 1] })), [0, 1, 1, 0, 0, 1]);
}
