//! `shrink convert`: what the folder it writes holds.

use safetensors::Dtype;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::folder::{Scratch, Tensors, golden};
use crate::program::{assert_close, number, shrink};
use crate::snapshot::assert_snapshot;

/// Converts a golden into `out` of a scratch folder.
fn convert(name: &str, more: &[&str]) -> Scratch {
    let scratch = Scratch::new();
    let (donor, out) = (golden(name), scratch.path("out"));
    shrink(&[&["convert", &donor, "-o", &out, "--quiet"], more].concat()).text();
    scratch
}

fn weights(scratch: &Scratch) -> Tensors {
    scratch.tensors("out/model.safetensors")
}

fn perplexity(model: &str) -> f64 {
    let heldout = golden("demo/heldout.txt");
    let args = ["eval", model, "--data", &heldout, "--max-length", "40", "--windows", "4", "--json"];
    number(&shrink(&args).json(), "perplexity")
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_folder_is_the_donors_with_latent_tensors_in_place_of_k_and_v() {
    let scratch = convert("qwen2", &["-r", "2", "--no-calibration"]);
    let files = [
        "README.md",
        "config.json",
        "configuration_shrink.py",
        "generation_config.json",
        "model.safetensors",
        "modeling_shrink.py",
        "shrink.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    let expected: Vec<String> =
        [vec!["out".to_owned()], files.iter().map(|file| format!("out/{file}")).collect()].concat();
    assert_eq!(scratch.names(), expected);

    let (donor, ours) = (Scratch::of("qwen2").tensors("model.safetensors"), weights(&scratch));
    for layer in 0..3 {
        let attention = format!("model.layers.{layer}.self_attn");
        for (name, shape) in [
            ("w_down_k", [8, 32]),
            ("w_up_k", [16, 8]),
            ("w_balance_k", [8, 8]),
            ("w_down_v", [8, 32]),
            ("w_up_v", [16, 8]),
            ("w_balance_v", [8, 8]),
        ] {
            assert_eq!(ours[&format!("{attention}.mla.{name}")].shape, shape, "{name}");
        }
        for gone in ["k_proj.weight", "v_proj.weight"] {
            assert!(!ours.contains_key(&format!("{attention}.{gone}")), "{gone}");
        }
    }
    let kept =
        donor.iter().filter(|(key, _)| !key.ends_with("k_proj.weight") && !key.ends_with("v_proj.weight"));
    for (key, tensor) in kept {
        assert_eq!(ours.get(key), Some(tensor), "{key}");
    }
    assert_eq!(ours.len(), donor.len() - 2 * 3 + 6 * 3);
}

#[test]
fn tokenizer_and_generation_settings_are_copied_byte_for_byte() {
    for name in ["gpt2", "demo"] {
        let scratch = convert(name, &["--no-calibration"]);
        for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
            let donor = std::fs::read(golden(&format!("{name}/{file}"))).expect("a file of the donor");
            assert_eq!(scratch.read(&format!("out/{file}")), donor, "{name}: {file}");
        }
    }
}

#[test]
fn the_configuration_is_the_donors_and_a_section_more() {
    let scratch = convert("mistral", &["-r", "4", "--no-calibration"]);
    let mut config = scratch.read_json("out/config.json");
    let ranks = json!({ "d_latent_k": 4, "d_latent_v": 4, "balanced": true });
    let section = json!({
        "version": 1,
        "method": "separate",
        "objective": "weights",
        "layers": [ranks, ranks, ranks],
        "store_original_weights": false,
        "donor": { "model_type": "mistral", "architectures": ["MistralForCausalLM"] },
    });
    assert_eq!(config["mla"], section);
    config.as_object_mut().expect("an object").remove("mla");
    // Whoever does not know latents is not to take the folder for its donor.
    assert_eq!(
        (&config["model_type"], &config["architectures"]),
        (&json!("shrink"), &json!(["ShrinkForCausalLM"]))
    );
    for field in ["model_type", "architectures"] {
        config[field] = section["donor"][field].clone();
    }
    let code = config.as_object_mut().expect("an object").remove("auto_map").expect("the code it carries");
    assert_eq!(code["AutoModelForCausalLM"], "modeling_shrink.ShrinkForCausalLM");
    let donor: Value =
        serde_json::from_slice(&std::fs::read(golden("mistral/config.json")).expect("a file")).expect("JSON");
    assert_eq!(config, donor);
}

/// As folders were written before they had a name of their own.
#[test]
fn a_folder_under_its_donors_name_is_read_as_ever() {
    let scratch = convert("mistral", &["-r", "2", "--no-calibration"]);
    let out = scratch.path("out");
    let before = perplexity(&out);
    let mut config = scratch.read_json("out/config.json");
    for field in ["model_type", "architectures"] {
        config[field] = config["mla"]["donor"][field].clone();
    }
    config["mla"].as_object_mut().expect("an object").remove("donor");
    scratch.write("out/config.json", config.to_string());
    assert_eq!(perplexity(&out).to_bits(), before.to_bits());
    config["model_type"] = json!("shrink");
    scratch.write("out/config.json", config.to_string());
    let run = crate::program::shrink(&["inspect", &out]);
    assert_eq!(run.code, Some(1));
    assert!(run.stderr.contains("mla.donor"), "{}", run.stderr);
}

#[test]
fn the_record_says_where_the_model_comes_from() {
    let scratch = Scratch::new();
    let (donor, out) = (golden("llama"), scratch.path("out"));
    let text = "Some text to calibrate on, which has more than enough bytes for two windows of sixteen.";
    let file = scratch.write("calibration.txt", text);
    let few = ["--num-calibration-samples", "3", "--max-calibration-length", "16"];
    let args =
        ["convert", &donor, "-o", &out, "--quiet", "-r", "2", "--dtype", "bf16", "--calibration", &file];
    let plain = ["--method", "separate", "--objective", "mse", "--ranks", "uniform", "--seed", "5"];
    shrink(&[&args[..], &few, &plain].concat()).text();
    let record = scratch.read_json("out/shrink.json");
    let weights = std::fs::read(golden("llama/model.safetensors")).expect("weights");
    assert_eq!(record["donor"], json!({ "name": donor, "weights_sha256": sha256(&weights) }));
    let calibration = json!({
        "source": file,
        "text_sha256": sha256(text.as_bytes()),
        "samples": 3,
        "length": 16,
        "tokens": 48,
        "selection_tokens": 16,
        "kinds": [{ "name": "calibration.txt", "samples": 3, "text_sha256": sha256(text.as_bytes()) }],
    });
    assert_eq!(record["calibration"], calibration);
    assert_eq!(record["asked"], json!({ "compression_ratio": 2.0 }));
    let said = ["method", "objective", "ranks", "dtype"].map(|field| record[field].clone());
    assert_eq!(said, [json!("separate"), json!("mse"), json!("uniform"), json!("bf16")]);
    assert_eq!(record["statistics"]["seed"], 5);
    let layers = record["layers"].as_array().expect("layers");
    assert_eq!(layers.len(), 3);
    for part in layers.iter().flat_map(|layer| [&layer["key"], &layer["value"]]) {
        let spectrum = part["spectrum"].as_array().expect("a spectrum");
        assert_eq!(spectrum.len(), 32);
        let sum = |values: &[Value]| values.iter().map(|v| v.as_f64().expect("a number")).sum::<f64>();
        assert_close(number(part, "energy_kept"), sum(&spectrum[..16]) / sum(spectrum), 1e-9);
        assert_close(number(part, "discarded"), sum(&spectrum[16..]), 1e-9);
    }
    for layer in layers {
        assert!(
            number(&layer["measured"], "key") < 1.0 && number(&layer["measured"], "value") < 1.0,
            "{layer}"
        );
    }
    let [trial] = record["trials"].as_array().expect("trials").as_slice() else { panic!("one trial") };
    assert_eq!((&trial["chosen"], &trial["name"]), (&json!(true), &json!("separate mse uniform")));
    assert_eq!(
        (&record["parameters"], &trial["parameters"]),
        (&json!({ "name": "separate" }), &record["parameters"])
    );
    let total: f64 =
        layers.iter().flat_map(|l| [&l["key"], &l["value"]]).map(|p| number(p, "discarded")).sum();
    assert_close(number(trial, "discarded"), total, 1e-9);
}

#[test]
fn the_model_card_has_the_caches_sizes() {
    let scratch = convert("llama", &["-r", "2", "--no-calibration"]);
    let donor = golden("llama");
    let card = String::from_utf8(scratch.read("out/README.md")).expect("a text");
    assert_snapshot("card", &card, &[(donor.as_str(), "DONOR"), (env!("CARGO_PKG_VERSION"), "VERSION")]);
}

#[test]
fn the_result_is_said_in_four_lines() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    let text = shrink(&["convert", &golden("llama"), "-o", &out, "-r", "2", "--no-calibration"]).text();
    assert_snapshot("convert", &text, &[(&out, "OUT")]);
}

