//! Which tensors a folder has, under which names, in which files.

use handlers::{FolderPlan, MlaSection};
use mla_core::decoder::{AttentionKind, LatentWidth};
use mla_core::{LayerSlot, Matrix, Part, Patch, Slot, WeightSource};
use proptest::prelude::*;

use super::{place, plan, prompt, reopen, write, written};
use crate::conversion::{exact, exact_where, random, section};
use crate::scratch::{Raw, Scratch, read_tensors};
use crate::twin::{folder, load, logits, open, twins};

fn keys(scratch: &Scratch) -> Vec<String> {
    read_tensors(&place(scratch).join("model.safetensors")).into_keys().collect()
}

#[test]
fn latent_tensors_stand_where_k_and_v_stood() {
    let donor = open("llama");
    let factors = random(&donor, 6, 10, 1);
    let scratch = Scratch::empty();
    written(&scratch, &plan(&donor, &factors));
    let tensors = read_tensors(&place(&scratch).join("model.safetensors"));
    let (d_model, d_kv) = (donor.config().d_model, donor.config().d_kv());
    for layer in 0..donor.config().n_layers() {
        let base = format!("model.layers.{layer}.self_attn");
        for (name, slot, shape) in [
            ("w_down_k", LayerSlot::DownKey, [6, d_model]),
            ("w_up_k", LayerSlot::UpKey, [d_kv, 6]),
            ("w_down_v", LayerSlot::DownValue, [10, d_model]),
            ("w_up_v", LayerSlot::UpValue, [d_kv, 10]),
        ] {
            let expected = Raw::f32(&shape, &factors.get(Slot::Layer(layer, slot)).expect("a factor").data);
            assert_eq!(tensors[&format!("{base}.mla.{name}")], expected, "layer {layer}, {name}");
        }
        assert!(tensors.contains_key(&format!("{base}.q_proj.weight")));
        for gone in ["k_proj", "v_proj"] {
            assert!(!tensors.contains_key(&format!("{base}.{gone}.weight")));
        }
    }
}

#[test]
fn biases_of_k_and_v_stay_under_their_names() {
    let donor = open("qwen2");
    let scratch = Scratch::empty();
    written(&scratch, &plan(&donor, &exact(&donor)));
    let keys = keys(&scratch);
    for name in ["k_proj.bias", "v_proj.bias", "mla.w_up_k"] {
        assert!(keys.contains(&format!("model.layers.2.self_attn.{name}")), "{name}");
    }
}

#[test]
fn the_query_of_a_fused_tensor_moves_and_the_fused_bias_stays() {
    let donor = open("gpt2");
    let scratch = Scratch::empty();
    let model = written(&scratch, &plan(&donor, &exact_where(&donor, |layer| layer == 1)));
    let tensors = read_tensors(&place(&scratch).join("model.safetensors"));
    assert!(tensors.contains_key("h.0.attn.c_attn.weight"), "layer 0 keeps its attention");
    assert!(!tensors.keys().any(|key| key.starts_with("h.0.attn.mla.")));
    assert!(!tensors.contains_key("h.1.attn.c_attn.weight"));
    let fused = &read_tensors(&folder("gpt2").join("model.safetensors"))["h.1.attn.c_attn.weight"];
    let (fused, d) = (fused.values(), donor.config().d_model);
    // The stored matrix is `[d_in, 3 d_out]`, ours `[d_out, d_in]`.
    let expected: Vec<f32> = (0..d * d).map(|i| fused[(i % d) * 3 * d + i / d]).collect();
    assert_eq!(tensors["h.1.attn.mla.w_q"], Raw::f32(&[d, d], &expected));
    assert_eq!(tensors["h.1.attn.c_attn.bias"].shape, [3 * d]);
    let ids = prompt("gpt2");
    let exact = exact_where(&donor, |layer| layer == 1);
    assert_eq!(logits(&load(&model), &ids), logits(&load(&exact.over(&donor)), &ids));
}

#[test]
fn original_weights_are_stored_when_asked_for() {
    for name in twins() {
        let donor = open(name);
        let factors = random(&donor, 4, 4, 6);
        let scratch = Scratch::empty();
        let section = MlaSection { store_original_weights: true, ..section(&factors) };
        let model = written(&scratch, &FolderPlan { section, ..plan(&donor, &factors) });
        assert!(model.section().expect("a section").store_original_weights);
        let module = match name {
            "gpt2" => "h.1.attn",
            "gpt-neox" | "gpt-neox-sequential" => "gpt_neox.layers.1.attention",
            _ => "model.layers.1.self_attn",
        };
        let normed = donor.config().layers[1].qk_norm.is_some();
        let tensors = read_tensors(&place(&scratch).join("model.safetensors"));
        for (key, slot) in [("w_k", LayerSlot::Key(Part::Weight)), ("w_v", LayerSlot::Value(Part::Weight))] {
            let device = burn::tensor::Device::default();
            let slot = Slot::Layer(1, slot);
            let original = Matrix::from_tensor(&donor.matrix(slot, &device).expect("a projection"));
            let expected = Raw::f32(&[original.rows, original.cols], &original.data);
            let place = match normed && key == "w_k" {
                // Needed anyway, and where it was.
                true => format!("{module}.k_proj.weight"),
                false => format!("{module}.mla.{key}"),
            };
            assert_eq!(tensors[&place], expected, "{name}, {key}");
            let again = Matrix::from_tensor(&model.matrix(slot, &device).expect("the original"));
            assert_eq!(again, original, "{name}, {key}");
        }
        let ids = prompt(name);
        assert_eq!(logits(&load(&model), &ids), logits(&load(&factors.over(&donor)), &ids), "{name}");
    }
}

