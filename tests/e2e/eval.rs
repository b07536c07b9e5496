//! `shrink eval`: the reference's perplexity, whatever way it is computed.

use serde_json::{Value, json};

use crate::folder::{Scratch, TWINS, golden};
use crate::golden::Golden;
use crate::program::{assert_close, number, shrink};

/// Scores the demo's held-out text.
fn eval(model: &str, more: &[&str]) -> Value {
    let heldout = golden("demo/heldout.txt");
    shrink(&[&["eval", model, "--json", "--data", &heldout], more].concat()).json()
}

/// A twin at half its cache.
fn converted(name: &str, scratch: &Scratch) -> String {
    let out = scratch.path(&format!("{name}-2x"));
    shrink(&["convert", &golden(name), "-o", &out, "-r", "2", "--no-calibration", "--quiet"]).text();
    out
}

#[test]
fn weights_in_16_bits_give_what_they_give_widened() {
    let scratch = Scratch::new();
    let fit = ["--calibration", "builtin:prose", "--num-calibration-samples", "8", "--method", "cascade"];
    for dtype in ["bf16", "f16"] {
        let out = scratch.path(dtype);
        shrink(&[&["convert", &golden("demo"), "-o", &out, "-r", "2", "--dtype", dtype], &fit[..]].concat())
            .text();
        // Windows of 128 tokens are many rows, tokens one by one are few.
        for through in [&[][..], &["--through-cache"]] {
            let run = |weights: &str| {
                let short = ["--max-length", "128", "--windows", "3", "--weight-dtype", weights];
                eval(&out, &[&short[..], through].concat())
            };
            let (stored, wide) = (run("stored"), run("f32"));
            assert_close(number(&stored, "perplexity"), number(&wide, "perplexity"), 1e-6);
        }
        let say = |weights: &str| {
            let prompt = ["--prompt", "It is a truth", "--max-new-tokens", "24", "--weight-dtype", weights];
            shrink(&[&["generate", &out][..], &prompt].concat()).text()
        };
        assert_eq!(say("stored"), say("f32"), "{dtype}");
    }
}

#[test]
fn the_bundled_models_perplexity_is_the_references() {
    let found = eval(&golden("demo"), &["--max-length", "256", "--windows", "40"]);
    assert_close(number(&found, "perplexity"), Golden::read().perplexity(), 2e-4);
    assert_close(number(&found, "nll").exp(), number(&found, "perplexity"), 1e-12);
    assert_eq!((&found["tokens"], &found["windows"]), (&json!(40 * 255), &json!(40)));
}

#[test]
fn scoring_through_the_cache_changes_nothing_in_any_family() {
    let scratch = Scratch::new();
    for name in TWINS {
        for model in [golden(name), converted(name, &scratch)] {
            let windows = ["--max-length", "40", "--windows", "2"];
            let full = eval(&model, &windows);
            let cached = eval(&model, &[&windows[..], &["--through-cache"]].concat());
            assert_close(number(&cached, "perplexity"), number(&full, "perplexity"), 1e-4);
            assert_eq!((&full["through_cache"], &cached["through_cache"]), (&json!(false), &json!(true)));
        }
    }
}

#[test]
fn scoring_the_bundled_model_through_the_cache_changes_nothing() {
    let windows = ["--max-length", "128", "--windows", "2"];
    let full = eval(&golden("demo"), &windows);
    let cached = eval(&golden("demo"), &[&windows[..], &["--through-cache"]].concat());
    assert_close(number(&cached, "perplexity"), number(&full, "perplexity"), 1e-4);
}

