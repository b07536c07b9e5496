//! `--cache-dtype`: fewer bits a cached number, what they cost, and what they take.

use serde_json::Value;

use crate::folder::{Scratch, TWINS, golden};
use crate::program::{assert_close, number, shrink};

/// Converts a twin at 1x on the demo's text, so that what is lost is what rounding takes.
fn converted(scratch: &Scratch, twin: &str, more: &[&str]) -> String {
    let (out, text) = (scratch.path(twin), golden("demo/calibration.txt"));
    let args = ["convert", &golden(twin), "-o", &out, "-r", "1", "--calibration", &text];
    let windows = ["--num-calibration-samples", "16", "--max-calibration-length", "32"];
    shrink(&[&args[..], &windows, more].concat()).text();
    out
}

fn eval(model: &str, more: &[&str]) -> Value {
    let heldout = golden("demo/heldout.txt");
    let args = ["eval", model, "--data", &heldout, "--max-length", "40", "--windows", "2", "--json"];
    shrink(&[&args[..], more].concat()).json()
}

#[test]
fn fewer_bits_cost_more_in_every_family_and_what_is_generated_with_is_what_was_scored() {
    let scratch = Scratch::new();
    for twin in TWINS {
        let model = converted(&scratch, twin, &["--method", "separate", "--ranks", "uniform"]);
        let donor = golden(twin);
        let kl = |dtype: &str| {
            let found = eval(&model, &["--cache-dtype", dtype, "--against", &donor]);
            assert_eq!(found["cache"]["dtype"], dtype);
            let through = eval(&model, &["--cache-dtype", dtype, "--through-cache"]);
            assert_close(number(&found, "perplexity"), number(&through, "perplexity"), 1e-3);
            (number(&found["against"], "kl"), number(&found["cache"], "bytes"))
        };
        let found = ["f32", "f16", "bf16", "int8", "int4", "int3"].map(kl);
        let [exact, f16, bf16, int8, int4, int3] = found.map(|(kl, _)| kl);
        assert!(exact.abs() < 1e-7 && f16 < 1e-5 && bf16 < 1e-3 && int8 < 1e-2, "{twin}: {found:?}");
        assert!(int8 < int4 && int4 < int3, "{twin}: {found:?}");
        assert!(found.windows(2).all(|two| two[1].1 <= two[0].1), "{twin}: {found:?}");
    }
}

#[test]
fn a_folder_says_what_its_cache_keeps_and_the_user_may_say_otherwise() {
    let scratch = Scratch::new();
    let model = converted(&scratch, "llama", &["--method", "joint", "--cache-dtype", "int4"]);
    let config = scratch.read_json("llama/config.json");
    assert_eq!(config["mla"]["cache_dtype"], "int4");
    assert_eq!(config["mla"]["layers"][0]["balanced"], true);
    let (own, asked) = (eval(&model, &[]), eval(&model, &["--cache-dtype", "int4"]));
    assert_eq!(own, asked);
    assert_eq!(eval(&model, &["--cache-dtype", "f32"])["cache"]["dtype"], "f32");
    shrink(&["check", &model]).text();
    let generated = |more: &[&str]| {
        let args = ["generate", &model, "--prompt", "The", "--max-new-tokens", "8", "--json"];
        shrink(&[&args[..], more].concat()).json()
    };
    assert!(
        number(&generated(&[]), "cache_bytes")
            < number(&generated(&["--cache-dtype", "bf16"]), "cache_bytes")
    );
    let memory = |more: &[&str]| shrink(&[&["memory", &model, "--json"], more].concat()).json();
    assert_eq!(memory(&[])["cache_dtype"], "int4");
    let bytes = |found: &Value| number(&found["sizes"][0], "model_bytes");
    assert!(bytes(&memory(&[])) < 0.5 * bytes(&memory(&["--cache-dtype", "bf16"])));
}

#[test]
fn a_balanced_basis_costs_less_than_none() {
    let scratch = Scratch::new();
    let model = converted(&scratch, "llama", &["--method", "separate", "--ranks", "uniform"]);
    let donor = golden("llama");
    let kl = || number(&eval(&model, &["--cache-dtype", "int3", "--against", &donor])["against"], "kl");
    let balanced = kl();
    let mut config = scratch.read_json("llama/config.json");
    for layer in config["mla"]["layers"].as_array_mut().expect("layers") {
        layer.as_object_mut().expect("an entry").remove("balanced");
    }
    scratch.write("llama/config.json", config.to_string());
    let plain = kl();
    assert!(balanced < plain, "{balanced} against {plain}");
    let heldout = golden("demo/heldout.txt");
    let said = shrink(&["eval", &model, "--data", &heldout, "--max-length", "40", "--cache-dtype", "int4"]);
    assert!(said.stderr.contains("does not say in which basis"), "{}", said.stderr);
}

#[test]
fn integers_are_for_latents() {
    let donor = golden("llama");
    let heldout = golden("demo/heldout.txt");
    for dtype in ["int8", "int4", "int3"] {
        shrink(&["eval", &donor, "--data", &heldout, "--cache-dtype", dtype])
            .refused(&format!("{dtype} is for latents, and this model caches keys and values"));
    }
    let args = ["eval", &donor, "--data", &heldout, "--max-length", "40", "--windows", "1", "--json"];
    let half = shrink(&[&args[..], &["--cache-dtype", "bf16"]].concat()).json();
    assert_eq!(number(&half["cache"], "bytes"), number(&half["cache"], "donor_bytes"));
    shrink(&["eval", &donor, "--data", &heldout, "--cache-dtype", "int2"]).misused("invalid value 'int2'");
    let scratch = Scratch::new();
    let model = converted(&scratch, "llama", &["--method", "separate"]);
    let mut config = scratch.read_json("llama/config.json");
    config["mla"]["cache_dtype"] = "int2".into();
    scratch.write("llama/config.json", config.to_string());
    shrink(&["inspect", &model])
        .refused("`mla.cache_dtype` is \"int2\", expected f32, f16, bf16, int8, int4, int3");
}
