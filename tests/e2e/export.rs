//! Converted models as other programs know them.

use serde_json::{Value, json};

use crate::folder::{Scratch, golden};
use crate::program::{Run, assert_close, number, shrink};

const FEW: [&str; 6] =
    ["--calibration", "builtin:prose", "--num-calibration-samples", "16", "--max-calibration-length", "40"];

/// Converts a twin to `OUT/latent`.
fn convert(scratch: &Scratch, twin: &str, args: &[&str]) -> String {
    let out = scratch.path("latent");
    let line = ["convert", &golden(twin), "-o", &out, "--force", "--quiet"];
    shrink(&[&line[..], &FEW, &["-r", "2"], args].concat()).text();
    out
}

fn export(from: &str, to: &str, args: &[&str]) -> Run {
    shrink(&[&["export", from, "-o", to, "--quiet"], args].concat())
}

fn eval(model: &str) -> f64 {
    let heldout = golden("demo/heldout.txt");
    let args =
        ["eval", model, "--data", &heldout, "--max-length", "40", "--windows", "4", "--json", "--quiet"];
    number(&shrink(&args).json(), "perplexity")
}

fn refused(run: &Run, what: &str) {
    assert_eq!(run.code, Some(1), "{run:#?}");
    assert!(run.stderr.contains(what), "{what}: {}", run.stderr);
}

const SERIES: [&str; 6] = ["--method", "deepseek", "--layout", "deepseek", "--d-rope", "6"];

#[test]
fn a_dense_folder_is_the_conversion_in_the_donors_architecture() {
    for (twin, method) in [
        ("llama", &["--method", "separate"][..]),
        ("qwen2", &["--method", "joint"]),
        ("gpt2", &["--method", "joint"]),
        ("phi3", &["--method", "separate"]),
        ("gpt-neox", &["--method", "joint"]),
        ("mixtral", &["--method", "xkv", "--cross-layer-group-size", "2", "--ranks", "uniform"]),
        ("mistral", &["--method", "decoupled_rope", "--d-rope", "4"]),
    ] {
        let scratch = Scratch::new();
        let (latent, dense) = (convert(&scratch, twin, method), scratch.path("dense"));
        let report = export(&latent, &dense, &["--format", "dense", "--json"]).json();
        assert_eq!(report["format"], "dense");
        assert_close(eval(&dense), eval(&latent), 1e-5);
        let config = scratch.read_json("dense/config.json");
        let donor: Value =
            serde_json::from_slice(&std::fs::read(golden(&format!("{twin}/config.json"))).expect("a file"))
                .expect("JSON");
        assert_eq!(config, donor, "{twin}");
        let shown = shrink(&["inspect", &dense, "--json"]).json();
        assert_eq!(shown["mla"], Value::Null, "{twin}");
    }
}

#[test]
fn what_no_projection_can_say_is_refused() {
    let scratch = Scratch::new();
    let dense = scratch.path("dense");
    for (twin, method, what) in [
        ("llama", &["--method", "cascade"][..], "cascade"),
        ("llama", &SERIES, "--format deepseek"),
        ("qwen3", &["--method", "joint"], "normed"),
    ] {
        let latent = convert(&scratch, twin, method);
        refused(&export(&latent, &dense, &["--format", "dense"]), what);
    }
    refused(&export(&golden("llama"), &dense, &["--format", "dense"]), "not a converted model");
    assert!(!std::path::Path::new(&dense).exists());
}

#[test]
fn a_deepseek_folder_has_the_names_and_sizes_of_deepseeks() {
    let scratch = Scratch::new();
    let latent = convert(&scratch, "llama", &SERIES);
    let out = scratch.path("out");
    let report = export(&latent, &out, &["--format", "deepseek", "--pad-rank", "32", "--json"]).json();
    let config = scratch.read_json("out/config.json");
    assert_eq!(config["architectures"], json!(["DeepseekV3ForCausalLM"]));
    assert_eq!((&config["kv_lora_rank"], &config["qk_rope_head_dim"]), (&json!(32), &json!(6)));
    assert_eq!(config["torch_dtype"], "bfloat16");
    let layers = number(&config, "num_hidden_layers");
    assert_eq!(number(&report, "cache_bytes_a_token"), (32.0 + 6.0) * layers * 2.0);
    let record = scratch.read_json("out/shrink.json");
    assert_eq!(record["export"]["format"], "deepseek");
    // Written by shrink, it may be replaced; without being told it is not.
    refused(&export(&latent, &out, &["--format", "deepseek"]), "exists");
    export(&latent, &out, &["--format", "deepseek", "--dtype", "f32", "--force"]).text();
    assert_eq!(scratch.read_json("out/config.json")["torch_dtype"], "float32");
    // It is a model with latents of its own, which is not converted again.
    refused(&shrink(&["inspect", &out]), "deepseek_v3");
}