#[test]
fn without_a_dtype_tensors_keep_theirs_and_factors_are_f32() {
    // The bundled model is stored as bf16.
    let tensors = weights(&convert("demo", &["-r", "2", "--no-calibration"]));
    for (key, tensor) in &tensors {
        let expected = if key.contains(".mla.") { Dtype::F32 } else { Dtype::BF16 };
        assert_eq!(tensor.dtype, expected, "{key}");
    }
}

#[test]
fn a_dtype_holds_for_every_tensor_and_the_model_stays_what_it_is() {
    let whole = perplexity(&convert("qwen2", &["-r", "2", "--no-calibration"]).path("out"));
    // Rounding a weight moves a logit by about its relative precision: 2⁻¹¹ in f16, 2⁻⁸ in bf16.
    for (name, dtype, torch, relative) in [
        ("f32", Dtype::F32, "float32", 0.0),
        ("f16", Dtype::F16, "float16", 5e-3),
        ("bf16", Dtype::BF16, "bfloat16", 4e-2),
    ] {
        let scratch = convert("qwen2", &["-r", "2", "--no-calibration", "--dtype", name]);
        assert!(weights(&scratch).values().all(|tensor| tensor.dtype == dtype), "{name}");
        assert_eq!(scratch.read_json("out/config.json")["torch_dtype"], torch);
        assert_eq!(shrink(&["check", &scratch.path("out"), "--json"]).json()["ok"], true, "{name}");
        assert_close(perplexity(&scratch.path("out")), whole, relative);
    }
}

