//! `shrink check`: passes what convert wrote, and nothing that was changed since.

use crate::folder::{Scratch, golden};
use crate::program::{number, shrink};

fn converted() -> Scratch {
    let scratch = Scratch::new();
    let folder = scratch.root();
    shrink(&[
        "convert",
        &golden("llama"),
        "-o",
        &folder,
        "-r",
        "2",
        "--no-calibration",
        "--force",
        "--quiet",
    ])
    .text();
    scratch
}

#[test]
fn a_fresh_folder_passes_with_every_figure() {
    let scratch = converted();
    let found = shrink(&["check", &scratch.root(), "--json"]).json();
    assert_eq!(
        (&found["ok"], &found["matrices_checked"], &found["tensors"]),
        (&true.into(), &6.into(), &42.into())
    );
    assert!(number(&found, "worst_orthonormality") < 1e-6, "{found}");
    assert_eq!(number(&found, "compression_ratio"), 2.0);
    // 3 layers · (16 + 16) numbers · 2 bytes.
    assert_eq!(found["cache_bytes_a_token"], 192);
    assert_eq!(found["weight_bytes"], scratch.read("model.safetensors").len());
    let text = shrink(&["check", &scratch.root()]).text();
    assert!(
        text.starts_with("42 tensors: all there, in shape, finite (")
            && text.contains("6 W_up matrices: worst")
    );
    assert!(!text.contains("FAILED"), "{text}");
}

#[test]
fn columns_that_are_no_longer_orthonormal_fail() {
    let scratch = converted();
    let key = "model.layers.1.self_attn.mla.w_up_v";
    scratch.edit(|tensors| tensors.get_mut(key).expect("a factor").scale(1.001));
    let run = shrink(&["check", &scratch.root()]);
    let failures: Vec<&str> = run.stdout.lines().filter(|line| line.starts_with("FAILED ")).collect();
    assert!(failures.len() == 1 && failures[0].contains(key), "{failures:?}");
    run.failed("1 of 7 checks failed");
    let run = shrink(&["check", &scratch.root(), "--json"]);
    let found: serde_json::Value = serde_json::from_str(&run.stdout).expect("a JSON object");
    assert_eq!(found["ok"], false);
    run.failed("1 of 7 checks failed");
}

#[test]
fn a_record_of_other_ranks_fails() {
    let scratch = converted();
    assert_eq!(shrink(&["check", &scratch.root(), "--json"]).json()["record_agrees"], true);
    let mut record = scratch.read_json("shrink.json");
    record["layers"][2]["value"]["d_latent"] = 15.into();
    scratch.write("shrink.json", record.to_string());
    let run = shrink(&["check", &scratch.root()]);
    let failure = "FAILED shrink.json: layer 2 has latent widths 16 and 15, config.json 16 and 16\n";
    assert!(run.stdout.ends_with(failure), "{}", run.stdout);
    run.failed("1 of 7 checks failed");
    record["layers"].as_array_mut().expect("a list").pop();
    scratch.write("shrink.json", record.to_string());
    let run = shrink(&["check", &scratch.root()]);
    assert!(run.stdout.ends_with("FAILED shrink.json: 2 layers, config.json has 3\n"), "{}", run.stdout);
    run.failed("1 of 7 checks failed");
    // A folder without a record has one thing less to check.
    scratch.remove("shrink.json");
    let found = shrink(&["check", &scratch.root(), "--json"]).json();
    assert_eq!((&found["ok"], &found["record_agrees"]), (&true.into(), &serde_json::Value::Null));
}

#[test]
fn a_weight_that_is_no_number_is_named() {
    let scratch = converted();
    let key = "model.layers.0.self_attn.mla.w_down_k";
    scratch.edit(|tensors| tensors.get_mut(key).expect("a factor").set(7, f32::NAN));
    shrink(&["check", &scratch.root()]).refused(&format!("{key} holds NaN at element 7"));
}

#[test]
fn a_factor_that_is_gone_or_of_another_rank_is_named() {
    let scratch = converted();
    let key = "model.layers.2.self_attn.mla.w_up_k";
    scratch.edit(|tensors| {
        let factor = tensors.get_mut(key).expect("a factor");
        factor.shape = vec![16, 32];
    });
    shrink(&["check", &scratch.root()])
        .refused(&format!("{key} has shape [16, 32], config.json implies [32, 16]"));
    scratch.edit(|tensors| drop(tensors.remove(key)));
    shrink(&["check", &scratch.root()]).refused(&format!("1 tensor(s) missing, the first is {key}"));
}

#[test]
fn a_donor_has_nothing_to_check() {
    let hint = shrink(&["check", &golden("llama")]).refused("is not a converted model");
    assert!(hint.contains("shrink convert"), "{hint}");
}
