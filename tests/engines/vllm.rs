//! Stock vLLM: its native MLA, no plugin. On the CPU that takes 512 numbers of the latent beside 64 of the shared key, which no twin
//! has: this is a test on real weights, too.

use std::process::Command;

use crate::folder::Scratch;
use crate::program::{assert_close, number, shrink};
use crate::{PROMPT, eval, export, generate, named, run_json, script, windows_of};

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
