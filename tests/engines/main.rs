//! Exported folders in the engines that they are for, on tiny models.
//!
//! Built with `--features engines`, a module an engine, which `cargo xtask ci` runs as steps of their own. `SHRINK_PYTHON` is a
//! Python that has torch and transformers, `SHRINK_NODE_MODULES` a folder with node-llama-cpp, `SHRINK_VLLM_PYTHON` a Python that has
//! vLLM.

#[expect(dead_code, reason = "the tests over the binary ask for more")]
#[path = "../e2e/folder.rs"]
mod folder;
#[expect(dead_code, reason = "the tests over the binary ask for more")]
#[path = "../e2e/program.rs"]
mod program;

mod latents;
mod llama_cpp;
mod real_weights;
mod transformers;
mod vllm;

use std::process::Command;

use folder::{Scratch, golden};
use program::{number, shrink};
use serde_json::Value;

const WINDOWS: usize = 4;
const LENGTH: usize = 40;
const PROMPT: &str = "The ship";
/// Of the bundled model, which was trained: its greedy tokens hang on no rounding, as those of a random twin may.
const TRAINED: &str = "demo";

/// New tokens: with the prompt, within the context of the twins.
fn tokens(twin: &str) -> &'static str {
    if twin == TRAINED { "64" } else { "32" }
}

/// Runs a script of this folder, which prints one JSON object on a line of its own.
fn run_json(command: &mut Command, script: &str) -> Value {
    command.env("HF_HUB_OFFLINE", "1");
    let output = command.output().expect("the engine starts");
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    let stdout = String::from_utf8(output.stdout).expect("JSON is text");
    let line = stdout.lines().rev().find(|line| line.starts_with('{'));
    serde_json::from_str(line.unwrap_or_else(|| panic!("{script}: {stdout}"))).expect("one JSON object")
}

/// A file of this folder.
fn script(name: &str) -> String {
    format!("{}/../../tests/engines/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// What a variable names.
fn named(variable: &str, hint: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set: {hint}"))
}

/// Held-out windows as token ids, in a file.
fn windows(scratch: &Scratch, model: &str) -> String {
    windows_of(scratch, model, &golden("demo/heldout.txt"), WINDOWS, LENGTH)
}

fn windows_of(scratch: &Scratch, model: &str, text: &str, count: usize, length: usize) -> String {
    let tokenizer = handlers::Tokenizer::open(model.as_ref()).expect("a tokenizer");
    let ids = tokenizer.encode(&std::fs::read_to_string(text).expect("a text")).expect("ids");
    let windows: Vec<&[u32]> = ids.chunks_exact(length).take(count).collect();
    let path = scratch.path("windows.json");
    std::fs::write(&path, serde_json::to_vec(&windows).expect("JSON")).expect("a file");
    path
}

fn perplexity(folder: &str) -> f64 {
    eval(folder, &golden("demo/heldout.txt"), WINDOWS, LENGTH)
}

fn eval(folder: &str, text: &str, windows: usize, length: usize) -> f64 {
    let (windows, length) = (windows.to_string(), length.to_string());
    let args =
        ["eval", folder, "--data", text, "--max-length", &length, "--windows", &windows, "--json", "--quiet"];
    number(&shrink(&args).json(), "perplexity")
}

/// The greedy tokens of both are alike as far as ours go, which end where the model ends.
fn same_tokens(theirs: &Value, latent: &str) {
    let (theirs, ours) = (theirs["tokens"].as_array().expect("tokens"), generate(latent, tokens(TRAINED)));
    let ours = ours.as_array().expect("tokens");
    assert!(ours.len() > 8, "{ours:?}");
    assert_eq!(&theirs[..ours.len()], &ours[..]);
}

/// Greedy tokens after the prompt.
fn generate(folder: &str, tokens: &str) -> Value {
    let line =
        ["generate", folder, "--prompt", PROMPT, "--max-new-tokens", tokens, "--temperature", "0", "--json"];
    shrink(&line).json()["tokens"].clone()
}

/// A twin converted to `OUT/latent`.
fn convert(scratch: &Scratch, twin: &str, more: &[&str]) -> String {
    let out = scratch.path("latent");
    let line = ["convert", &golden(twin), "-o", &out, "-r", "2", "--calibration", "builtin:prose", "--quiet"];
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
