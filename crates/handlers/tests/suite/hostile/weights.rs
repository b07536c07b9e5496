//! `model.safetensors`: not there, damaged, or of another model.

use burn::tensor::Device;
use handlers::Error;
use mla_core::{Decoder, LayerSlot, Part, Slot, WeightSource};
use proptest::prelude::*;
use safetensors::Dtype;
use serde_json::json;

use super::refuses;
use crate::scratch::{Raw, Scratch, raw_file};
use crate::twin::{Golden, load, logits};

const KEY: &str = "model.layers.1.self_attn.v_proj.weight";

#[test]
fn a_folder_without_weights_is_named() {
    let scratch = Scratch::of("llama");
    scratch.remove("model.safetensors");
    refuses!(scratch.open(), Error::NoWeights { others, .. } if others.is_empty());
}

#[test]
fn weights_of_another_format_are_named_with_what_to_do() {
    let scratch = Scratch::of("llama");
    scratch.remove("model.safetensors");
    scratch.write("pytorch_model.bin", "PK");
    scratch.write("model.Q4_K_M.gguf", "GGUF");
    let error = scratch.open().expect_err("no safetensors");
    assert!(
        matches!(&error, Error::NoWeights { others, .. } if *others == ["model.Q4_K_M.gguf", "pytorch_model.bin"])
    );
    let hint = error.hint().expect("a hint");
    assert!(hint.contains("pytorch_model.bin") && hint.contains("safetensors"), "{hint}");
}

#[test]
fn a_file_too_short_for_its_header_is_refused() {
    let scratch = Scratch::of("llama");
    let whole = std::fs::read(scratch.path("model.safetensors")).expect("the weights");
    for bytes in [
        Vec::new(),
        vec![0; 7],
        (1_u64 << 63).to_le_bytes().to_vec(),
        u64::MAX.to_le_bytes().to_vec(),
        [&1000_u64.to_le_bytes()[..], b"{}"].concat(),
        whole[..100].to_vec(),
        whole[..whole.len() - 1].to_vec(),
        [&whole[..], b"x"].concat(),
    ] {
        scratch.write("model.safetensors", bytes);
        refuses!(scratch.open(), Error::BadSafetensors { path, .. } if path.ends_with("model.safetensors"));
    }
}

#[test]
fn a_header_that_is_no_table_of_tensors_is_refused() {
    let scratch = Scratch::of("llama");
    let deep = "[".repeat(100_000);
    let headers: [&[u8]; 9] = [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{\"a\": 1}",
        b"{\"a\": {\"dtype\": \"F32\", \"shape\": [1]}}",
        b"{\"a\": {\"dtype\": \"F99\", \"shape\": [1], \"data_offsets\": [0, 4]}}",
        &[0xff, 0xfe, 0x00, 0x9f],
        deep.as_bytes(),
    ];
    for header in headers {
        scratch.write("model.safetensors", raw_file(header, &[0; 4]));
        refuses!(scratch.open(), Error::BadSafetensors { .. });
    }
}

#[test]
fn offsets_that_do_not_tile_the_file_are_refused() {
    let scratch = Scratch::of("llama");
    let entry = |shape: serde_json::Value, start: u64, end: u64| json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] });
    for (what, header) in [
        ("overlap", json!({ "a": entry(json!([2]), 0, 8), "b": entry(json!([2]), 4, 12) })),
        ("the same place", json!({ "a": entry(json!([3]), 0, 12), "b": entry(json!([3]), 0, 12) })),
        ("a gap", json!({ "a": entry(json!([1]), 0, 4), "b": entry(json!([1]), 8, 12) })),
        ("a gap at the start", json!({ "a": entry(json!([2]), 4, 12) })),
        ("a gap at the end", json!({ "a": entry(json!([2]), 0, 8) })),
        ("beyond the end", json!({ "a": entry(json!([4]), 0, 16) })),
        ("backwards", json!({ "a": entry(json!([3]), 12, 0) })),
        ("fewer bytes than the shape", json!({ "a": entry(json!([4]), 0, 12) })),
        ("more bytes than the shape", json!({ "a": entry(json!([2]), 0, 12) })),
        ("a shape that overflows", json!({ "a": entry(json!([u64::MAX, 2]), 0, 12) })),
        ("a negative size", json!({ "a": entry(json!([-3]), 0, 12) })),
        ("the largest offsets", json!({ "a": entry(json!([3]), u64::MAX - 12, u64::MAX) })),
    ] {
        scratch.write("model.safetensors", raw_file(header.to_string().as_bytes(), &[0; 12]));
        let error = scratch.open().expect_err(what);
        assert!(matches!(error, Error::BadSafetensors { .. }), "{what}: {error:?}");
    }
}