#[test]
fn a_patch_of_any_projection_is_written_as_the_family_stores_it() {
    for name in ["gpt2", "llama"] {
        let donor = open(name);
        let mut factors = exact(&donor);
        let (d_model, d_q) = (donor.config().d_model, donor.config().n_heads * donor.config().d_head);
        let ramp = |rows: usize, cols: usize| {
            Matrix::new(rows, cols, (0..rows * cols).map(|i| (i as f32 * 0.7).sin() * 0.2).collect())
        };
        for layer in 0..donor.config().n_layers() {
            factors.insert_layer(layer, LayerSlot::Output(Part::Weight), ramp(d_model, d_q));
            factors.insert_layer(layer, LayerSlot::Query(Part::Weight), ramp(d_q, d_model));
            factors.insert_layer(
                layer,
                LayerSlot::Up(Part::Weight),
                ramp(donor.config().layers[0].mlp.d_ff, d_model),
            );
        }
        let scratch = Scratch::empty();
        let model = written(&scratch, &plan(&donor, &factors));
        let ids = prompt(name);
        assert_eq!(logits(&load(&model), &ids), logits(&load(&factors.over(&donor)), &ids), "{name}");
    }
}

#[test]
fn kept_layers_are_null_and_the_ratio_says_so() {
    let donor = open("llama");
    let half = donor.config().d_kv() / 2;
    let all = random(&donor, half, half, 8);
    let mut config = all.config().clone();
    config.layers[0].attention = AttentionKind::Grouped;
    let mut factors = mla_core::WeightMap::new(config);
    for layer in 1..3 {
        for slot in [LayerSlot::DownKey, LayerSlot::UpKey, LayerSlot::DownValue, LayerSlot::UpValue] {
            factors.insert_layer(layer, slot, all.get(Slot::Layer(layer, slot)).expect("a factor").clone());
        }
    }
    let scratch = Scratch::empty();
    let model = written(&scratch, &plan(&donor, &factors));
    assert!(model.json().get("mla").expect("a section")["layers"][0].is_null());
    assert!(keys(&scratch).contains(&"model.layers.0.self_attn.k_proj.weight".to_owned()));
    assert_eq!(model.config().compression_ratio(), 1.5);
}

#[test]
fn a_prefix_before_every_key_is_kept() {
    let original = Scratch::of("gpt2");
    original.edit_weights(|tensors| {
        *tensors = tensors.iter().map(|(key, raw)| (format!("transformer.{key}"), raw.clone())).collect();
    });
    let donor = original.open().expect("the hub has both spellings");
    assert_eq!(donor.unused(), [""; 0]);
    let factors = exact(&donor);
    let scratch = Scratch::empty();
    let model = written(&scratch, &plan(&donor, &factors));
    assert!(keys(&scratch).iter().all(|key| key.starts_with("transformer.")));
    let ids = prompt("gpt2");
    assert_eq!(logits(&load(&model), &ids), logits(&load(&exact(&open("gpt2")).over(&donor)), &ids));
}

#[test]
#[should_panic(expected = "h.0.attn.c_attn.bias: the factor for layer 0 Key(Bias) is no whole tensor")]
fn a_patch_of_a_part_of_a_fused_tensor_is_not_lost_silently() {
    let donor = open("gpt2");
    let mut factors = exact(&donor);
    factors.insert_layer(0, LayerSlot::Key(Part::Bias), Matrix::new(1, 32, vec![0.0; 32]));
    let scratch = Scratch::empty();
    drop(write(&plan(&donor, &factors), &place(&scratch)));
}

#[test]
#[should_panic(expected = "the factor for layer 1 DownKey is no whole tensor of that shape")]
fn factors_of_other_ranks_than_the_sections_are_not_written() {
    let donor = open("llama");
    let factors = random(&donor, 4, 4, 1);
    let mut section = section(&factors);
    section.layers[1].as_mut().expect("ranks").width = LatentWidth::Split { d_latent_k: 5, d_latent_v: 4 };
    let scratch = Scratch::empty();
    drop(write(&FolderPlan { section, ..plan(&donor, &factors) }, &place(&scratch)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn shards_of_any_size_open_as_one_file_does(max_shard_bytes in 1_u64..120_000) {
        let donor = open("mixtral");
        let factors = random(&donor, 4, 8, 2);
        let (one, many) = (Scratch::empty(), Scratch::empty());
        let single = written(&one, &plan(&donor, &factors));
        let sharded = FolderPlan { max_shard_bytes, ..plan(&donor, &factors) };
        let report = write(&sharded, &place(&many)).expect("it is written");
        let model = reopen(&place(&many));
        prop_assert!(model.checkpoint().files().count() > 1);
        prop_assert!(!place(&many).join("model.safetensors").exists());
        for file in model.checkpoint().files() {
            let tensors = read_tensors(file);
            let bytes: u64 = tensors.values().map(|t| t.bytes.len() as u64).sum();
            prop_assert!(bytes <= max_shard_bytes || tensors.len() == 1, "{bytes} bytes in a shard");
        }
        prop_assert_eq!(model.checkpoint().keys().collect::<Vec<_>>(), single.checkpoint().keys().collect::<Vec<_>>());
        prop_assert_eq!(model.checkpoint().keys().count(), report.tensors);
        prop_assert_eq!(model.unused(), [""; 0]);
        let ids = prompt("mixtral");
        prop_assert_eq!(logits(&load(&model), &ids), logits(&load(&single), &ids));
    }
}
