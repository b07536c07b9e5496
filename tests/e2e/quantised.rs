//! `--cache-dtype`: fewer bits a cached number, what they cost, and what they take; and rank and bits chosen together.

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
    let checked = shrink(&["check", &model, "--json"]).json();
    let inspected = shrink(&["inspect", &model, "--json"]).json();
    assert_eq!(checked["cache_dtype"], "int4");
    assert_eq!(checked["cache_bytes_a_token"], inspected["cache_bytes_a_token"]);
    assert_close(
        number(&checked, "cache_ratio"),
        number(&own["cache"], "donor_bytes") / number(&own["cache"], "bytes"),
        1e-9,
    );
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
    shrink(&["memory", &golden("llama"), "--cache-dtype", "int4"]).refused("int4 is for latents");
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

/// Converts the llama twin to a goal.
fn planned(scratch: &Scratch, out: &str, goal: &[&str]) -> Value {
    let (out, text) = (scratch.path(out), golden("demo/calibration.txt"));
    let args = ["convert", &golden("llama"), "-o", &out, "--calibration", &text, "--json"];
    let windows = ["--num-calibration-samples", "24", "--max-calibration-length", "40"];
    shrink(&[&args[..], &windows, goal].concat()).json()
}

#[test]
fn a_target_is_reached_in_bytes_by_the_plan_that_measures_best() {
    let scratch = Scratch::new();
    for target in [2.5, 4.0] {
        let found = planned(&scratch, &format!("{target}"), &["--target", &format!("{target}x")]);
        assert!(number(&found, "cache_ratio") >= target, "{found}");
        let trials = found["trials"].as_array().expect("trials");
        let least = trials.iter().map(|trial| number(trial, "kl")).fold(f64::INFINITY, f64::min);
        assert!(number(&found, "selection_kl") <= least + 0.005, "as good as the best: {found}");
        for trial in trials {
            let ratio = number(trial, "cache_ratio");
            assert!(ratio >= target, "{trial}");
            // No plan gives away more than whole numbers and whole words force it to, but where bits alone are enough.
            assert!(ratio < 1.35 * target || number(trial, "compression_ratio") == 1.0, "{trial}");
        }
        for dtype in ["int8", "int4", "int3"] {
            assert!(trials.iter().any(|trial| trial["cache_dtype"] == dtype), "{dtype}: {found}");
        }
        assert!(trials.iter().any(|trial| trial["method"] == "cascade"), "{found}");
        // The folder is cached as it was measured.
        let model = scratch.path(&format!("{target}"));
        let cache = &eval(&model, &[])["cache"];
        assert_eq!(cache["dtype"], found["cache_dtype"]);
        assert_close(
            number(cache, "donor_bytes") / number(cache, "bytes"),
            number(&found, "cache_ratio"),
            1e-9,
        );
        let record = scratch.read_json(&format!("{target}/shrink.json"));
        assert_eq!(
            (&record["asked"]["target"], &record["cache_dtype"]),
            (&target.into(), &found["cache_dtype"])
        );
    }
}

#[test]
fn an_increase_that_is_allowed_is_not_exceeded() {
    let scratch = Scratch::new();
    let found = planned(&scratch, "out", &["--max-ppl-increase", "5%", "--method", "joint"]);
    assert!(number(&found, "kl") <= 1.05f64.ln(), "{found}");
    let chosen = number(&found, "cache_ratio");
    assert!(chosen > 1.4, "{found}");
    let smaller = found["trials"].as_array().expect("trials").iter();
    let smaller: Vec<_> = smaller.filter(|trial| number(trial, "cache_ratio") > 1.2 * chosen).collect();
    assert!(!smaller.is_empty() && smaller.iter().all(|trial| number(trial, "kl") > 1.05f64.ln()), "{found}");
}

#[test]
fn a_method_that_was_named_is_planned_too() {
    let scratch = Scratch::new();
    let found = planned(&scratch, "out", &["--target", "4x", "--method", "xkv"]);
    assert!(number(&found, "cache_ratio") >= 4.0, "{found}");
    assert_ne!(found["cache_dtype"], "f32");
    for trial in found["trials"].as_array().expect("trials") {
        assert_eq!(trial["method"], "xkv", "{found}");
    }
}

#[test]
fn the_cheapest_is_not_taken_where_only_the_best_keeps_the_bound() {
    let scratch = Scratch::new();
    let of = |out: &str, goal: &[&str]| planned(&scratch, out, &[goal, &["--cache-dtype", "int8"]].concat());
    let trials = |found: &Value| {
        let trials = found["trials"].as_array().expect("trials").iter();
        trials.map(|trial| (number(trial, "cache_ratio"), number(trial, "kl"))).collect::<Vec<_>>()
    };
    // Just what the best of all plans at 2x takes: no other keeps it.
    let least = trials(&of("2x", &["--target", "2x"])).into_iter().map(|(_, kl)| kl);
    let most = least.fold(f64::INFINITY, f64::min).exp_m1() + 1e-9;
    let found = of("bound", &["--max-ppl-increase", &most.to_string()]);
    assert!(number(&found, "selection_kl") <= most.ln_1p(), "{found}");
    let kept = trials(&found).into_iter().filter(|(_, kl)| *kl <= most.ln_1p());
    let smallest = kept.map(|(ratio, _)| ratio).fold(0.0, f64::max);
    assert!(number(&found, "cache_ratio") > 0.9 * smallest && smallest >= 2.0, "{found}");
}

