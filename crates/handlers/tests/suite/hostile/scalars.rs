//! Fields of `config.json` that are missing, of another kind, or absurd.

use handlers::Error;
use mla_core::WeightSource;
use mla_core::decoder::HeadKind;
use mla_core::positions::RopeScaling;
use serde_json::{Value, json};

use super::refuses;
use crate::scratch::Scratch;

/// The sizes without which each family is nothing.
const REQUIRED: [(&str, &[&str]); 4] = [
    ("gpt2", &["n_embd", "n_head", "n_layer", "vocab_size"]),
    (
        "llama",
        &["hidden_size", "num_attention_heads", "intermediate_size", "vocab_size", "num_hidden_layers"],
    ),
    ("mixtral", &["hidden_size"]),
    ("qwen2", &["hidden_size", "num_hidden_layers"]),
];

#[test]
fn a_missing_size_is_named() {
    for (name, fields) in REQUIRED {
        for &field in fields {
            let scratch = Scratch::of(name);
            scratch.edit_json("config.json", |json| {
                json.shift_remove(field).expect("it was there");
            });
            refuses!(scratch.open(), Error::MissingField { field: found, .. } if found == field);
        }
    }
}

#[test]
fn a_size_no_model_can_have_is_named() {
    let optional = [
        ("llama", "num_key_value_heads"),
        ("llama", "head_dim"),
        ("llama", "max_position_embeddings"),
        ("mistral", "sliding_window"),
        ("qwen2-window", "sliding_window"),
        ("gpt2", "n_inner"),
        ("gpt2", "n_positions"),
    ];
    let required = REQUIRED.iter().flat_map(|&(name, fields)| fields.iter().map(move |&field| (name, field)));
    for (name, field) in required.chain(optional) {
        let scratch = Scratch::of(name);
        for value in
            [json!(0), json!(-1), json!(1_u64 << 40), json!(u64::MAX), json!(3.5), json!("32"), json!([32])]
        {
            let text = value.to_string();
            scratch.set(field, value);
            refuses!(
                scratch.open(),
                Error::BadField { field: found, found: shown, .. } if found == field && *shown == text
            );
        }
    }
}

/// A size may be as large, but a table of so many tensors would fill the memory.
#[test]
fn a_billion_layers_or_experts_are_refused_before_anything_is_made_for_them() {
    for (name, field) in [
        ("gpt2", "n_layer"),
        ("llama", "num_hidden_layers"),
        ("mixtral", "num_hidden_layers"),
        ("mixtral", "num_local_experts"),
    ] {
        let scratch = Scratch::of(name);
        scratch.set(field, 1_000_000_000);
        refuses!(
            scratch.open(),
            Error::BadField { field: found, expected, .. } if found == field && expected.starts_with("at most")
        );
    }
    let scratch = Scratch::of("mixtral");
    scratch.set("num_hidden_layers", 10_000);
    scratch.set("num_local_experts", 10_000);
    refuses!(scratch.open(), Error::BadField { field, .. } if field == "num_local_experts");
}

#[test]
fn sizes_that_only_a_giant_has_do_not_fit_the_weights() {
    for (name, field) in [
        ("llama", "hidden_size"),
        ("llama", "vocab_size"),
        ("llama", "intermediate_size"),
        ("gpt2", "n_positions"),
        ("gpt2", "n_inner"),
    ] {
        let scratch = Scratch::of(name);
        scratch.set(field, (1_u64 << 31) - 2);
        refuses!(scratch.open(), Error::Shape { .. });
    }
}

#[test]
fn sizes_that_are_none_together_are_refused_whatever_each_is_alone() {
    let scratch = Scratch::of("llama");
    for field in ["hidden_size", "intermediate_size"] {
        scratch.set(field, (1_u64 << 31) - 2);
    }
    refuses!(scratch.open(), Error::Sizes { what: "a number of weights", .. });
    // A dynamic RoPE stretches the context by a factor of any size.
    let scratch = Scratch::of("llama-dynamic");
    scratch.set("rope_scaling", json!({ "rope_type": "dynamic", "factor": 1e300 }));
    refuses!(scratch.open(), Error::Sizes { what: "a context", .. });
}

#[test]
fn more_layers_than_the_weights_have_are_missing_tensors_and_fewer_are_unused() {
    let scratch = Scratch::of("llama");
    scratch.set("num_hidden_layers", 4);
    refuses!(scratch.open(), Error::MissingTensors { keys, .. }
        if keys.len() == 9 && keys.iter().all(|key| key.starts_with("model.layers.3.")));
    scratch.set("num_hidden_layers", 2);
    let model = scratch.open().expect("two of three layers");
    assert_eq!(model.unused().len(), 9);
    assert!(model.unused().iter().all(|key| key.starts_with("model.layers.2.")));
}

#[test]
fn heads_that_do_not_divide_are_refused() {
    let scratch = Scratch::of("llama");
    for heads in [3, 8] {
        scratch.set("num_key_value_heads", heads);
        refuses!(scratch.open(), Error::BadField { field, expected, .. }
            if field == "num_key_value_heads" && expected.contains("divisor of num_attention_heads = 4"));
    }
    let scratch = Scratch::of("gpt2");
    scratch.set("n_head", 5);
    refuses!(scratch.open(), Error::BadField { field, .. } if field == "n_head");
    let scratch = Scratch::of("mixtral");
    scratch.set("num_experts_per_tok", 5);
    refuses!(scratch.open(), Error::BadField { field, .. } if field == "num_experts_per_tok");
}

