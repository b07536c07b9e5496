//! What is written is what was converted, bit for bit, and nothing else is left behind.

mod failures;
mod layout;
mod methods;

use std::path::{Path, PathBuf};

use handlers::{Dtype, Error, Existing, FolderPlan, Model, Output, Registry, Written, write_folder};
use mla_core::{LayerSlot, Patch, Slot, WeightMap, WeightSource};
use serde_json::Value;

use crate::conversion::{exact, exact_where, random, section};
use crate::scratch::{Scratch, read_tensors};
use crate::twin::{Golden, folder, gap, load, logits, open, twins};

fn plan<'a>(donor: &'a Model, factors: &'a WeightMap) -> FolderPlan<'a> {
    FolderPlan {
        donor,
        section: section(factors),
        factors,
        dtype: None,
        extra: Vec::new(),
        max_shard_bytes: u64::MAX,
    }
}

fn write(plan: &FolderPlan<'_>, out: &Path) -> Result<Written, Error> {
    write_folder(plan, Output::prepare(out, Existing::Keep, plan.donor.folder())?, &|_, _| {})
}

fn reopen(path: &Path) -> Model {
    Model::open(path, &Registry::builtin()).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A place for an output folder that does not exist yet.
fn place(scratch: &Scratch) -> PathBuf {
    scratch.path("converted")
}

/// Writes a plan into a fresh place and opens it again.
fn written(scratch: &Scratch, plan: &FolderPlan<'_>) -> Model {
    write(plan, &place(scratch)).expect("it is written");
    reopen(&place(scratch))
}

fn prompt(name: &str) -> Vec<u32> {
    Golden::of(name).ids("prefill.ids").remove(0)
}

/// The peer's folders, loaded as its page says, have other logits than what was saved.
#[test]
fn a_written_folder_gives_the_same_bits() {
    for name in twins() {
        let donor = open(name);
        let ids = prompt(name);
        let d_kv = donor.config().d_kv();
        for factors in [exact(&donor), random(&donor, d_kv / 4, d_kv / 2, 3), exact_where(&donor, |l| l > 0)]
        {
            let scratch = Scratch::empty();
            let model = written(&scratch, &plan(&donor, &factors));
            assert_eq!(model.config(), factors.config(), "{name}");
            assert_eq!(model.section(), Some(&section(&factors)), "{name}");
            assert_eq!(model.unused(), [""; 0], "{name}");
            let in_memory = logits(&load(&factors.over(&donor)), &ids);
            assert_eq!(logits(&load(&model), &ids), in_memory, "{name}");
        }
    }
}

#[test]
fn what_a_conversion_does_not_touch_is_byte_for_byte_the_donors() {
    for name in twins() {
        let donor = open(name);
        let factors = exact(&donor);
        let scratch = Scratch::empty();
        written(&scratch, &plan(&donor, &factors));
        let before = read_tensors(&folder(name).join("model.safetensors"));
        let after = read_tensors(&place(&scratch).join("model.safetensors"));
        let normed = donor.config().layers.iter().any(|layer| layer.qk_norm.is_some());
        let fused = [".c_attn.weight", ".qkv_proj.weight", ".query_key_value.weight"];
        let replaced = |key: &str| {
            let keys = key.ends_with(".k_proj.weight") && !normed;
            keys || key.ends_with(".v_proj.weight") || fused.iter().any(|end| key.ends_with(end))
        };
        // Masks and frequencies are no weights, and what sees is not used.
        let buffers = [".attn.bias", ".attention.bias", ".masked_bias", ".inv_freq"];
        let eyes = ["vision_tower.", "multi_modal_projector."];
        for (key, tensor) in &before {
            let unused =
                buffers.iter().any(|end| key.ends_with(end)) || eyes.iter().any(|m| key.starts_with(m));
            let gone = replaced(key) || unused;
            // Of a model that sees, the folder is its text model alone.
            let key = &key.replace("language_model.model.", "model.");
            assert_eq!(after.get(key), Some(tensor).filter(|_| !gone), "{name}, {key}");
        }
        let known =
            |key: &String| before.contains_key(key) || before.contains_key(&format!("language_model.{key}"));
        assert!(after.keys().all(|key| known(key) || key.contains(".mla.")), "{name}");
        for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
            let bytes = |folder: &Path| std::fs::read(folder.join(file)).expect("a file");
            assert_eq!(bytes(&place(&scratch)), bytes(&folder(name)), "{name}, {file}");
        }
    }
}

