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
    for (name, method) in METHODS {
        for ratio in ["2", "4"] {
            let method: Vec<&str> =
                method.iter().map(|&word| if word == "2" { ratio } else { word }).collect();
            let few = ["--num-calibration-samples", "8", "--max-calibration-length", "128"];
            // A rotary model's shared key leaves nothing of a quarter.
            if name == "deepseek" && ratio == "4" {
                continue;
            }
            let out = Path::new(&dir).join(format!("smollm2-{ratio}x.{name}"));
            assert!(case_of(&out, &donor, &text, &[&method[..], &few].concat(), true), "{name}");
        }
    }
    run_pytest(&scratch, &dir, &["-k", "logits or cache or padding or generate or greedy or saving"]);
}
