//! Exported folders in the engines that they are for, on tiny models.
//!
//! Built with `--features engines`. `SHRINK_PYTHON` is a Python that has torch and transformers; `cargo xtask ci engines` makes one.

#[expect(dead_code, reason = "the tests over the binary ask for more")]
#[path = "../e2e/folder.rs"]
mod folder;
#[expect(dead_code, reason = "the tests over the binary ask for more")]
#[path = "../e2e/program.rs"]
mod program;

use std::process::Command;

use folder::{Scratch, golden};
use program::{assert_close, number, shrink};
use serde_json::Value;

const WINDOWS: &str = "4";
const LENGTH: &str = "40";
const PROMPT: &str = "The ship";
/// Of the bundled model, which was trained: its greedy tokens hang on no rounding, as those of a random twin may.
const TRAINED: &str = "demo";

/// New tokens: with the prompt, within the context of the twins.
fn tokens(twin: &str) -> &'static str {
    if twin == TRAINED { "64" } else { "32" }
}

/// What stock transformers makes of a folder.
fn stock(folder: &str, twin: &str) -> Value {
    let python = std::env::var("SHRINK_PYTHON")
        .expect("SHRINK_PYTHON is not set: cargo xtask ci engines makes a Python for these tests");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/engines/stock.py");
    let text = golden("demo/heldout.txt");
    let mut command = Command::new(python);
    command.args([script, folder, &text, WINDOWS, LENGTH, PROMPT, tokens(twin)]).env("HF_HUB_OFFLINE", "1");
    let output = command.output().expect("Python starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let stdout = String::from_utf8(output.stdout).expect("JSON is text");
    serde_json::from_str(stdout.lines().last().expect("a line")).expect("one JSON object")
}

fn perplexity(folder: &str) -> f64 {
    let text = golden("demo/heldout.txt");
    let args =
        ["eval", folder, "--data", &text, "--max-length", LENGTH, "--windows", WINDOWS, "--json", "--quiet"];
    number(&shrink(&args).json(), "perplexity")
}

/// The greedy tokens of both are alike as far as ours go, which end where the model ends.
fn same_tokens(theirs: &Value, latent: &str) {
    let (theirs, ours) = (theirs["tokens"].as_array().expect("tokens"), continuation(latent));
    let ours = ours.as_array().expect("tokens");
    assert!(ours.len() > 8, "{ours:?}");
    assert_eq!(&theirs[..ours.len()], &ours[..]);
}

fn continuation(folder: &str) -> Value {
    let args = [
        "generate",
        folder,
        "--prompt",
        PROMPT,
        "--max-new-tokens",
        tokens(TRAINED),
        "--temperature",
        "0",
        "--json",
    ];
    shrink(&args).json()["tokens"].clone()
}

/// A twin converted to `OUT/latent`.
fn convert(scratch: &Scratch, twin: &str, more: &[&str]) -> String {
    let out = scratch.path("latent");
    let line = ["convert", &golden(twin), "-o", &out, "-r", "2", "--calibration", "builtin", "--quiet"];
    let few = ["--num-calibration-samples", "24", "--max-calibration-length", "40"];
    shrink(&[&line[..], &few, more].concat()).text();
    out
}

fn export(scratch: &Scratch, latent: &str, more: &[&str]) -> (String, Value) {
    let out = scratch.path("out");
    let line = ["export", latent, "-o", &out, "--force", "--quiet", "--json"];
    let report = shrink(&[&line[..], more].concat()).json();
    (out, report)
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

/// A folder of ours fails loudly in a program that does not know latents.
#[test]
fn stock_transformers_does_not_take_a_converted_folder_for_its_donor() {
    let scratch = Scratch::new();
    let latent = convert(&scratch, "llama", &["--method", "joint"]);
    let python = std::env::var("SHRINK_PYTHON").expect("SHRINK_PYTHON");
    let code =
        "import sys; from transformers import AutoModelForCausalLM as M; M.from_pretrained(sys.argv[1])";
    let output =
        Command::new(python).args(["-c", code, &latent]).env("HF_HUB_OFFLINE", "1").output().expect("Python");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("`shrink`"), "{output:?}");
}
