//! What a ratio promises: 1 changes nothing, 2 halves the cache, and the same request gives the same bytes.

use serde_json::Value;

use crate::folder::{Scratch, TWINS, golden};
use crate::program::{assert_close, number, shrink};

/// Twins whose keys and values carry biases.
const BIASED: [&str; 3] = ["gpt2", "qwen2", "llama-bias"];

fn convert(donor: &str, out: &str, more: &[&str]) -> Value {
    shrink(&[&["convert", donor, "-o", out, "--json"], more].concat()).json()
}

/// Latent numbers a token, a layer an entry.
fn numbers(report: &Value) -> Vec<u64> {
    let numbers = report["latent_numbers"].as_array().expect("a list");
    numbers.iter().map(|n| n.as_u64().expect("a width")).collect()
}

/// A model against its donor on 4 windows of 40 tokens.
fn against(model: &str, donor: &str) -> Value {
    let heldout = golden("demo/heldout.txt");
    let args = ["eval", model, "--data", &heldout, "--max-length", "40", "--windows", "4", "--json"];
    shrink(&[&args[..], &["--against", donor]].concat()).json()
}

fn is_exact(name: &str, calibration: &[&str]) {
    let scratch = Scratch::new();
    let (donor, out) = (golden(name), scratch.path("out"));
    let report = convert(&donor, &out, &[&["--compression-ratio", "1"], calibration].concat());
    assert_eq!(number(&report, "compression_ratio"), 1.0, "{name}");
    let whole = 2 * report["d_kv"].as_u64().expect("a width");
    assert!(numbers(&report).iter().all(|&numbers| numbers == whole), "{name}: {report}");
    let found = against(&out, &donor);
    assert_close(number(&found, "perplexity"), number(&found["against"], "perplexity"), 1e-4);
    assert!(number(&found["against"], "kl").abs() < 1e-7, "{name}: {found}");
}

#[test]
fn ratio_one_changes_nothing_in_any_family() {
    for name in TWINS {
        is_exact(name, &["--no-calibration"]);
    }
}

#[test]
fn ratio_one_changes_nothing_with_calibration_either() {
    let text = golden("demo/calibration.txt");
    for name in TWINS {
        is_exact(
            name,
            &["--calibration", &text, "--num-calibration-samples", "16", "--max-calibration-length", "32"],
        );
    }
}

#[test]
fn ratio_one_keeps_the_biases_that_ratio_two_keeps() {
    for name in BIASED {
        is_exact(name, &["--no-calibration"]);
        // The biases are outside the factors, so they are stored bit for bit at any ratio.
        let (scratch, twin) = (Scratch::new(), Scratch::of(name));
        convert(&golden(name), &scratch.path("out"), &["-r", "2", "--no-calibration"]);
        let (donor, ours) = (twin.tensors("model.safetensors"), scratch.tensors("out/model.safetensors"));
        let biases: Vec<&String> =
            donor.keys().filter(|key| key.contains("attn") && key.ends_with("bias")).collect();
        // GPT-2's `attn.bias` is a mask, no weight.
        let biases: Vec<_> = biases.into_iter().filter(|key| !key.ends_with(".attn.bias")).collect();
        assert!(biases.len() >= 4, "{name}: {biases:?}");
        for key in biases {
            assert_eq!(donor[key], ours[key], "{name}: {key}");
        }
    }
}

#[test]
fn ratio_two_halves_the_cache_of_every_family_and_passes_the_check() {
    for name in TWINS {
        let scratch = Scratch::new();
        let out = scratch.path("out");
        let report = convert(&golden(name), &out, &["-r", "2", "--calibration", "builtin:prose", "--quiet"]);
        assert_eq!(number(&report, "compression_ratio"), 2.0, "{name}");
        assert_eq!(shrink(&["check", &out, "--json"]).json()["ok"], true, "{name}");
        let table = shrink(&["memory", &out]).text();
        assert!(table.starts_with("KV cache at 2.00x, batch 1, f16:\n"), "{name}: {table}");
        let size = &shrink(&["memory", &out, "--json"]).json()["sizes"][0];
        assert_eq!(number(size, "donor_bytes"), 2.0 * number(size, "model_bytes"), "{name}");
        let kl = number(&against(&out, &golden(name))["against"], "kl");
        // A bound on nonsense: over 264 tokens, a uniform guess is some 5 nats away.
        assert!(kl > 0.0 && kl < 2.5, "{name}: {kl}");
    }
}

#[test]
fn the_same_request_gives_the_same_bytes_and_the_same_numbers() {
    for (name, calibration) in [("mixtral", "builtin:prose"), ("gpt2", "builtin:prose")] {
        let scratch = Scratch::new();
        let outs = ["a", "b"].map(|out| scratch.path(out));
        for out in &outs {
            convert(&golden(name), out, &["-r", "4", "--calibration", calibration, "--quiet"]);
        }
        let files: Vec<String> =
            scratch.names().iter().filter_map(|name| name.strip_prefix("a/")).map(str::to_owned).collect();
        assert!(files.len() >= 6, "{files:?}");
        for file in files {
            assert_eq!(
                scratch.read(&format!("a/{file}")),
                scratch.read(&format!("b/{file}")),
                "{name}: {file}"
            );
        }
        // Opened twice, from two folders, to the last bit.
        let donor = golden(name);
        let [first, again, other] = [&outs[0], &outs[0], &outs[1]].map(|out| against(out, &donor));
        for found in [again, other] {
            assert_eq!(
                (&found["perplexity"], &found["against"]),
                (&first["perplexity"], &first["against"]),
                "{name}"
            );
        }
    }
}

#[test]
fn a_width_that_divides_unevenly_is_rounded_down_and_reported_as_it_is() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    let report = convert(&golden("llama"), &out, &["-r", "3", "--no-calibration"]);
    assert_eq!((numbers(&report), number(&report, "compression_ratio")), (vec![20; 3], 3.2));
    let report = convert(&golden("llama"), &out, &["--d-latent", "5", "--no-calibration", "--force"]);
    assert_eq!((numbers(&report), number(&report, "compression_ratio")), (vec![10; 3], 6.4));
    let memory = shrink(&["memory", &out, "--json", "--sequence-lengths", "100"]).json();
    assert_eq!(memory["sizes"][0]["model_bytes"], 2 * 3 * 100 * 5 * 2);
}

#[test]
fn the_largest_ratio_leaves_one_number() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    let report = convert(&golden("llama"), &out, &["-r", "32", "--no-calibration"]);
    assert_eq!(numbers(&report), [2; 3]);
    assert!(number(&against(&out, &golden("llama")), "perplexity").is_finite());
}
