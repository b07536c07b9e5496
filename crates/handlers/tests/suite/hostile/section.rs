//! The `mla` section of `config.json`: of another version, malformed, or of another model.

use handlers::Error;
use mla_core::WeightSource;
use serde_json::{Value, json};

use super::refuses;
use crate::scratch::Scratch;

fn split(k: impl Into<Value>, v: impl Into<Value>) -> Value {
    json!({ "d_latent_k": k.into(), "d_latent_v": v.into() })
}

fn joint(width: impl Into<Value>) -> Value {
    json!({ "d_latent": width.into() })
}

/// An entry with one field more.
fn with(mut entry: Value, field: &str, value: impl Into<Value>) -> Value {
    entry[field] = value.into();
    entry
}

fn section(layers: Vec<Value>) -> Value {
    json!({ "version": 1, "method": "separate", "objective": "mse", "layers": layers })
}

/// A section over the three layers of `llama`, whose last layer is `entry`.
fn ending_in(entry: Value) -> Value {
    section(vec![split(8, 8), Value::Null, entry])
}

#[test]
fn a_section_that_is_malformed_or_of_another_model_is_refused() {
    let scratch = Scratch::of("llama");
    let good = || split(8, 8);
    for (bad, expected) in [
        (json!(7), "a valid section"),
        (json!([]), "a valid section"),
        (json!({}), "a valid section"),
        (with(section(vec![good(); 3]), "version", 2), "version 1"),
        (json!({ "version": 2, "layers": "in another form" }), "version 1"),
        (with(section(vec![good(); 3]), "version", "1"), "a valid section"),
        (with(section(vec![good(); 3]), "version", -1), "a valid section"),
        (section(vec![good(); 2]), "3 layers"),
        (section(vec![good(); 4]), "3 layers"),
        (section(vec![]), "3 layers"),
        (ending_in(split(-1, 8)), "a valid section"),
        (ending_in(split(8.5, 8)), "a valid section"),
        (ending_in(json!({})), "d_latent_k and d_latent_v, or d_latent alone"),
        (ending_in(json!({ "d_latent_k": 8 })), "d_latent_k and d_latent_v, or d_latent alone"),
        (
            ending_in(json!({ "d_latent_v": 8, "d_latent": 8 })),
            "d_latent_k and d_latent_v, or d_latent alone",
        ),
        (ending_in(with(good(), "d_latent", 16)), "d_latent_k and d_latent_v, or d_latent alone"),
        (ending_in(with(good(), "rank", 16)), "unknown field `rank`"),
        (ending_in(with(good(), "up_of", -1)), "a valid section"),
        (ending_in(with(good(), "reads_from", "0")), "a valid section"),
        (with(ending_in(good()), "window", -1), "a valid section"),
        (with(ending_in(good()), "store_original_weights", 1), "a valid section"),
    ] {
        scratch.set("mla", bad.clone());
        refuses!(
            scratch.open(),
            Error::BadField { path, field, expected: found, .. }
                if path.ends_with("config.json") && field == "mla" && found.contains(expected)
        );
    }
}