#[test]
fn config_json_is_the_donors_with_a_section_more() {
    for name in twins() {
        let donor = open(name);
        let factors = exact_where(&donor, |layer| layer == 0);
        let scratch = Scratch::empty();
        let model = written(&scratch, &plan(&donor, &factors));
        let mut fields = model.json().fields().clone();
        let section = fields.shift_remove("mla").expect("a section");
        let theirs = donor.json().fields();
        match theirs.get("text_config").and_then(Value::as_object) {
            None => assert_eq!(&fields, theirs, "{name}"),
            // The text model alone, under its own type.
            Some(text) => {
                assert!(
                    text.iter().all(|(field, value)| fields.get(field) == Some(value)),
                    "{name}: {fields:?}"
                );
                assert_eq!(fields["architectures"], serde_json::json!(["Gemma3ForCausalLM"]));
                assert_eq!(fields["eos_token_id"], theirs["eos_token_id"]);
                assert!(fields.get("vision_config").is_none() && fields.get("text_config").is_none());
            }
        }
        let d_kv = donor.config().d_kv();
        assert_eq!(section["layers"][0], serde_json::json!({ "d_latent_k": d_kv, "d_latent_v": d_kv }));
        assert!(section["layers"][1].is_null(), "{name}");
    }
}

#[test]
fn a_type_asked_for_is_the_type_of_every_tensor() {
    for name in ["gpt2", "llama-bias", "mistral", "mixtral"] {
        let donor = open(name);
        let ids = prompt(name);
        let factors = exact(&donor);
        let f32_logits = logits(&load(&donor), &ids);
        for (dtype, torch, bound) in
            [(Dtype::F32, "float32", 0.0), (Dtype::F16, "float16", 0.05), (Dtype::Bf16, "bfloat16", 0.4)]
        {
            let scratch = Scratch::empty();
            let model = written(&scratch, &FolderPlan { dtype: Some(dtype), ..plan(&donor, &factors) });
            assert_eq!(model.dtype().expect("a float"), dtype);
            for (key, tensor) in read_tensors(&place(&scratch).join("model.safetensors")) {
                let bytes = tensor.shape.iter().product::<usize>() * dtype.bytes();
                assert_eq!(tensor.bytes.len(), bytes, "{name}, {key}");
            }
            assert_eq!(model.json().text_or("torch_dtype", "").expect("a text"), torch);
            assert!(model.json().get("dtype").is_none(), "{name}: one field says it");
            let gap = gap(&logits(&load(&model), &ids), &f32_logits);
            assert!(gap <= bound, "{name} in {dtype:?}: {gap}");
        }
    }
}

#[test]
fn a_converted_folder_is_converted_again_as_a_donor_is() {
    let donor = open("qwen2");
    let first = exact_where(&donor, |layer| layer == 0);
    let scratch = Scratch::empty();
    let once = written(&scratch, &plan(&donor, &first));
    let all = exact(&donor);
    let mut second = WeightMap::new(all.config().clone());
    for layer in 1..donor.config().n_layers() {
        for slot in [LayerSlot::DownKey, LayerSlot::UpKey, LayerSlot::DownValue, LayerSlot::UpValue] {
            let factor = all.get(Slot::Layer(layer, slot)).expect("a factor");
            second.insert_layer(layer, slot, factor.clone());
        }
    }
    let twice = Scratch::empty();
    let model = written(&twice, &plan(&once, &second));
    let ids = prompt("qwen2");
    assert_eq!(logits(&load(&model), &ids), logits(&load(&all.over(&donor)), &ids));
    assert_eq!(model.config().compression_ratio(), 1.0);
}

#[test]
fn written_is_what_was_written_and_progress_ends_there() {
    let donor = open("gpt2");
    let factors = random(&donor, 8, 8, 4);
    let scratch = Scratch::empty();
    let heard = std::sync::Mutex::new(Vec::new());
    let on_bytes = |done, all| heard.lock().expect("no panic").push((done, all));
    let output = Output::prepare(&place(&scratch), Existing::Keep, donor.folder()).expect("a place");
    let report = write_folder(&plan(&donor, &factors), output, &on_bytes).expect("it is written");
    let tensors = read_tensors(&place(&scratch).join("model.safetensors"));
    assert_eq!(report.tensors, tensors.len());
    assert_eq!(report.weight_bytes, tensors.values().map(|t| t.bytes.len() as u64).sum::<u64>());
    let heard = heard.into_inner().expect("no panic");
    assert!(heard.is_sorted() && heard.iter().all(|&(_, all)| all == report.weight_bytes));
    assert_eq!(heard.last(), Some(&(report.weight_bytes, report.weight_bytes)));
}

#[test]
fn further_files_are_written_beside_the_weights() {
    let donor = open("llama");
    let factors = exact(&donor);
    let scratch = Scratch::empty();
    let extra = vec![
        ("README.md".to_owned(), b"# card".to_vec()),
        ("shrink.json".to_owned(), b"{\"a\": 1}".to_vec()),
    ];
    written(&scratch, &FolderPlan { extra, ..plan(&donor, &factors) });
    assert_eq!(std::fs::read(place(&scratch).join("README.md")).expect("a card"), b"# card");
    let record = std::fs::read(place(&scratch).join("shrink.json")).expect("provenance");
    let record: serde_json::Value = serde_json::from_slice(&record).expect("JSON");
    let mut files: Vec<String> = std::fs::read_dir(place(&scratch))
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
        .collect();
    files.sort();
    assert_eq!(
        record,
        serde_json::json!({ "a": 1, "files": files }),
        "what was given, and the list of files"
    );
}
