//! `shrink inspect`: what a model is, from `config.json` alone.

use serde_json::{Value, json};

use crate::folder::{Scratch, TWINS, config, golden};
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
    assert_eq!([0, 1].map(|i| found["choices"][i]["asked"].clone()), [json!(3.0), json!(4096.0)]);
    // The ratio is the true one: 4096 / 1365, not 3.
    assert_eq!(found["choices"][0]["compression_ratio"], 4096.0 / 1365.0);
}

/// The page that shrink follows has three such counts. LLaMA-2 7B, `separate`, 4x: 537 M of 6.7 B is what it is here, 4 · 32 ·
/// 4096 · 1024. Qwen2.5-7B, `xkv`, 2x: 708 M is not, since no more than W_down (28 · 2 · 3584 · 256) and the shared W_up
/// (7 · 2 · 512 · 256) train, as that page says itself; its program counts W_q and W_o too and trains neither.
#[test]
fn what_would_train_is_counted_from_the_configuration() {
    let trainable = |name: &str, ratio: &str, method: &str| {
        let folder = folder_of(&config(name));
        let args = ["inspect", &folder.root(), "--compression-ratio", ratio];
        let found = shrink(&[&args[..], &["--json"]].concat()).json();
        (found["choices"][0]["trainable"][method].clone(), shrink(&args).text())
    };
    let (llama, shown) = trainable("llama-2-7b", "4", "separate");
    assert_eq!(llama, 4 * 32 * 4096 * 1024);
    assert!(shown.contains("536.87 M (8.0%)"), "{shown}");
    let (qwen, shown) = trainable("qwen2.5-7b", "2", "xkv");
    assert_eq!(qwen, 28 * 2 * 3584 * 256 + 7 * 2 * 512 * 256);
    assert!(shown.contains("53.22 M (0.7%)"), "{shown}");
}

#[test]
fn a_ratio_beyond_d_kv_is_left_out_and_said_to_be() {
    let args = ["inspect", &golden("qwen2"), "--compression-ratio", "2,17,16,64"];
    let found = shrink(&[&args[..], &["--json"]].concat()).json();
    let asked: Vec<Value> = (0..2).map(|i| found["choices"][i]["asked"].clone()).collect();
    assert_eq!((asked, &found["beyond_d_kv"]), (vec![json!(2.0), json!(16.0)], &json!([17.0, 64.0])));
    let text = shrink(&args).text();
    assert!(text.ends_with("\nleft out, beyond d_kv = 16: 17x, 64x\n"), "{text}");
}

#[test]
fn a_configuration_is_as_good_as_its_folder() {
    let from = |path: &str| shrink(&["inspect", path]).text();
    assert_eq!(from(&golden("qwen2/config.json")), from(&golden("qwen2")));
    let scratch = Scratch::new();
    let out = scratch.path("out");
    shrink(&["convert", &golden("qwen2"), "-o", &out, "-r", "2", "--no-calibration"]).text();
    assert_eq!(from(&scratch.path("out/config.json")), from(&out));
}

#[test]
fn parameters_are_the_numbers_in_the_files() {
    let scratch = Scratch::new();
    let half = scratch.path("half");
    for name in TWINS {
        shrink(&["convert", &golden(name), "-o", &half, "-r", "2", "--no-calibration", "--force"]).text();
        for folder in [golden(name), half.clone()] {
            let stored = Scratch::new();
            let weights = std::fs::read(format!("{folder}/model.safetensors")).expect("weights");
            stored.write("model.safetensors", weights);
            let tensors = stored.tensors("model.safetensors");
            // GPT-2's files hold the causal mask too, and converted ones bases for quantising, which are no parameters.
            let none = |key: &str| key.ends_with(".attn.bias") || key.contains(".mla.w_balance");
            let weights = tensors.iter().filter(|(key, _)| !none(key));
            let numbers: usize = weights.map(|(_, raw)| raw.shape.iter().product::<usize>()).sum();
            assert_eq!(inspect(&folder)["parameters"], numbers, "{folder}");
        }
    }
}

#[test]
fn a_ratio_that_is_none_is_refused() {
    for ratio in ["0.5", "-2", "nan", "2,0"] {
        shrink(&["inspect", &golden("llama"), "--compression-ratio", ratio]).misused("expected 1 or more");
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
        json!([{ "d_latent_k": 8, "d_latent_v": 8, "balanced": true }, { "d_latent_k": 8, "d_latent_v": 8, "balanced": true },
        { "d_latent_k": 8, "d_latent_v": 8, "balanced": true }])
    );
    assert!(
        found["layers"][2]["value"]["energy_kept"].as_f64().is_some_and(|kept| 0.5 < kept && kept < 1.0),
        "{found}"
    );
    assert_snapshot("inspect-converted", &shrink(&["inspect", &out]).text(), &[]);
}
