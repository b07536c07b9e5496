//! `shrink memory`: every cache table of the two published pages of cacheshrink, from `config.json` files alone.

use serde_json::Value;

use crate::folder::{Scratch, config, golden};
use crate::program::{number, shrink};
use crate::snapshot::assert_snapshot;

/// A published row: tokens, and the cells of its table that are given: standard, compressed, saved.
type Row = (&'static str, [Option<&'static str>; 3]);

/// The sizes the program gives, as exact bytes.
fn sizes(model: &str, ratio: &str, lengths: &str, dtype: &str) -> Vec<Value> {
    let args = ["memory", model, "--json", "--compression-ratio", ratio, "--sequence-lengths", lengths];
    let found = shrink(&[&args[..], &["--dtype", dtype]].concat()).json();
    found["sizes"].as_array().expect("a list").clone()
}

/// Bytes in the unit and with the digits of a published cell.
fn as_published(bytes: u64, cell: &str) -> String {
    let (digits, unit) = cell.split_once(' ').expect("a number and a unit");
    let scale = match unit {
        "MB" => 1u64 << 20,
        "GB" => 1 << 30,
        other => panic!("{other}: no unit of the pages"),
    };
    let decimals = digits.split_once('.').map_or(0, |(_, decimals)| decimals.len());
    format!("{:.decimals$} {unit}", bytes as f64 / scale as f64)
}

/// A model's table in 16 bits, as the pages have theirs.
fn reproduces(name: &str, ratio: &str, rows: &[Row]) {
    reproduces_in("f16", name, ratio, rows);
}

fn reproduces_in(dtype: &str, name: &str, ratio: &str, rows: &[Row]) {
    let lengths: Vec<&str> = rows.iter().map(|(tokens, _)| *tokens).collect();
    let found = sizes(&config(name), ratio, &lengths.join(","), dtype);
    assert_eq!(found.len(), rows.len());
    for ((tokens, cells), size) in rows.iter().zip(&found) {
        assert_eq!(size["tokens"].to_string(), *tokens);
        for (cell, field) in cells.iter().zip(["donor_bytes", "model_bytes", "saved_bytes"]) {
            let bytes = size[field].as_u64().expect("bytes");
            assert!(
                cell.is_none_or(|cell| as_published(bytes, cell) == cell),
                "{name} {ratio}x: {size} {cell:?}"
            );
        }
    }
}

#[test]
fn the_overview_of_both_pages_comes_out() {
    // 2 x 28 x 4096 x 512 x 2 = 224 MB; 2 x 32 x 4096 x 4096 x 2 = 2 GB.
    reproduces("qwen2.5-7b", "1", &[("4096", [Some("224 MB"), None, None])]);
    reproduces("llama-2-7b", "1", &[("4096", [Some("2 GB"), None, None])]);
}

#[test]
fn the_first_pages_table_of_qwen_at_2x_comes_out() {
    let rows = [
        ("512", [Some("28 MB"), Some("14 MB"), Some("14 MB")]),
        ("2048", [Some("112 MB"), Some("56 MB"), Some("56 MB")]),
        ("4096", [Some("224 MB"), Some("112 MB"), Some("112 MB")]),
    ];
    reproduces("qwen2.5-7b", "2", &rows);
}

#[test]
fn the_first_pages_tables_of_llama_at_16x_come_out() {
    let rows = [
        ("512", [Some("256 MB"), Some("16 MB"), Some("240 MB")]),
        ("2048", [Some("1.00 GB"), Some("64 MB"), Some("960 MB")]),
        ("4096", [Some("2.00 GB"), Some("128 MB"), Some("1.9 GB")]),
        ("8192", [Some("4.00 GB"), Some("256 MB"), Some("3.75 GB")]),
    ];
    reproduces("llama-2-7b", "16", &rows);
}

#[test]
fn the_first_pages_figures_of_mistral_at_4x_come_out() {
    // With its 8 kv heads of 128 that is 4 bytes a number; in 16 bits it is half.
    reproduces_in("f32", "mistral-7b", "4", &[("2048", [Some("512 MB"), Some("128 MB"), None])]);
    reproduces("mistral-7b", "4", &[("2048", [Some("256 MB"), Some("64 MB"), None])]);
}

#[test]
fn the_second_pages_tables_of_llama_at_4x_come_out() {
    let rows = [
        ("512", [Some("256 MB"), Some("64 MB"), Some("192 MB")]),
        ("1024", [Some("512 MB"), Some("128 MB"), Some("384 MB")]),
        ("2048", [Some("1.00 GB"), Some("256 MB"), Some("768 MB")]),
        ("4096", [Some("2.00 GB"), Some("512 MB"), Some("1.5 GB")]),
        ("8192", [Some("4.00 GB"), Some("1.00 GB"), Some("3.0 GB")]),
    ];
    reproduces("llama-2-7b", "4", &rows);
}

