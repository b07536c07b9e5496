//! `shrink train`: what it moves, what it leaves alone, and what happens when it is interrupted.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::folder::{Scratch, golden};
use crate::program::{BINARY, Run, command, shrink};

/// Windows short enough for a second, rates high enough for a few steps to show.
const SHORT: [&str; 8] =
    ["--max-length", "32", "--batch-size", "2", "--euclidean-lr", "1e-3", "--riemannian-lr", "1e-3"];

/// The bundled model at 8x by this method, in a folder of its own.
fn converted(scratch: &Scratch, more: &[&str]) -> (String, String) {
    let (donor, out) = (golden("demo"), scratch.path("converted"));
    let few =
        ["--calibration", "builtin", "--num-calibration-samples", "8", "--max-calibration-length", "64"];
    shrink(&[&["convert", &donor, "-o", &out, "-r", "8"], &few[..], more].concat()).text();
    (out, golden("demo/calibration.txt"))
}

fn train(model: &str, out: &str, data: &str, more: &[&str]) -> Run {
    shrink(&[&["train", model, "-o", out, "--data", data], &SHORT[..], more].concat())
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
fn latent_matrices_are_trained_and_nothing_else() {
    for (method, loss) in [("separate", "reconstruction"), ("cascade", "distillation"), ("xkv", "kl")] {
        let scratch = Scratch::new();
        let (model, data) = converted(&scratch, &["--method", method, "--store-original-weights"]);
        // Few windows, so that every epoch sees the same and a falling loss is seen.
        let text = std::fs::read_to_string(&data).expect("a text");
        let data = scratch.write("few.txt", &text[..text.floor_char_boundary(1200)]);
        let out = scratch.path("trained");
        let more = ["--loss", loss, "--max-steps", "40", "--num-epochs", "40", "--validation", &data];
        let more = [&more[..], &["--reconstruction-alpha", "1", "--logging-steps", "1"]].concat();
        let found = train(&model, &out, &data, &[&more[..], &["--json"]].concat()).json();
        let [before, after] =
            ["perplexity_before", "perplexity"].map(|field| found[field].as_f64().expect("one"));
        assert!(before > 1.0 && after > 1.0 && before != after, "{method} {loss}: {before} {after}");
        let log = String::from_utf8(scratch.read("trained.run/log.jsonl")).expect("a log");
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let losses: Vec<f64> = lines.filter_map(|line| line["loss"].as_f64()).collect();
        assert!(mean(&losses[30..]) < 0.98 * mean(&losses[..10]), "{method} {loss}: {losses:?}");
        assert!(found["orthonormality"].as_f64().is_some_and(|off| off < 1e-5), "{found}");
        assert_eq!(shrink(&["check", &out, "--json"]).json()["ok"], true, "{method}");

        let weights = |name: &str| scratch.tensors(&format!("{name}/model.safetensors"));
        let (old, new) = (weights("converted"), weights("trained"));
        assert_eq!(old.keys().collect::<Vec<_>>(), new.keys().collect::<Vec<_>>());
        let mut moved = 0;
        for (name, tensor) in &old {
            let is_factor =
                name.contains(".mla.w_down") || name.contains(".mla.w_up") || name.contains(".mla.w_cross");
            assert_eq!(new[name] != *tensor, is_factor, "{method}: {name}");
            moved += if is_factor { tensor.bytes.len() / 4 } else { 0 };
        }
        assert_eq!(found["trainable"], moved, "what is counted is what moves");
        assert_eq!(scratch.read_json("trained/shrink.json")["training"]["settings"]["loss"], loss);
        assert_eq!(scratch.read_json("trained/config.json"), scratch.read_json("converted/config.json"));
    }
}

#[test]
fn a_run_that_is_killed_goes_on_to_the_same_bytes() {
    let scratch = Scratch::new();
    let (model, data) = converted(&scratch, &["--method", "cascade", "--cascade-window", "1"]);
    let often = ["--max-steps", "40", "--save-steps", "3", "--logging-steps", "1"];
    let whole = scratch.path("whole");
    train(&model, &whole, &data, &often).text();

    let out = scratch.path("killed");
    let args = [&["train", &model, "-o", &out, "--data", &data], &SHORT[..], &often].concat();
    let mut child =
        command(BINARY).args(&args).stderr(std::process::Stdio::null()).spawn().expect("it starts");
    let log = scratch.path("killed.run/log.jsonl");
    let lines = || std::fs::read_to_string(&log).map_or(0, |text| text.lines().count());
    let begun = Instant::now();
    while lines() < 8 && begun.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().expect("it was running");
    child.wait().expect("it is gone");
    assert!(!std::path::Path::new(&out).exists(), "nothing is written before the end");

    let hint = train(&model, &out, &data, &often).refused("holds a run already");
    assert!(hint.contains("--resume"), "{hint}");
    let resumed = train(&model, &out, &data, &[&often[..], &["--resume"]].concat());
    assert!(resumed.stderr.contains("going on from step"), "{}", resumed.stderr);
    resumed.text();
    let weights = |name: &str| scratch.tensors(&format!("{name}/model.safetensors"));
    assert_eq!(weights("killed"), weights("whole"));
    // Each step is in the log once.
    let text = std::fs::read_to_string(&log).expect("a log");
    let steps = text.lines().filter_map(|line| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        line.get("loss").and(line["step"].as_u64())
    });
    assert_eq!(steps.collect::<Vec<_>>(), (1..=40).collect::<Vec<_>>());
}

