//! `shrink inspect`: what a model is, from `config.json` alone.

use serde_json::{Value, json};

use crate::folder::{Scratch, config, golden};
use crate::program::shrink;
use crate::snapshot::assert_snapshot;

/// A folder that holds a configuration and nothing else.
fn folder_of(config: &str) -> Scratch {
    let scratch = Scratch::new();
    scratch.write("config.json", std::fs::read(config).expect("a configuration"));
    scratch
}

fn inspect(folder: &str) -> Value {
    shrink(&["inspect", folder, "--json"]).json()
}

#[test]
fn every_family_is_recognised_with_its_heads() {
    let expected = [
        ("gpt2", "MHA", [4, 4, 8, 32]),
        ("llama", "GQA", [4, 2, 16, 32]),
        ("mistral", "GQA", [4, 2, 8, 16]),
        ("mixtral", "GQA", [4, 2, 8, 16]),
        ("qwen2", "GQA", [4, 2, 8, 16]),
    ];
    for (family, attention, heads) in expected {
        let found = inspect(&folder_of(&golden(&format!("{family}/config.json"))).root());
        assert_eq!((&found["family"], &found["attention"]), (&json!(family), &json!(attention)));
        let found = ["n_heads", "n_kv_heads", "d_head", "d_kv"].map(|field| found[field].clone());
        assert_eq!(found, heads.map(|n: i32| json!(n)), "{family}");
    }
}

#[test]
fn one_head_for_all_queries_is_mqa() {
    let scratch = folder_of(&golden("llama/config.json"));
    scratch.set("num_key_value_heads", 1);
    let found = inspect(&scratch.root());
    assert_eq!((&found["attention"], &found["d_kv"]), (&json!("MQA"), &json!(16)));
    scratch.set("num_key_value_heads", 4);
    assert_eq!(inspect(&scratch.root())["attention"], "MHA");
}

#[test]
fn models_of_the_hub_are_described() {
    for (name, attention, d_kv, cache) in [
        ("qwen2.5-7b", "GQA", 512, 57_344),
        ("llama-2-7b", "MHA", 4096, 524_288),
        ("mistral-7b", "GQA", 1024, 131_072),
    ] {
        let folder = folder_of(&config(name));
        let found = inspect(&folder.root());
        assert_eq!((&found["attention"], &found["d_kv"]), (&json!(attention), &json!(d_kv)), "{name}");
        assert_eq!(found["cache_bytes_a_token"], cache, "{name}");
        assert_snapshot(&format!("inspect-{name}"), &shrink(&["inspect", &folder.root()]).text(), &[]);
    }
}

#[test]
fn each_ratio_asked_for_is_a_choice() {
    let folder = folder_of(&config("llama-2-7b"));
    let found = shrink(&["inspect", &folder.root(), "--json", "--compression-ratio", "3,4096"]).json();
    let choice =
        |i: usize| ["d_latent", "cache_bytes_a_token"].map(|field| found["choices"][i][field].clone());
    assert_eq!(choice(0), [json!(1365), json!(2 * 32 * 1365 * 2)]);
    assert_eq!(choice(1), [json!(1), json!(2 * 32 * 2)]);
    // The ratio is the true one: 4096 / 1365, not 3.
    assert_eq!(found["choices"][0]["compression_ratio"], 4096.0 / 1365.0);
}

#[test]
fn a_ratio_that_is_none_is_refused() {
    for ratio in ["0.5", "-2", "nan", "2,0"] {
        shrink(&["inspect", &golden("llama"), "--compression-ratio", ratio])
            .refused("is out of range: from 1 to d_kv = 32");
    }
}

#[test]
fn a_converted_folder_lists_its_ranks_and_what_they_keep() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    shrink(&["convert", &golden("qwen2"), "-o", &out, "-r", "2", "--no-calibration"]).text();
    let found = inspect(&out);
    assert_eq!(found["compression_ratio"], 2.0);
    assert_eq!(
        found["mla"]["layers"],
        json!([{ "d_latent_k": 8, "d_latent_v": 8 }, { "d_latent_k": 8, "d_latent_v": 8 },
        { "d_latent_k": 8, "d_latent_v": 8 }])
    );
    assert!(
        found["layers"][2]["value"]["energy_kept"].as_f64().is_some_and(|kept| 0.5 < kept && kept < 1.0),
        "{found}"
    );
    assert_snapshot("inspect-converted", &shrink(&["inspect", &out]).text(), &[]);
}