/// Eight tensors of 2^61 − 1 bytes each: their sum, with the header before it, is beyond what 64 bits count.
#[test]
fn offsets_whose_sum_overflows_are_refused() {
    let scratch = Scratch::of("llama");
    let size = (1_u64 << 61) - 1;
    let tensors = (0..8_u64).map(|i| {
        let entry = json!({ "dtype": "U8", "shape": [size], "data_offsets": [i * size, (i + 1) * size] });
        (format!("t{i}"), entry)
    });
    let header = serde_json::Value::Object(tensors.collect()).to_string();
    scratch.write("model.safetensors", raw_file(header.as_bytes(), b""));
    refuses!(scratch.open(), Error::BadSafetensors { .. });
}

#[test]
fn a_file_without_tensors_misses_them_all() {
    let scratch = Scratch::of("llama");
    scratch.write("model.safetensors", raw_file(b"{}", b""));
    refuses!(scratch.open(), Error::MissingTensors { keys, .. } if keys.len() == 3 + 3 * 9);
}

#[test]
fn types_that_are_no_plain_floats_are_refused() {
    let scratch = Scratch::of("llama");
    for (dtype, bytes) in [(Dtype::I32, 4), (Dtype::F64, 8), (Dtype::U8, 1), (Dtype::BOOL, 1)] {
        scratch.edit_weights(|tensors| {
            let shape = tensors[KEY].shape.clone();
            let bytes = vec![0; bytes * shape.iter().product::<usize>()];
            tensors.insert(KEY.into(), Raw { dtype, shape, bytes });
        });
        refuses!(scratch.open(), Error::UnsupportedDtype { key, found, .. }
            if key == KEY && *found == format!("{dtype:?}"));
    }
}

#[test]
fn a_weight_that_is_not_finite_is_named_when_it_is_read() {
    let slot = Slot::Layer(1, LayerSlot::Value(Part::Weight));
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let scratch = Scratch::of("llama");
        scratch.edit_weights(|tensors| tensors.get_mut(KEY).expect("a weight").set(33, value));
        let model = scratch.open().expect("opening reads no weights");
        refuses!(model.read(slot), Error::NotFinite { key, index: 33, value: found, .. }
            if key == KEY && found.to_bits() == value.to_bits());
        let error = Decoder::load(&model, &Device::flex()).expect_err("loading reads them");
        refuses!(
            Err::<(), _>(*error.downcast::<Error>().expect("our error")),
            Error::NotFinite { key, .. } if key == KEY
        );
    }
}

#[test]
fn an_embedding_row_that_is_not_finite_is_named_too() {
    let scratch = Scratch::of("llama");
    let key = "model.embed_tokens.weight";
    scratch.edit_weights(|tensors| tensors.get_mut(key).expect("a table").set(5 * 32 + 1, f32::NAN));
    let model = scratch.open().expect("opening reads no weights");
    let rows = |ids: &[u32]| model.rows(Slot::TokenEmbedding, ids, &Device::flex());
    assert!(rows(&[4, 6]).is_ok());
    let error = rows(&[4, 5]).expect_err("row 5 is damaged");
    let error = error.downcast::<Error>().expect("our error");
    assert!(matches!(&*error, Error::NotFinite { key: found, .. } if found == key), "{error:?}");
}

