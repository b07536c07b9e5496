//! Models that no machine has the memory for: refused before they are loaded.

use std::os::unix::fs::FileExt;

use serde_json::{Value, json};

use crate::folder::{Scratch, golden};
use crate::program::shrink;

/// Rows of an embedding that takes 256 GiB in f32.
const ROWS: u64 = (1 << 31) - 2;

/// Gives the model in a folder so large a vocabulary. Its file has a hole for the rows, which takes no room on the disk.
fn enlarge(scratch: &Scratch, folder: &str) {
    let name = |file: &str| format!("{folder}{file}");
    let mut config = scratch.read_json(&name("config.json"));
    config["vocab_size"] = ROWS.into();
    scratch.write(&name("config.json"), config.to_string());
    let bytes = scratch.read(&name("model.safetensors"));
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length as usize]).expect("a header");
    let mut end = 0;
    for (key, tensor) in header.as_object_mut().expect("an object") {
        if key == "__metadata__" {
            continue;
        }
        if key.contains("embed_tokens") || key.contains("lm_head") {
            tensor["shape"][0] = ROWS.into();
            tensor["dtype"] = "BF16".into();
        }
        let size = if tensor["dtype"] == "BF16" { 2 } else { 4 };
        let numbers: u64 =
            tensor["shape"].as_array().expect("a shape").iter().filter_map(Value::as_u64).product();
        tensor["data_offsets"] = json!([end, end + numbers * size]);
        end += numbers * size;
    }
    let header = header.to_string();
    let file = std::fs::File::create(scratch.path(&name("model.safetensors"))).expect("a file");
    file.write_all_at(&(header.len() as u64).to_le_bytes(), 0).expect("it is written");
    file.write_all_at(header.as_bytes(), 8).expect("it is written");
    file.set_len(8 + header.len() as u64 + end).expect("a hole takes no room");
}

#[test]
fn what_would_not_fit_is_refused_before_it_is_loaded() {
    let (donor, converted) = (Scratch::of("llama"), Scratch::new());
    shrink(&["convert", &golden("llama"), "-o", &converted.path("model"), "-r", "2", "--no-calibration"])
        .text();
    enlarge(&donor, "");
    enlarge(&converted, "model/");
    let text = golden("demo/heldout.txt");
    let (donor, latent, out) = (donor.root(), converted.path("model"), converted.path("out"));
    let short = ["--max-length", "32"];
    for (task, args) in [
        ("the evaluation", &["eval", &donor, "--data", &text][..]),
        ("the evaluation", &["eval", &golden("llama"), "--data", &text, "--against", &donor]),
        ("the comparison", &["compare", &donor, "--data", &text, "--no-calibration"]),
        ("the training run", &["train", &latent, "-o", &out, "--data", &text, "--loss", "lm"]),
    ] {
        let hint = shrink(&[args, &short].concat()).refused(&format!("{task} needs "));
        assert!(hint.contains("--overcommit"), "{hint}");
    }
    for (task, args) in [
        ("the generation", &["generate", &donor, "--prompt", "x"][..]),
        ("the measurement", &["bench", &donor, "--context", "1", "--repeat", "1"]),
    ] {
        let hint = shrink(args).refused(&format!("{task} needs "));
        assert!(hint.contains("--overcommit"), "{hint}");
    }
    assert!(!std::path::Path::new(&out).exists());
}

#[test]
fn a_batch_that_would_not_fit_is_refused_and_overcommit_goes_on() {
    let llama = golden("llama");
    let bench =
        |more: &[&str]| shrink(&[&["bench", &llama, "--context", "1", "--repeat", "1"], more].concat());
    let hint = bench(&["--batch-size", "2147483647"]).refused("the measurement needs ");
    assert!(hint.contains("--batch-size"), "{hint}");
    bench(&["--batch-size", "2", "--overcommit"]).text();
    for command in ["eval", "generate", "train", "compare", "bench", "convert"] {
        assert!(shrink(&[command, "--help"]).text().contains("--overcommit"), "{command}");
    }
}
