//! vLLM: its native MLA without a plugin, and any converted folder by ours.
//!
//! On the CPU the native MLA takes 512 numbers of the latent beside 64 of the shared key, which no twin has: that is a test on real
//! weights, too.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::folder::Scratch;
use crate::latents::{METHODS, case, python_folder};
use crate::program::{assert_close, number, shrink};
use crate::{PROMPT, TRAINED, eval, export, generate, named, run_json, script, windows_of};

const TOKENS: &str = "32";

#[test]
fn runs_deepseeks_layout() {
    let scratch = Scratch::new();
    let models = named("SHRINK_MODELS", "CONTRIBUTING.md says how real weights are fetched");
    let text = |name: &str| format!("{models}/text/{name}.txt");
    let (donor, latent) = (format!("{models}/smollm2-135m-instruct"), scratch.path("latent"));
    let method = ["--method", "deepseek", "--layout", "deepseek", "--d-rope", "64"];
    let line = ["convert", &donor, "-o", &latent, "-r", "2", "--calibration", &text("calib"), "--quiet"];
    let few = ["--num-calibration-samples", "8", "--max-calibration-length", "128"];
    shrink(&[&line[..], &few, &method].concat()).text();
    let windows = windows_of(&scratch, &latent, &text("heldout"), 2, 256);
    let more = ["--format", "deepseek", "--dtype", "f32", "--pad-rank", "512"];
    let (out, _) = export(&scratch, &latent, &more);
    let python = named("SHRINK_VLLM_PYTHON", "CONTRIBUTING.md says how vLLM is installed");
    let mut command = Command::new(python);
    command.args([&script("vllm_run.py"), &out, &windows, PROMPT, TOKENS]);
    let found = run_json(&mut command, "vllm_run.py");
    assert_close(number(&found, "perplexity"), eval(&latent, &text("heldout"), 2, 256), 1e-3);
    assert_eq!(found["tokens"], generate(&latent, TOKENS));
}

/// What vLLM makes of a folder by our plugin.
fn by_plugin(folder: &Path, options: Value) -> Value {
    let mut command = Command::new(named("SHRINK_VLLM_PYTHON", "CONTRIBUTING.md says how vLLM is installed"));
    command.arg(script("vllm_folder.py")).arg(folder).arg(options.to_string());
    command.env("PYTHONPATH", python_folder("shrink-vllm/src"));
    run_json(&mut command, "vllm_folder.py")
}

fn method(name: &str) -> (&'static str, &'static [&'static str]) {
    *METHODS.iter().find(|(known, _)| *known == name).expect("a method")
}

/// Every method on one model, one method on every kind of attention that vLLM has a class for.
#[test]
fn runs_any_folder_by_the_plugin() {
    let scratch = Scratch::new();
    let dir = scratch.path("cases");
    std::fs::create_dir_all(&dir).expect("a folder");
    let all = METHODS.map(|(name, _)| (TRAINED, name));
    let families = [
        ("gpt2", "joint"),
        ("qwen2", "separate"),
        ("mistral", "cascade"),
        ("phi3", "joint"),
        ("gemma3", "separate"),
        ("mixtral", "xkv"),
    ];
    for (twin, name) in all.into_iter().chain(families) {
        assert!(case(Path::new(&dir), twin, method(name)));
        let folder = Path::new(&dir).join(format!("{twin}.{name}"));
        let found = by_plugin(&folder, json!({ "max_model_len": if twin == TRAINED { 256 } else { 48 } }));
        let bound = if name == "int4" { 5e-2 } else { 2e-4 };
        assert!(number(&found, "gap") < bound, "{twin}.{name}: {found}");
        assert_eq!(found["same"], true, "{twin}.{name}");
    }
}

/// Prompts in chunks, pages found again, two ranks; and as many tokens in its memory as were promised.
#[test]
fn the_plugin_leaves_to_vllm_what_is_its_own() {
    let scratch = Scratch::new();
    let dir = scratch.path("cases");
    std::fs::create_dir_all(&dir).expect("a folder");
    assert!(case(Path::new(&dir), TRAINED, method("cascade")));
    let folder = Path::new(&dir).join(format!("{TRAINED}.cascade"));
    let chunked = json!({ "max_model_len": 256, "block_size": 16, "enable_prefix_caching": true,
        "max_num_batched_tokens": 20, "max_num_seqs": 4, "enable_chunked_prefill": true });
    for options in [chunked, json!({ "max_model_len": 256, "tensor_parallel_size": 2 })] {
        let found = by_plugin(&folder, options.clone());
        assert!(number(&found, "gap") < 2e-4, "{options}: {found}");
        assert_eq!(found["same"], true, "{options}");
    }
    // A GiB holds as many tokens as the promised bytes of one go into it, but for the last page.
    let expected: Value =
        serde_json::from_slice(&std::fs::read(folder.join("expected.json")).expect("a file"))
            .expect("one JSON object");
    let layers = expected["layers"].as_array().expect("layers");
    let a_token: f64 = layers.iter().map(|layer| number(layer, "bytes")).sum();
    let found = by_plugin(&folder, json!({ "max_model_len": 256 }));
    let held = number(&found, "cached_tokens") * a_token / f64::from(1 << 30);
    assert!((held - 1.0).abs() < 1e-2, "{found}: {a_token} bytes a token");
}
