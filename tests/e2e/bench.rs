//! `shrink bench`: what it measures and what it refuses. How fast anything is, no test says.

use crate::folder::{Scratch, golden};
use crate::program::{number, shrink};

#[test]
fn every_context_batch_and_prompt_is_measured() {
    let scratch = Scratch::new();
    let half = scratch.path("half");
    shrink(&["convert", &golden("llama"), "-o", &half, "-r", "2", "--no-calibration"]).text();
    let asked = ["--context", "0,16", "--batch-size", "1,3", "--prefill", "20", "--repeat", "4", "--json"];
    let [donor, model] =
        [golden("llama"), half].map(|model| shrink(&[&["bench", &model], &asked[..]].concat()).json());
    let rows = |found: &serde_json::Value| found["measured"].as_array().cloned().expect("rows");
    let what = |row: &serde_json::Value| {
        (row["what"].clone(), number(row, "tokens") as usize, number(row, "batch_size") as usize)
    };
    let order = [
        ("prefill", 20, 1),
        ("decode", 0, 1),
        ("decode", 16, 1),
        ("prefill", 20, 3),
        ("decode", 0, 3),
        ("decode", 16, 3),
    ];
    assert_eq!(rows(&model).iter().map(what).collect::<Vec<_>>(), order.map(|(a, b, c)| (a.into(), b, c)));
    assert_eq!(number(&model, "compression_ratio"), 2.0);
    for (dense, latent) in rows(&donor).iter().zip(&rows(&model)) {
        assert!(number(latent, "pass_s") > 0.0 && number(latent, "tokens_per_s") > 0.0);
        assert_eq!(number(dense, "cache_bytes"), 2.0 * number(latent, "cache_bytes"));
    }
}

#[test]
fn a_cache_of_fewer_bits_is_measured_as_it_is_allocated() {
    let scratch = Scratch::new();
    let half = scratch.path("half");
    shrink(&["convert", &golden("llama"), "-o", &half, "-r", "2", "--no-calibration"]).text();
    let asked = ["bench", &half, "--context", "16", "--repeat", "1", "--json", "--cache-dtype"];
    let bytes = |dtype: &str| {
        let found = shrink(&[&asked[..], &[dtype]].concat()).json();
        number(&found["measured"][0], "cache_bytes")
    };
    let [f32, bf16, int8, int4] = ["f32", "bf16", "int8", "int4"].map(bytes);
    // 18 tokens of 3 layers with 16 + 16 numbers: two groups, a word each, and the codes.
    assert_eq!(
        [f32, bf16, int8, int4],
        [32 * 4, 32 * 2, 2 * 4 + 32, 2 * 4 + 16].map(|n| f64::from(18 * 3 * n))
    );
}

#[test]
fn a_context_beyond_the_positions_is_refused() {
    let model = golden("gpt2");
    shrink(&["bench", &model, "--context", "8,40", "--repeat", "8"])
        .refused("--context is 40, expected at most 39: the model's context is 48");
    shrink(&["bench", &model, "--context", "8", "--repeat", "2147483647"])
        .refused("expected at most 47: the model's context is 48");
    let tokens = |row: &serde_json::Value| row["tokens"].as_u64();
    let found = shrink(&["bench", &model, "--repeat", "8", "--json"]).json();
    let rows = found["measured"].as_array().expect("rows");
    assert_eq!(rows.iter().map(tokens).collect::<Vec<_>>(), [Some(39)], "as far as the context goes");
    shrink(&["bench", &model, "--prefill", "49"]).refused("--prefill is 49, expected at most 48");
    for flag in ["--prefill", "--batch-size", "--repeat"] {
        shrink(&["bench", &model, flag, "0"]).misused(flag);
    }
    shrink(&["bench", &model, "--context", "-1"]).misused("-1");
}