#[test]
fn the_tables_read_as_published() {
    for (name, ratio, lengths, dtype) in [
        ("qwen2.5-7b", "2", "512,2048,4096", "f16"),
        ("llama-2-7b", "16", "512,2048,4096,8192", "f16"),
        ("llama-2-7b", "4", "512,1024,2048,4096,8192", "f16"),
        ("mistral-7b", "4", "2048", "f32"),
    ] {
        let args = ["memory", &config(name), "-r", ratio, "--sequence-lengths", lengths, "--dtype", dtype];
        let run = shrink(&args);
        assert_snapshot(&format!("memory-{name}-{ratio}x"), &run.text(), &[]);
    }
}

#[test]
fn layers_that_keep_their_attention_count_in_full() {
    // The page: four of Qwen2.5-7B's 28 layers kept, 2x in the others, really 1.75x.
    let scratch = Scratch::new();
    let mut json: Value =
        serde_json::from_slice(&std::fs::read(config("qwen2.5-7b")).expect("a file")).expect("JSON");
    let latent = serde_json::json!({ "d_latent_k": 256, "d_latent_v": 256 });
    let layers: Vec<Value> =
        (0..28).map(|layer| if layer < 4 { Value::Null } else { latent.clone() }).collect();
    json["mla"] =
        serde_json::json!({ "version": 1, "method": "separate", "objective": "mse", "layers": layers });
    let path = scratch.write("config.json", json.to_string());
    let found = shrink(&["memory", &path, "--json", "--sequence-lengths", "4096"]).json();
    assert_eq!(number(&found, "compression_ratio"), 1.75);
    assert_eq!(found["sizes"][0]["donor_bytes"], 224 << 20);
    assert_eq!(found["sizes"][0]["model_bytes"], 128 << 20);
}

#[test]
fn bytes_scale_with_the_batch_and_the_type() {
    let bytes = |more: &[&str]| {
        let path = config("mistral-7b");
        let args = [&["memory", &path, "--json", "-r", "4", "--sequence-lengths", "1000"], more].concat();
        let size = &shrink(&args).json()["sizes"][0];
        ["donor_bytes", "model_bytes", "saved_bytes"].map(|field| size[field].as_u64().expect("bytes"))
    };
    // 2 · 32 layers · 1000 tokens · d_kv 1024 · 2 bytes.
    assert_eq!(bytes(&[]), [131_072_000, 32_768_000, 98_304_000]);
    assert_eq!(bytes(&["--batch-size", "3"]), [393_216_000, 98_304_000, 294_912_000]);
    assert_eq!(bytes(&["--dtype", "bf16"]), bytes(&[]));
    assert_eq!(bytes(&["--dtype", "f32"]), [262_144_000, 65_536_000, 196_608_000]);
}

#[test]
fn the_width_of_a_head_comes_from_the_configuration() {
    // head_dim is 16 where d_model / n_heads would be 8.
    let found = shrink(&["memory", &golden("llama"), "--json", "--sequence-lengths", "1"]).json();
    assert_eq!(found["sizes"][0]["donor_bytes"], 2 * 3 * 2 * 16 * 2);
}

#[test]
fn a_folder_and_its_configuration_give_the_same() {
    let folder = shrink(&["memory", &golden("qwen2"), "-r", "2"]).text();
    assert_eq!(folder, shrink(&["memory", &golden("qwen2/config.json"), "-r", "2"]).text());
}

#[test]
fn a_cache_of_more_bytes_than_there_are_numbers_for_is_refused() {
    let most = i32::MAX.to_string();
    let model = config("qwen2.5-7b");
    // Four gigatokens at a time, of 56 KB each, still have a number; 2^62 of them have none.
    shrink(&["memory", &model, "--batch-size", "2", "--sequence-lengths", &most]).text();
    shrink(&["memory", &model, "--batch-size", &most, "--sequence-lengths", &format!("512,{most}")])
        .refused(&format!("--sequence-lengths is {most}, expected a cache of fewer than 2^64 bytes"));
    shrink(&["memory", &model, "--batch-size", &most, "--sequence-lengths", "2147483646"])
        .refused(&format!("--batch-size is {most}, expected a cache of fewer than 2^64 bytes"));
    shrink(&["memory", &model, "--batch-size", &u64::MAX.to_string()]).misused("--batch-size");
}