#[test]
fn tensors_that_are_empty_are_told_with_where_that_comes_from() {
    let scratch = Scratch::of("llama");
    scratch.edit_weights(|tensors| {
        for raw in tensors.values_mut().filter(|raw| raw.shape.len() == 2) {
            *raw = Raw::f32(&[0], &[]);
        }
    });
    let error = scratch.open().expect_err("there are no weights");
    assert!(matches!(&error, Error::EmptyTensors { keys, .. } if keys.len() == 2 + 3 * 7), "{error:?}");
    assert!(error.hint().is_some_and(|hint| hint.contains("ZeRO-3") && hint.contains("zero_to_fp32")));
    let scratch = Scratch::of("llama");
    scratch.edit_weights(|tensors| drop(tensors.insert(KEY.into(), Raw::f32(&[0, 32], &[]))));
    refuses!(scratch.open(), Error::EmptyTensors { keys, .. } if *keys == [KEY]);
}

#[test]
fn missing_tensors_are_all_named() {
    let scratch = Scratch::of("llama");
    scratch.edit_weights(|tensors| {
        tensors.remove(KEY);
        tensors.remove("model.norm.weight");
    });
    refuses!(scratch.open(), Error::MissingTensors { keys, .. } if *keys == ["model.norm.weight", KEY]);
}

#[test]
fn a_tensor_of_another_shape_is_named_with_both() {
    for shape in [vec![32, 31], vec![64, 32], vec![32 * 32], vec![1, 32, 32], vec![]] {
        let scratch = Scratch::of("llama");
        scratch.edit_weights(|tensors| {
            let zeros = vec![0.0; shape.iter().product()];
            tensors.insert(KEY.into(), Raw::f32(&shape, &zeros));
        });
        refuses!(scratch.open(), Error::Shape { key, expected, found, .. }
            if key == KEY && *expected == [32, 32] && *found == shape);
    }
}

#[test]
fn a_tied_head_that_is_written_out_changes_nothing() {
    let scratch = Scratch::of("qwen2");
    let ids = &Golden::of("qwen2").ids("prefill.ids")[0];
    let before = logits(&load(&scratch.open().expect("a model")), ids);
    scratch.edit_weights(|tensors| {
        let head = tensors["model.embed_tokens.weight"].clone();
        tensors.insert("lm_head.weight".into(), head);
        tensors.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), Raw::f32(&[4], &[1.0; 4]));
    });
    let model = scratch.open().expect("a model");
    assert_eq!(model.unused(), [""; 0]);
    assert_eq!(logits(&load(&model), ids), before);
}

#[test]
fn a_tensor_nobody_needs_is_reported() {
    let scratch = Scratch::of("llama");
    scratch.edit_weights(|tensors| {
        tensors.insert("model.layers.0.self_attn.q_norm.weight".into(), Raw::f32(&[16], &[1.0; 16]));
    });
    let model = scratch.open().expect("a model");
    assert_eq!(model.unused(), ["model.layers.0.self_attn.q_norm.weight"]);
}

#[test]
fn a_bias_the_configuration_does_not_know_is_reported() {
    let scratch = Scratch::of("llama-bias");
    scratch.set("attention_bias", false);
    let model = scratch.open().expect("a model");
    assert_eq!(model.unused().len(), 4 * 3, "q, k, v and o of three layers");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_byte_of_a_header_can_make_opening_panic(place in 0_usize..4000, byte: u8) {
        let scratch = Scratch::of("llama");
        let mut bytes = std::fs::read(scratch.path("model.safetensors")).expect("the weights");
        bytes[place] = byte;
        scratch.write("model.safetensors", bytes);
        if let Ok(model) = scratch.open() {
            drop(Decoder::load(&model, &Device::flex()));
        }
    }

    #[test]
    fn no_bytes_at_all_can_make_opening_panic(header in proptest::collection::vec(any::<u8>(), 0..64), claimed: u64) {
        let scratch = Scratch::of("llama");
        let lies = [&claimed.to_le_bytes()[..], &header].concat();
        for bytes in [lies, raw_file(&header, b""), header] {
            scratch.write("model.safetensors", bytes);
            prop_assert!(scratch.open().is_err());
        }
    }
}