#[test]
fn a_gguf_folder_holds_one_file_with_all_that_llama_cpp_asks_for() {
    let scratch = Scratch::new();
    let latent = convert(&scratch, "llama", &SERIES);
    let out = scratch.path("out");
    let to_gguf = |more: &[&str]| export(&latent, &out, &[&["--format", "gguf"], more].concat());
    let report = to_gguf(&["--json"]).json();
    let file = std::fs::read(format!("{out}/model.gguf")).expect("a file");
    assert!(file.starts_with(b"GGUF\x03\0\0\0"));
    let weights = number(&report, "weight_bytes") as usize;
    assert!(file.len() > weights && file.len() < weights + (1 << 16), "{} of {weights}", file.len());
    for key in ["deepseek2.attention.key_length_mla", "tokenizer.ggml.merges", "blk.1.attn_k_b.weight"] {
        assert!(file.windows(key.len()).any(|bytes| bytes == key.as_bytes()), "{key}");
    }
    refused(&to_gguf(&[]), "exists");
    refused(&to_gguf(&["--force", "--dtype", "f16"]), "bf16");
    refused(&to_gguf(&["--force", "--pad-rank", "2"]), "cannot be padded to 2");
    to_gguf(&["--force", "--pad-rank", "32"]).text();

    // Text that would be split otherwise there is refused, and the file that was there stays.
    let path = format!("{latent}/tokenizer.json");
    let plain: Value = serde_json::from_slice(&std::fs::read(&path).expect("a file")).expect("JSON");
    let kept = std::fs::read(format!("{out}/model.gguf")).expect("a file");
    for (field, value, what) in [
        ("pre_tokenizer", json!({ "type": "Whitespace" }), "splits text"),
        ("normalizer", json!({ "type": "Lowercase" }), "splits text"),
        ("model", json!({ "type": "WordLevel", "vocab": { "a": 0 }, "unk_token": "a" }), "WordLevel"),
    ] {
        let mut file = plain.clone();
        file[field] = value;
        std::fs::write(&path, file.to_string()).expect("a file");
        std::fs::remove_file(format!("{latent}/tokenizer_config.json")).ok();
        refused(&to_gguf(&["--force"]), what);
    }
    assert_eq!(std::fs::read(format!("{out}/model.gguf")).expect("a file"), kept);
}

#[test]
fn what_deepseeks_layout_cannot_say_is_refused() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    let to_deepseek =
        |latent: &str, more: &[&str]| export(latent, &out, &[&["--format", "deepseek"], more].concat());
    for (twin, method, what) in [
        ("llama", &["--method", "joint"][..], "--layout deepseek"),
        ("llama", &["--method", "deepseek", "--d-rope", "4"], "--layout deepseek"),
        ("qwen2", &SERIES, "biases"),
        ("mixtral", &SERIES, "MLP"),
        ("ministral", &SERIES, "windows"),
        ("qwen3", &["--method", "deepseek", "--d-rope", "4"], "norm of queries"),
    ] {
        let latent = convert(&scratch, twin, method);
        refused(&to_deepseek(&latent, &[]), what);
    }
    let latent = convert(&scratch, "llama", &SERIES);
    refused(&to_deepseek(&latent, &["--dtype", "f16"]), "bf16");
    refused(&to_deepseek(&latent, &["--pad-rank", "2"]), "cannot be padded to 2");
    refused(&export(&latent, &out, &["--format", "dense", "--pad-rank", "24"]), "--pad-rank");
    refused(&export(&latent, &latent, &["--format", "deepseek", "--force"]), "latent");
    assert!(!std::path::Path::new(&out).exists());
}

#[test]
fn a_shared_key_that_does_not_fit_is_refused() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    for (twin, args, what) in [
        ("llama", &["--d-rope", "5"][..], "even"),
        ("llama", &["--d-rope", "400"], "even number from 2 to"),
        ("llama", &["--d-rope", "16", "-r", "4"], "that the ratio leaves"),
        ("gpt2", &["--d-rope", "4"], "no rotary embedding"),
        ("llama", &["--d-rope", "4", "--objective", "mse"], "fisher"),
        ("llama", &["--d-rope", "4", "--sequential"], "--sequential"),
        ("llama-yarn", &["--d-rope", "4", "--layout", "deepseek"], "scaled"),
        ("smollm3", &["--d-rope", "4", "--layout", "deepseek"], "all layers"),
        ("llama", &["--d-rope", "4", "--layout", "deepseek", "--ranks", "global"], "uniform"),
    ] {
        let line = ["convert", &golden(twin), "-o", &out, "--method", "deepseek", "--quiet"];
        refused(&shrink(&[&line[..], &FEW, args].concat()), what);
    }
    let line = ["convert", &golden("llama"), "-o", &out, "--method", "joint", "--layout", "free"];
    refused(&shrink(&[&line[..], &FEW].concat()), "--method deepseek");
    assert!(!std::path::Path::new(&out).exists());
}