#[test]
fn the_original_weights_are_stored_on_request_and_change_nothing() {
    let request = ["-r", "2", "--no-calibration"];
    let without = convert("mistral", &request);
    let with = convert("mistral", &[&request[..], &["--store-original-weights"]].concat());
    let (donor, ours) = (Scratch::of("mistral").tensors("model.safetensors"), weights(&with));
    for layer in 0..3 {
        let attention = format!("model.layers.{layer}.self_attn");
        for part in ["k", "v"] {
            let original = &donor[&format!("{attention}.{part}_proj.weight")];
            assert_eq!(&ours[&format!("{attention}.mla.w_{part}")], original, "layer {layer}, {part}");
        }
    }
    assert_eq!(ours.len(), weights(&without).len() + 2 * 3);
    assert_eq!(with.read_json("out/config.json")["mla"]["store_original_weights"], true);
    assert_eq!(perplexity(&with.path("out")), perplexity(&without.path("out")));
    let ratio = |scratch: &Scratch| {
        shrink(&["memory", &scratch.path("out"), "--json"]).json()["compression_ratio"].clone()
    };
    assert_eq!((ratio(&with), ratio(&without)), (json!(2.0), json!(2.0)));
}

#[test]
fn a_donor_in_shards_gives_what_it_gives_whole() {
    let (sharded, scratch) = (Scratch::of("gpt2"), Scratch::new());
    sharded.shard();
    let out = scratch.path("out");
    shrink(&["convert", &sharded.root(), "-o", &out, "-r", "2", "--no-calibration"]).text();
    assert_eq!(weights(&scratch), weights(&convert("gpt2", &["-r", "2", "--no-calibration"])));
}

#[test]
fn a_converted_folder_moved_elsewhere_still_opens() {
    let scratch = convert("gpt2", &["-r", "2", "--no-calibration"]);
    let before = perplexity(&scratch.path("out"));
    std::fs::rename(scratch.path("out"), scratch.path("moved")).expect("a move");
    assert_eq!(perplexity(&scratch.path("moved")), before);
}

#[test]
fn auto_without_text_is_separate() {
    let request = ["-r", "2", "--no-calibration", "--method"];
    let auto = convert("llama", &[&request[..], &["auto"]].concat());
    assert_eq!(weights(&auto), weights(&convert("llama", &[&request[..], &["separate"]].concat())));
    assert_eq!(auto.read_json("out/config.json")["mla"]["method"], "separate");
}