#[test]
fn a_head_that_cannot_be_rotated_is_refused() {
    let scratch = Scratch::of("llama");
    for d_head in [1, 15] {
        scratch.set("head_dim", d_head);
        refuses!(scratch.open(), Error::BadField { field, .. } if field == "head_dim");
    }
    // More heads than numbers to share out.
    scratch.set("head_dim", Value::Null);
    scratch.set("num_attention_heads", 64);
    refuses!(scratch.open(), Error::BadField { field, .. } if field == "head_dim");
}

#[test]
fn a_rope_of_an_unknown_kind_or_without_its_factors_is_refused() {
    let scratch = Scratch::of("llama");
    for kind in ["ntk", "mrope", ""] {
        scratch.set("rope_scaling", json!({ "type": kind, "factor": 2.0 }));
        refuses!(scratch.open(), Error::BadField { field, found, .. }
            if field == "rope_scaling" && found.trim_matches('"') == kind);
    }
    for kind in ["longrope", "su"] {
        scratch.set("rope_scaling", json!({ "type": kind, "long_factor": [1.0] }));
        refuses!(scratch.open(), Error::MissingField { field, .. } if field == "short_factor");
    }
    for kind in ["linear", "dynamic", "llama3"] {
        scratch.set("rope_scaling", json!({ "rope_type": kind }));
        refuses!(scratch.open(), Error::MissingField { field, .. } if field == "factor");
        for factor in [json!(0), json!(-2.0), json!("2")] {
            scratch.set("rope_scaling", json!({ "rope_type": kind, "factor": factor }));
            refuses!(scratch.open(), Error::BadField { field, .. } if field == "factor");
        }
    }
    for other in [json!("linear"), json!(2), json!([])] {
        scratch.set("rope_scaling", other);
        refuses!(scratch.open(), Error::BadField { field, .. } if field == "rope_scaling");
    }
    scratch.set("rope_scaling", Value::Null);
    for theta in [json!(0), json!(-1), json!("10000")] {
        scratch.set("rope_theta", theta);
        refuses!(scratch.open(), Error::BadField { field, .. } if field == "rope_theta");
    }
}

#[test]
fn rope_parameters_of_transformers_5_stand_before_the_older_fields() {
    let scratch = Scratch::of("llama");
    scratch.set("rope_parameters", json!({ "rope_type": "linear", "factor": 4.0, "rope_theta": 77.0 }));
    let model = scratch.open().expect("a model");
    let rope = model.config().rope(0).expect("a rope");
    assert_eq!((rope.theta, &rope.scaling), (77.0, &RopeScaling::Linear { factor: 4.0 }));
}

#[test]
fn fields_of_another_kind_are_refused() {
    for (name, field, value) in [
        ("llama", "hidden_act", json!("mish")),
        ("llama", "hidden_act", json!(3)),
        ("llama", "rms_norm_eps", json!(0)),
        ("llama", "rms_norm_eps", json!("1e-5")),
        ("llama", "attention_bias", json!("yes")),
        ("llama", "tie_word_embeddings", json!(1)),
        ("qwen2-window", "use_sliding_window", json!(8)),
        ("qwen2-window", "layer_types", json!("sliding_attention")),
        ("gpt2", "activation_function", json!("")),
        ("gpt2", "scale_attn_weights", json!(false)),
        ("gpt2", "scale_attn_by_inverse_layer_idx", json!(true)),
    ] {
        let scratch = Scratch::of(name);
        scratch.set(field, value);
        refuses!(scratch.open(), Error::BadField { field: found, .. } if found == field);
    }
}

#[test]
fn a_long_value_is_shown_in_part() {
    let scratch = Scratch::of("llama");
    scratch.set("hidden_act", "é".repeat(1000));
    refuses!(scratch.open(), Error::BadField { found, .. } if found.chars().count() == 60 && found.ends_with("..."));
}

#[test]
fn layer_types_say_which_layers_have_a_window() {
    let scratch = Scratch::of("qwen2-window");
    scratch.set("layer_types", json!(["sliding_attention", "full_attention", "sliding_attention"]));
    let model = scratch.open().expect("a model");
    let windows: Vec<_> = model.config().layers.iter().map(|layer| layer.window).collect();
    assert_eq!(windows, [Some(8), None, Some(8)]);
    assert_eq!(model.config().head, HeadKind::Tied);
}

#[test]
fn a_context_cannot_be_stretched_by_less_than_one() {
    let scratch = Scratch::of("llama-dynamic");
    scratch.set("rope_scaling", json!({ "rope_type": "dynamic", "factor": 0.01 }));
    refuses!(scratch.open(), Error::BadField { field, .. } if field == "factor");
}

#[test]
fn widths_whose_products_would_overflow_are_refused() {
    let scratch = Scratch::of("llama");
    scratch.set("num_attention_heads", 1 << 30);
    scratch.set("num_key_value_heads", 1 << 30);
    scratch.set("head_dim", (1u64 << 31) - 2);
    refuses!(scratch.open(), Error::BadField { field, .. } if field == "head_dim");
    let scratch = Scratch::of("gpt2");
    scratch.set("n_embd", 1 << 30);
    refuses!(scratch.open(), Error::BadField { field, .. } if field == "n_embd");
}