#[test]
fn a_layer_that_cannot_be_is_refused_by_its_place() {
    let scratch = Scratch::of("llama");
    for (entry, expected) in [
        (split(0, 8), "from 1 to d_kv = 32"),
        (split(8, 0), "from 1 to d_kv = 32"),
        (split(8, 33), "from 1 to d_kv = 32"),
        (split(8, u64::MAX), "from 1 to d_kv = 32"),
        (joint(0), "from 1 to 2 · d_kv = 64"),
        (joint(65), "from 1 to 2 · d_kv = 64"),
        (joint(u64::MAX), "from 1 to 2 · d_kv = 64"),
        (with(split(8, 8), "reads_from", 3), "reads_from of at most 2"),
        (with(joint(8), "reads_from", u64::MAX), "reads_from of at most 2"),
        (with(split(8, 8), "up_of", 3), "up_of of at most 2"),
        (with(split(8, 8), "up_of", u64::MAX), "up_of of at most 2"),
        (with(split(8, 8), "up_of", 1), "which layer 1 has not"),
        (with(split(8, 7), "up_of", 0), "the latent widths of layer 0"),
        (with(joint(16), "up_of", 0), "the latent widths of layer 0"),
    ] {
        scratch.set("mla", ending_in(entry.clone()));
        refuses!(
            scratch.open(),
            Error::BadField { path, field, expected: allowed, found }
                if path.ends_with("config.json")
                    && field == "mla.layers[2]"
                    && allowed.contains(expected)
                    && found.starts_with("{\"d_latent")
        );
    }
    let chain = vec![split(8, 8), with(split(8, 8), "up_of", 0), with(split(8, 8), "up_of", 1)];
    scratch.set("mla", section(chain));
    refuses!(scratch.open(), Error::BadField { field, expected, .. }
        if field == "mla.layers[2]" && expected.contains("a W_up of its own, which layer 1 has not"));
}

#[test]
fn a_record_that_cannot_be_is_refused_by_its_name() {
    let scratch = Scratch::of("llama");
    for (field, value) in [("group", 0), ("group_size", 0), ("d_rope", 33)] {
        scratch.set("mla", with(ending_in(split(8, 8)), field, value));
        refuses!(scratch.open(), Error::BadField { field: found, .. } if *found == format!("mla.{field}"));
    }
}

#[test]
fn a_section_that_fits_names_the_tensors_it_misses() {
    let scratch = Scratch::of("llama");
    for (entry, missing) in [
        (Value::Null, 4),
        (split(8, 8), 8),
        (with(split(8, 8), "up_of", 2), 8),
        (with(split(8, 8), "up_of", 0), 6),
        (with(split(8, 8), "reads_from", 2), 10),
        (joint(64), 6),
        (with(joint(64), "reads_from", 0), 8),
        (with(joint(64), "reads_from", 1), 6),
    ] {
        scratch.set("mla", ending_in(entry.clone()));
        refuses!(scratch.open(), Error::MissingTensors { keys, .. }
            if keys.len() == missing && keys[0] == "model.layers.0.self_attn.mla.w_down_k");
    }
}

#[test]
fn latent_tensors_of_another_shape_are_refused() {
    let scratch = Scratch::of("llama");
    // Layer 2 has one latent, and reads that of layer 0 (layer 1 has none).
    scratch.set("mla", ending_in(with(joint(5), "reads_from", 0)));
    let tensors: [(&str, [usize; 2]); 8] = [
        ("0.self_attn.mla.w_down_k", [8, 32]),
        ("0.self_attn.mla.w_up_k", [32, 8]),
        ("0.self_attn.mla.w_down_v", [8, 32]),
        ("0.self_attn.mla.w_up_v", [32, 8]),
        ("2.self_attn.mla.w_down", [5, 32]),
        ("2.self_attn.mla.w_up", [64, 5]),
        ("2.self_attn.mla.w_cross_k", [32, 16]),
        ("2.self_attn.mla.w_cross_v", [32, 16]),
    ];
    let write = |wrong: Option<usize>| {
        scratch.edit_weights(|weights| {
            for (place, (name, [rows, cols])) in tensors.iter().enumerate() {
                let cols = cols + usize::from(wrong == Some(place));
                let raw = crate::scratch::Raw::f32(&[*rows, cols], &vec![0.5; rows * cols]);
                weights.insert(format!("model.layers.{name}"), raw);
            }
        });
    };
    write(None);
    assert_eq!(scratch.open().expect("a model").config().cached_numbers(2), 5);
    for (wrong, (name, shape)) in tensors.iter().enumerate() {
        write(Some(wrong));
        refuses!(scratch.open(), Error::Shape { key, expected, .. }
            if *key == format!("model.layers.{name}") && expected == shape);
    }
}