#[test]
fn settings_come_from_a_file_and_flags_stand_before_them() {
    let scratch = Scratch::new();
    let (model, data) = converted(&scratch, &["--method", "joint"]);
    let file =
        scratch.write("settings.toml", "loss = \"kl\"\nmax_steps = 5\nschedule = \"linear\"\nseed = 3\n");
    let out = scratch.path("out");
    let found = train(&model, &out, &data, &["--config", &file, "--max-steps", "2", "--json"]).json();
    assert_eq!((&found["loss"], &found["steps"]), (&Value::from("kl"), &Value::from(2)));
    let written =
        std::fs::read_to_string(scratch.path("out.run/settings.toml")).expect("the resolved settings");
    for line in ["loss = \"kl\"", "max_steps = 2", "schedule = \"linear\"", "seed = 3", "batch_size = 2"] {
        assert!(written.contains(line), "{line} is not in\n{written}");
    }
    for (text, what) in
        [("los = \"kl\"\n", "unknown field"), ("batch_size = -1\n", "invalid value"), ("?", "")]
    {
        let bad = scratch.write("bad.toml", text);
        let hint = train(&model, &scratch.path("other"), &data, &["--config", &bad])
            .refused("is no file of settings");
        assert!(hint.contains("settings.toml"), "{hint}");
        let run = train(&model, &scratch.path("other"), &data, &["--config", &bad]);
        assert!(run.stderr.contains(what), "{}", run.stderr);
    }
}

#[test]
fn what_cannot_be_trained_is_refused_and_loses_nothing() {
    let scratch = Scratch::new();
    let (model, data) = converted(&scratch, &["--method", "separate"]);
    let out = scratch.path("out");
    let refused = |model: &str, data: &str, more: &[&str], what: &str| {
        let hint = train(model, &out, data, more).refused(what);
        assert!(!hint.is_empty());
        let left: Vec<_> = scratch.names().into_iter().filter(|name| name.starts_with("out")).collect();
        assert_eq!(left, [""; 0], "{what}");
    };
    refused(&golden("demo"), &data, &[], "is not a converted model");
    refused(&model, &scratch.path("nowhere.txt"), &[], "nowhere.txt");
    let short = scratch.write("short.txt", "Too short.");
    refused(&model, &short, &[], "fewer than one window of 32");
    refused(&model, &data, &["--loss", "reconstruction"], "does not store the original W_k and W_v");
    refused(&model, &data, &["--weight-decay", "-1"], "weight_decay is -1, expected 0 to 1");
    refused(&model, &data, &["--temperature", "0"], "temperature is 0");
    for (flag, value, what) in [
        ("--max-length", "100000", "exceed the model's context"),
        ("--max-length", "1", "max_length is 1, expected at least 2"),
        ("--euclidean-lr", "-1", "euclidean_lr is -1, expected 0 to 10"),
        ("--riemannian-lr", "nan", "riemannian_lr is NaN"),
        ("--batch-size", "0", "batch_size is 0"),
    ] {
        shrink(&["train", &model, "-o", &out, "--data", &data, flag, value]).refused(what);
    }
    refused(&model, &data, &["--teacher", &golden("llama")], "has another tokenizer");
    let hint = train(&model, &out, &data, &["--loss", "reconstruction"]).refused("original W_k");
    assert!(hint.contains("--store-original-weights"), "{hint}");
    train(&model, &out, &data, &["--loss", "kl", "--loss", "lm"]).misused("--loss");
    train(&model, &out, &data, &["--loss", "magic"]).misused("reconstruction");
}
