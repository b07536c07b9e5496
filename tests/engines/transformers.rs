//! Stock transformers: no remote code.

use std::process::Command;

use serde_json::Value;

use crate::folder::{Scratch, golden};
use crate::program::{assert_close, number, shrink};
use crate::{
    LENGTH, PROMPT, TRAINED, WINDOWS, convert, export, named, perplexity, run_json, same_tokens, script,
    tokens,
};

fn python() -> Command {
    Command::new(named("SHRINK_PYTHON", "cargo xtask ci engines makes a Python for these tests"))
}

/// What stock transformers makes of a folder.
fn stock(folder: &str, twin: &str) -> Value {
    let text = golden("demo/heldout.txt");
    let mut command = python();
    let (windows, length) = (WINDOWS.to_string(), LENGTH.to_string());
    command.args([&script("stock.py"), folder, &text, &windows, &length, PROMPT, tokens(twin)]);
    run_json(&mut command, "stock.py")
}

#[test]
fn stock_transformers_runs_deepseeks_layout_and_caches_what_was_promised() {
    for (twin, d_rope) in [(TRAINED, "16"), ("llama", "6"), ("granite", "8")] {
        let scratch = Scratch::new();
        let method = ["--method", "deepseek", "--layout", "deepseek", "--d-rope", d_rope];
        let latent = convert(&scratch, twin, &method);
        for padded in [&[][..], &["--pad-rank", "48"]] {
            let more = [&["--format", "deepseek", "--dtype", "f32"], padded].concat();
            let (out, report) = export(&scratch, &latent, &more);
            let found = stock(&out, twin);
            assert_eq!(found["class"], "DeepseekV3ForCausalLM");
            assert_close(number(&found, "perplexity"), perplexity(&latent), 1e-4);
            if twin == TRAINED {
                same_tokens(&found, &latent);
            }
            let promised = number(&report, "cache_bytes_a_token") * number(&found, "cached_tokens");
            assert_eq!(number(&found, "cache_bytes"), promised, "{twin}");
        }
        let (out, _) = export(&scratch, &latent, &["--format", "deepseek"]);
        assert_close(number(&stock(&out, twin), "perplexity"), perplexity(&latent), 5e-3);
    }
}

#[test]
fn stock_transformers_runs_a_dense_folder() {
    for (twin, method) in [(TRAINED, "joint"), ("qwen2", "separate"), ("gpt2", "joint")] {
        let scratch = Scratch::new();
        let latent = convert(&scratch, twin, &["--method", method]);
        let (out, _) = export(&scratch, &latent, &["--format", "dense", "--dtype", "f32"]);
        let found = stock(&out, twin);
        assert_close(number(&found, "perplexity"), perplexity(&latent), 1e-4);
        if twin == TRAINED {
            same_tokens(&found, &latent);
        }
    }
}

/// A folder of ours fails loudly where its code is not trusted.
#[test]
fn stock_transformers_does_not_take_a_converted_folder_for_its_donor() {
    let scratch = Scratch::new();
    let latent = convert(&scratch, "llama", &["--method", "joint"]);
    let code =
        "import sys; from transformers import AutoModelForCausalLM as M; M.from_pretrained(sys.argv[1])";
    let output = python().args(["-c", code, &latent]).env("HF_HUB_OFFLINE", "1").output().expect("Python");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("trust_remote_code=True"), "{output:?}");
}

/// Every weight trained there, the folder comes back with the same logits and orthonormal columns.
#[test]
fn a_folder_that_stock_transformers_tuned_comes_back() {
    let scratch = Scratch::new();
    let latent =
        convert(&scratch, TRAINED, &["--method", "deepseek", "--layout", "deepseek", "--d-rope", "16"]);
    let more = ["--format", "deepseek", "--dtype", "f32", "--pad-rank", "48"];
    let (out, _) = export(&scratch, &latent, &more);
    let (tuned, back) = (scratch.path("tuned"), scratch.path("back"));
    let mut command = python();
    command.args([&script("tune.py"), &out, &tuned, &golden("demo/heldout.txt"), "4", "64"]);
    run_json(&mut command, "tune.py");
    shrink(&["import", &tuned, "-o", &back, "--quiet"]).text();
    let check = shrink(&["check", &back, "--json"]).json();
    assert!(number(&check, "worst_orthonormality") < 1e-6, "{check}");
    let found = stock(&tuned, TRAINED);
    assert_close(number(&found, "perplexity"), perplexity(&back), 1e-4);
    same_tokens(&found, &back);
    assert!((perplexity(&back) / perplexity(&latent) - 1.0).abs() > 1e-3, "training moved it");
}