#[test]
fn a_model_with_a_shared_key_trains_is_cut_short_and_is_quantised() {
    let scratch = Scratch::new();
    let latent = convert(&scratch, "qwen2", &["--method", "deepseek", "--d-rope", "4", "--ranks", "global"]);
    let heldout = golden("demo/heldout.txt");
    let run = |more: &[&str]| {
        let args = [
            "eval",
            &latent,
            "--data",
            &heldout,
            "--max-length",
            "40",
            "--windows",
            "4",
            "--json",
            "--quiet",
        ];
        shrink(&[&args[..], more].concat()).json()
    };
    let whole = number(&run(&[]), "perplexity");
    for dtype in ["bf16", "int8"] {
        assert_close(number(&run(&["--cache-dtype", dtype]), "perplexity"), whole, 2e-2);
    }
    let shorter = run(&["--compression-ratio", "3"]);
    assert!(number(&shorter, "perplexity").is_finite());
    let tuned = scratch.path("tuned");
    let train = |loss: &str| {
        let line = ["train", &latent, "-o", &tuned, "--data", &heldout, "--loss", loss, "--max-steps", "3"];
        let more = ["--max-length", "32", "--batch-size", "2", "--quiet", "--teacher", &golden("qwen2")];
        shrink(&[&line[..], &more].concat())
    };
    refused(&train("reconstruction"), "shared key");
    train("kl").text();
    shrink(&["check", &tuned]).text();
    assert!((eval(&tuned) - whole).abs() > 1e-6, "training moved it");
}

#[test]
fn an_exported_folder_comes_back() {
    for (twin, padded) in [("llama", "40"), ("granite", "40")] {
        let scratch = Scratch::new();
        let latent = convert(&scratch, twin, &SERIES);
        let (out, back) = (scratch.path("out"), scratch.path("back"));
        let more = ["--format", "deepseek", "--dtype", "f32", "--pad-rank", padded];
        let report = export(&latent, &out, &[&more[..], &["--json"]].concat()).json();
        let import =
            |to: &str, more: &[&str]| shrink(&[&["import", &out, "-o", to, "--quiet"], more].concat());
        let object = import(&back, &["--json"]).json();
        // What it was padded by is left out.
        let layers = number(&object, "layers");
        let padded = number(&report, "cache_bytes_a_token") / 4.0;
        assert!(number(&object, "cached_numbers_a_token") < padded - layers, "{object}, {padded}");
        assert_close(eval(&back), eval(&latent), 1e-4);
        let check = shrink(&["check", &back, "--json"]).json();
        assert!(number(&check, "worst_orthonormality") < 1e-6, "{check}");
        // To the donor's cache, which the wider graph does not say.
        let before = shrink(&["check", &latent, "--json"]).json();
        assert_close(number(&check, "compression_ratio"), number(&before, "compression_ratio"), 1e-9);
        refused(&import(&back, &[]), "exists");
        import(&back, &["--force"]).text();

        // What was changed so that it is no such folder any more is told, and nothing is written.
        let none = scratch.path("none");
        let config = scratch.read_json("out/config.json");
        for (field, value, what) in [
            ("model_type", json!("llama"), "model_type"),
            ("kv_lora_rank", json!(12), "shape"),
            ("q_lora_rank", json!(8), "queries"),
            ("first_k_dense_replace", json!(1), "experts"),
            ("attention_bias", json!(true), "biases"),
            ("rope_interleave", json!(false), "side by side"),
            ("v_head_dim", json!(999), "sizes"),
            ("qk_rope_head_dim", Value::Null, "qk_rope_head_dim"),
        ] {
            let mut config = config.clone();
            config[field] = value;
            std::fs::write(format!("{out}/config.json"), config.to_string()).expect("a file");
            refused(&import(&none, &[]), what);
        }
        std::fs::write(format!("{out}/config.json"), config.to_string()).expect("a file");
        let tokenizer = std::fs::read(format!("{out}/tokenizer.json")).expect("a file");
        scratch.remove("out/tokenizer.json");
        refused(&import(&none, &[]), "tokenizer");
        scratch.write("out/tokenizer.json", tokenizer);
        let mut tensors = scratch.tensors("out/model.safetensors");
        let more = tensors["lm_head.weight"].clone();
        tensors.insert("model.layers.0.self_attn.q_proj.lora_A.weight".into(), more);
        scratch.write_tensors("out/model.safetensors", &tensors);
        refused(&import(&none, &[]), "adapter");
        tensors.remove("model.layers.0.self_attn.q_proj.lora_A.weight");
        let read = tensors.get_mut("model.layers.0.self_attn.kv_a_proj_with_mqa.weight").expect("a tensor");
        read.scale(1e4);
        scratch.write_tensors("out/model.safetensors", &tensors);
        refused(&import(&none, &[]), "not linear");
        assert!(!std::path::Path::new(&none).exists());
    }
    let scratch = Scratch::new();
    refused(&shrink(&["import", &golden("llama"), "-o", &scratch.path("out")]), "model_type");
}