#[test]
fn a_long_window_in_chunks_scores_as_token_by_token() {
    let (donor, converted) = (golden("demo"), Scratch::new());
    let out = converted.path("out");
    let plain = ["-r", "2", "--no-calibration", "--method", "separate", "--objective", "mse", "--quiet"];
    shrink(&[&["convert", &donor, "-o", &out], &plain[..]].concat()).text();
    // What is rounded at the edge of two steps may fall to either side; f32 agrees to its own rounding.
    for (model, dtype, bound) in
        [(donor, "f32", 1e-4), (out.clone(), "f32", 1e-4), (out.clone(), "int8", 1e-3), (out, "int4", 1e-2)]
    {
        let window = ["--max-length", "1000", "--windows", "1", "--cache-dtype", dtype];
        let chunks = eval(&model, &window);
        let tokens = eval(&model, &[&window[..], &["--through-cache"]].concat());
        assert_close(number(&chunks, "perplexity"), number(&tokens, "perplexity"), bound);
        assert_eq!(chunks["tokens"], 999);
    }
}

#[test]
fn a_loss_by_position_sums_up_to_the_whole() {
    let (donor, scratch) = (golden("demo"), Scratch::new());
    let half = converted("demo", &scratch);
    let windows = ["--max-length", "300", "--windows", "3", "--against", &donor];
    let plain = eval(&half, &windows);
    let found = eval(&half, &[&windows[..], &["--by-position"]].concat());
    assert_eq!((&plain["by_position"], &plain["nll"]), (&Value::Null, &found["nll"]));
    let buckets = found["by_position"].as_array().expect("a list");
    let bounds: Vec<_> = buckets.iter().map(|at| (number(at, "from"), number(at, "to"))).collect();
    assert_eq!(bounds, [(1.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 300.0)]);
    let (mut nll, mut kl, mut tokens) = (0.0, 0.0, 0.0);
    for at in buckets {
        let weight = number(at, "tokens");
        assert_eq!(weight, 3.0 * (number(at, "to") - number(at, "from")));
        tokens += weight;
        nll += weight * number(at, "nll");
        kl += weight * number(&at["against"], "kl");
        let ratio = number(at, "perplexity") / number(&at["against"], "perplexity");
        assert_close(number(&at["against"], "ratio"), ratio, 1e-12);
    }
    assert_eq!(number(&found, "tokens"), tokens);
    assert_close(nll / tokens, number(&found, "nll"), 1e-12);
    assert_close(kl / tokens, number(&found["against"], "kl"), 1e-12);
    let heldout = golden("demo/heldout.txt");
    let args = ["eval", &donor, "--data", &heldout, "--max-length", "100", "--windows", "1", "--by-position"];
    let text = shrink(&args).text();
    assert!(text.contains("\npositions  tokens ") && text.contains("\n64 to 99 "), "{text}");
}

#[test]
fn a_model_is_at_no_distance_from_itself_and_at_some_from_its_conversion() {
    let scratch = Scratch::new();
    let (donor, half) = (golden("qwen2"), converted("qwen2", &scratch));
    let windows = ["--max-length", "32", "--windows", "3", "--against", &donor];
    let found = eval(&donor, &windows);
    assert!(number(&found["against"], "kl").abs() < 1e-9, "{found}");
    assert_eq!(found["against"]["top1_agreement"], 1.0);
    assert_close(number(&found["against"], "perplexity"), number(&found, "perplexity"), 1e-12);
    let found = eval(&half, &windows);
    assert!(number(&found["against"], "kl") > 1e-3, "{found}");
    assert!(number(&found["against"], "top1_agreement") < 1.0, "{found}");
    assert_eq!(found["against"]["model"], donor);
}

#[test]
fn models_with_different_vocabularies_cannot_be_compared() {
    let heldout = golden("demo/heldout.txt");
    let args =
        ["eval", &golden("llama"), "--data", &heldout, "--max-length", "32", "--against", &golden("demo")];
    shrink(&args).refused("vocabularies of 264 and 1024");
}

#[test]
fn the_cache_of_a_converted_model_is_smaller_by_its_ratio() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    for (ratio, bytes) in [("2", 2 * 3 * 32 * 16 * 4), ("5", 2 * 3 * 32 * 6 * 4)] {
        shrink(&["convert", &golden("llama"), "-o", &out, "-r", ratio, "--no-calibration", "--force"]).text();
        let found = eval(&out, &["--max-length", "32", "--windows", "1"]);
        assert_eq!(
            found["cache"],
            json!({ "tokens": 32, "dtype": "f32", "bytes": bytes, "donor_dtype": "f32", "donor_bytes": 2 * 3 * 32 * 32 * 4 })
        );
        assert_eq!(number(&found, "compression_ratio"), f64::from(2 * 3 * 32 * 32 * 4) / f64::from(bytes));
    }
}