#[test]
fn goals_that_are_none() {
    let (donor, text) = (golden("llama"), golden("demo/calibration.txt"));
    let scratch = Scratch::new();
    let out = scratch.path("out");
    let convert = |goal: &[&str]| {
        let args = ["convert", &donor, "-o", &out, "--calibration", &text];
        shrink(
            &[&args[..], &["--num-calibration-samples", "8", "--max-calibration-length", "32"], goal]
                .concat(),
        )
    };
    convert(&["--target", "0.5x"]).misused("expected 1 to 10000, as in 6.4x");
    convert(&["--target", "x"]).misused("expected a number, as in 6.4x");
    convert(&["--target", "4x", "-r", "2"]).misused("cannot be used with");
    convert(&["--target", "4x", "--max-ppl-increase", "5%"]).misused("cannot be used with");
    convert(&["--max-ppl-increase", "0"]).misused("expected more than 0, at most 10, as in 5%");
    convert(&["--max-ppl-increase", "a lot"]).misused("expected a number, as in 5% or 0.05");
    convert(&["--target", "4x", "--cache-dtype", "f32"])
        .refused("--cache-dtype is f32 with --target, expected f16, bf16");
    let bf16 = ["--method", "joint", "--cache-dtype", "bf16"];
    convert(&[&["--target", "200x"], &bf16[..]].concat()).refused("no plan gives a cache 200x smaller");
    convert(&[&["--max-ppl-increase", "0.0001%"], &bf16[..]].concat())
        .refused("the least KL to the donor at 1.5x");
}

#[test]
fn a_folder_cut_short_is_one_converted_at_that_ratio() {
    let (donor, text) = (golden("llama"), golden("demo/calibration.txt"));
    for (method, ranks) in [("separate", "uniform"), ("separate", "global"), ("joint", "global")] {
        let scratch = Scratch::new();
        let convert = |name: &str, ratio: &str| {
            let out = scratch.path(name);
            let args = ["convert", &donor, "-o", &out, "-r", ratio, "--method", method, "--ranks", ranks];
            let few =
                ["--calibration", &text, "--num-calibration-samples", "16", "--max-calibration-length", "32"];
            shrink(&[&args[..], &few].concat()).text();
            out
        };
        let (wide, narrow) = (convert("wide", "1.5"), convert("narrow", "4"));
        for dtype in ["f32", "int4"] {
            let own = eval(&narrow, &["--cache-dtype", dtype]);
            let cut = eval(&wide, &["--cache-dtype", dtype, "--compression-ratio", "4"]);
            assert_eq!(cut["cache"], own["cache"], "{method} {ranks}");
            assert_close(number(&cut, "perplexity"), number(&own, "perplexity"), 2e-3);
        }
        let args = ["generate", &wide, "--prompt", "The", "--max-new-tokens", "12", "--json"];
        let cut = shrink(&[&args[..], &["-r", "4"]].concat()).json();
        let args = ["generate", &narrow, "--prompt", "The", "--max-new-tokens", "12", "--json"];
        let own = shrink(&args).json();
        assert_eq!(cut["tokens"].as_array().map(Vec::len), Some(12), "{cut}");
        assert_eq!(cut["tokens"], own["tokens"], "{method} {ranks}");
    }
}

#[test]
fn what_cannot_be_cut_short_is_refused() {
    let scratch = Scratch::new();
    let heldout = golden("demo/heldout.txt");
    let cut = |model: &str, ratio: &str| {
        shrink(&["eval", model, "--data", &heldout, "--max-length", "40", "--compression-ratio", ratio])
    };
    let cascade = converted(&scratch, "llama", &["--method", "cascade"]);
    cut(&cascade, "4").refused("the latents of layer 0 cannot be cut short");
    let decoupled = converted(&scratch, "mistral", &["--method", "decoupled_rope", "--d-rope", "4"]);
    cut(&decoupled, "2").refused("the latents of layer 0 cannot be cut short");
    let half = converted(&scratch, "qwen2", &["--method", "separate", "--ranks", "uniform"]);
    cut(&half, "0.9").misused("expected 1 or more");
    cut(&half, "99").refused("--compression-ratio is 99, expected 1.00, the folder's, to d_kv = 16");
    std::fs::remove_file(scratch.path("qwen2/shrink.json")).expect("a record");
    cut(&half, "2").refused("has no shrink.json with the spectra of its layers");
    cut(&golden("llama"), "2").refused("has no shrink.json with the spectra of its layers");
}

#[test]
fn types_are_compared_at_the_same_numbers() {
    let (donor, text, heldout) =
        (golden("llama"), golden("demo/calibration.txt"), golden("demo/heldout.txt"));
    let args = ["compare", &donor, "--data", &heldout, "--calibration", &text, "--json", "-r", "2"];
    let few = ["--num-calibration-samples", "16", "--max-calibration-length", "32", "--max-length", "40"];
    let what = ["--method", "joint", "--ranks", "global", "--cache-dtype", "f32,int8,int3"];
    let found = shrink(&[&args[..], &few, &what].concat()).json();
    let plans = found["plans"].as_array().expect("plans");
    let names: Vec<&str> = plans.iter().filter_map(|plan| plan["name"].as_str()).collect();
    assert_eq!(names, ["joint fisher global", "joint fisher global int8", "joint fisher global int3"]);
    let numbers = |field: &str| plans.iter().map(|plan| number(plan, field)).collect::<Vec<_>>();
    let (ratios, perplexities) =
        (numbers("cache_ratio"), plans.iter().map(|plan| plan["perplexity"][0].as_f64()));
    assert!(ratios.windows(2).all(|two| two[0] < two[1]), "{ratios:?}");
    assert!(
        perplexities.collect::<Vec<_>>().windows(2).all(|two| two[0] != two[1]),
        "each was run as it is cached"
    );
}
