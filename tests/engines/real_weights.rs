//! Converted folders of real weights in transformers: what `latents` shows on tiny models, once more.

use std::path::Path;

use crate::folder::Scratch;
use crate::latents::{METHODS, case_of, run_pytest};
use crate::named;

#[test]
fn smollm2_gives_shrinks_logits_in_transformers() {
    let scratch = Scratch::new();
    let models = named("SHRINK_MODELS", "CONTRIBUTING.md says how real weights are fetched");
    let dir = std::env::var("SHRINK_CASES").unwrap_or_else(|_| scratch.path("cases"));
    std::fs::create_dir_all(&dir).expect("a folder");
    let (donor, text) = (format!("{models}/smollm2-135m-instruct"), format!("{models}/text/calib.txt"));
    for (ratio, name) in [("2", "separate"), ("2", "joint"), ("2", "int4"), ("4", "cascade"), ("4", "joint")]
    {
        let (_, method) = METHODS.iter().find(|(known, _)| *known == name).expect("a method");
        let method: Vec<&str> = method.iter().map(|&word| if word == "2" { ratio } else { word }).collect();
        let few = ["--num-calibration-samples", "8", "--max-calibration-length", "128"];
        let out = Path::new(&dir).join(format!("smollm2-{ratio}x.{name}"));
        assert!(case_of(&out, &donor, &text, &[&method[..], &few].concat(), true), "{name}");
    }
    run_pytest(&scratch, &dir, &["-k", "logits or cache or padding or greedy"]);
}