#[test]
fn a_stride_scores_every_token_but_the_first() {
    let scratch = Scratch::new();
    let golden_texts = Golden::read();
    let (text, tokens) = golden_texts.texts().into_iter().max_by_key(|(_, tokens)| *tokens).expect("a text");
    let file = scratch.write("text.txt", text);
    for (length, stride) in [("8", "3"), ("8", "7"), ("1000", "999")] {
        let args =
            ["eval", &golden("demo"), "--json", "--data", &file, "--max-length", length, "--stride", stride];
        let found = shrink(&args).json();
        assert_eq!(found["tokens"], json!(tokens - 1), "{length}/{stride}: {text:?}");
        assert_eq!(found["stride"].to_string(), stride);
    }
    // One window that holds all is the same measurement either way.
    let all = tokens.to_string();
    let one = |more: &[&str]| {
        let args = ["eval", &golden("demo"), "--json", "--data", &file, "--max-length", &all];
        number(&shrink(&[&args[..], more].concat()).json(), "perplexity")
    };
    assert_eq!(one(&[]), one(&["--stride", "1"]));
}

#[test]
fn documents_score_the_same_from_any_format() {
    let scratch = Scratch::new();
    let text = "First, naïve words.\n\nThen — after a blank line — some more of them, to fill two windows at the least.";
    let (one, two) = text.split_once("\n\n").expect("two documents");
    let line = |text: &str| format!("{}\n", json!({ "body": text }));
    let files = [
        vec![scratch.write("whole.txt", text)],
        vec![scratch.write("one.txt", one), scratch.write("two.txt", two)],
        vec![scratch.write("rows.jsonl", line(one) + &line(two))],
        vec![scratch.path("one.txt"), scratch.write("two.jsonl", line(two))],
    ];
    let scores = files.map(|files| {
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        let args =
            ["eval", &golden("gpt2"), "--json", "--text-field", "body", "--max-length", "40", "--data"];
        number(&shrink(&[&args[..], &files].concat()).json(), "perplexity")
    });
    assert!(scores.iter().all(|score| *score == scores[0]), "{scores:?}");
}

#[test]
fn a_perplexity_that_is_no_number_is_an_error_not_a_result() {
    let scratch = Scratch::of("llama");
    // Every weight is finite, the logits are not.
    scratch.edit(|tensors| tensors.get_mut("lm_head.weight").expect("a head").scale(1e38));
    let heldout = golden("demo/heldout.txt");
    let args =
        ["eval", &scratch.root(), "--data", &heldout, "--max-length", "32", "--windows", "2", "--json"];
    let hint = shrink(&args).refused("the model gives no number for token");
    assert!(hint.contains("overflow"), "{hint}");
    shrink(&[&args[..], &["--through-cache"]].concat()).refused("the model gives no number for token");
}

#[test]
fn the_text_says_what_was_measured() {
    let heldout = golden("demo/heldout.txt");
    let donor = golden("mistral");
    let args =
        ["eval", &donor, "--data", &heldout, "--max-length", "32", "--windows", "2", "--against", &donor];
    let text = shrink(&args).text();
    let lines: Vec<&str> = text.lines().collect();
    let [score, cache, against] = lines.as_slice() else { panic!("{text}") };
    assert!(
        score.starts_with("perplexity ") && score.ends_with("  (62 tokens in 2 windows of 32)"),
        "{score}"
    );
    // Its window of 8 is all that a layer keeps.
    assert_eq!(*cache, "cache of 32 tokens as allocated, f32: 3 KB (donor, f32: 3 KB)");
    assert!(
        against.starts_with("against mistral: perplexity ") && against.contains(", ratio 1.0000, "),
        "{against}"
    );
}
