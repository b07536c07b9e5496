//! `shrink train`: what it moves, what it leaves alone, and what happens when it is interrupted.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::Value;

use crate::folder::{Scratch, golden};
use crate::program::{BINARY, Run, command, shrink};

/// Windows short enough for a second, rates high enough for a few steps to show.
const SHORT: [&str; 8] =
    ["--max-length", "32", "--batch-size", "2", "--euclidean-lr", "1e-3", "--riemannian-lr", "1e-3"];

/// The bundled model at 8x by this method, in a folder of its own.
fn converted(scratch: &Scratch, more: &[&str]) -> (String, String) {
    let (donor, out) = (golden("demo"), scratch.path("converted"));
    let few = [
        "--calibration",
        "builtin:prose",
        "--num-calibration-samples",
        "8",
        "--max-calibration-length",
        "64",
    ];
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
    let mut child = command(BINARY).args(&args).stderr(Stdio::piped()).spawn().expect("it starts");
    let told = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    let steps = told.map(|line| line.expect("a line")).filter(|line| line.starts_with("step "));
    assert_eq!(steps.take(8).count(), 8, "it ended before it was killed");
    child.kill().expect("it was running");
    assert_eq!(child.wait().expect("it is gone").code(), None, "it was killed");
    let log = scratch.path("killed.run/log.jsonl");
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
fn a_run_that_gets_no_better_stops_and_its_best_step_is_written() {
    let scratch = Scratch::new();
    let (model, data) = converted(&scratch, &["--method", "separate"]);
    let out = scratch.path("out");
    // Rates that fall apart after a while, so that the best lies before the end.
    let wild = ["--euclidean-lr", "0.1", "--riemannian-lr", "0.1", "--schedule", "constant", "--loss", "kl"];
    let watched = ["--validation", &data, "--validation-windows", "4", "--early-stopping-patience", "2"];
    let often = ["--max-length", "32", "--save-steps", "1", "--save-total-limit", "1", "--max-steps", "60"];
    let args = [&["train", &model, "-o", &out, "--data", &data], &wild[..], &watched, &often].concat();
    let found = shrink(&[&args[..], &["--json"]].concat()).json();
    let log = String::from_utf8(scratch.read("out.run/log.jsonl")).expect("a log");
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let measured: Vec<(u64, f64)> = lines
        .filter_map(|line| Some((line["step"].as_u64()?, line["validation_perplexity"].as_f64()?)))
        .filter(|(step, _)| *step > 0)
        .collect();
    let best = measured.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).expect("a measurement");
    assert_eq!(found["written_step"], best.0, "{measured:?}");
    assert_eq!(found["perplexity"], best.1);
    assert_eq!(found["stopped_early"], true, "{found}");
    assert_eq!(found["steps"], best.0 + 2, "two validations without a better one");
    // OUT is the best, as whoever measures it again will find.
    let eval = ["eval", &out, "--data", &data, "--windows", "4", "--max-length", "32", "--json"];
    let again = shrink(&eval).json()["perplexity"].as_f64().expect("a perplexity");
    assert!((again / best.1 - 1.0).abs() < 1e-6, "{again} {}", best.1);
    let curves = String::from_utf8(scratch.read("out.run/curves.svg")).expect("a picture");
    assert!(curves.starts_with("<svg") && curves.contains("validation perplexity"), "{curves}");

    // Once stopped, it is over: going on changes nothing.
    let resumed = shrink(&[&args[..], &["--resume", "--force", "--json"]].concat()).json();
    for field in ["written_step", "perplexity", "perplexity_before", "steps", "stopped_early"] {
        assert_eq!(resumed[field], found[field], "{field}");
    }
}

#[test]
fn a_run_is_gone_on_with_by_one_process_and_as_the_run_it_was() {
    let scratch = Scratch::new();
    let (model, data) = converted(&scratch, &["--method", "separate"]);
    let validation = scratch.write("validation.txt", "The sea was calm, and the ship lay still. ".repeat(30));
    let (whole, out) = (scratch.path("whole"), scratch.path("out"));
    let steps =
        ["--max-steps", "4", "--save-steps", "2", "--validation", &validation, "--validation-windows", "2"];
    // A slash at the end of OUT names the same folder, and the run's lies beside it all the same.
    train(&model, &format!("{whole}/"), &data, &steps).text();
    assert!(scratch.names().contains(&"whole.run".to_owned()), "{:?}", scratch.names());
    let inside = format!("{out}/run");
    let hint = train(&model, &out, &data, &["--run-dir", &inside]).refused("lies in");
    assert!(hint.contains("--run-dir"), "{hint}");

    // Killed after its first snapshot, as far as the folder shows.
    let run = scratch.path("out.run");
    std::fs::rename(scratch.path("whole.run"), &run).expect("a run");
    std::fs::remove_file(format!("{run}/snapshots/step-00000004.safetensors")).expect("a snapshot");
    let resume =
        |data: &str, more: &[&str]| train(&model, &out, data, &[&steps[..], &["--resume"], more].concat());
    let other = scratch.write("other.txt", "Another text than that of the run before. ".repeat(99));
    resume(&other, &[]).refused("its text is another");
    resume(&data, &["--validation-windows", "1"]).misused("--validation-windows");
    let unwatched = ["--max-steps", "4", "--save-steps", "2", "--resume"];
    train(&model, &out, &data, &unwatched).refused("its validation text is another");
    resume(&data, &["--weight-decay", "0.5"]).refused("weight_decay was 0.01 and is 0.5");
    let lock = std::fs::File::open(format!("{run}/lock")).expect("a lock");
    lock.lock().expect("nobody holds it");
    resume(&data, &[]).refused("another process is training in");
    drop(lock);
    resume(&data, &[]).text();
    let weights = |name: &str| scratch.tensors(&format!("{name}/model.safetensors"));
    assert_eq!(weights("out"), weights("whole"));

    // Without its log a run is still one.
    std::fs::remove_file(format!("{run}/log.jsonl")).expect("a log");
    train(&model, &scratch.path("third"), &data, &["--run-dir", &run]).refused("holds a run already");
}

/// As when the disk is full: no file may grow beyond a bound.
#[cfg(target_os = "linux")]
#[test]
fn a_snapshot_without_room_ends_the_run_and_loses_nothing() {
    let scratch = Scratch::new();
    let (model, data) = converted(&scratch, &["--method", "separate"]);
    let out = scratch.path("out");
    let args = [&["train", &model, "-o", &out, "--data", &data], &SHORT[..]].concat();
    let args = [&args[..], &["--max-steps", "6", "--save-steps", "2"]].concat();
    let bounded = |kib: u64, more: &[&str]| {
        // A signal that is ignored stays so in the program, which then sees the write fail.
        let script = format!("trap '' XFSZ; ulimit -f {kib}; exec \"$@\"");
        let mut sh = command("bash");
        Run::of(sh.args(["-c", &script, "bash", BINARY]).args(&args).args(more))
    };
    let hint = bounded(4, &[]).refused("snapshots/step-00000002.safetensors");
    assert!(hint.contains("--resume"), "{hint}");
    let left = || {
        let mut names: Vec<_> = std::fs::read_dir(scratch.path("out.run/snapshots"))
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
            .collect();
        names.sort();
        names
    };
    assert_eq!(left(), [""; 0], "nothing half written stays");
    // With room for the snapshots and none for the folder, the run is whole and only OUT is missing.
    let weights = std::fs::metadata(format!("{model}/model.safetensors")).expect("weights").len();
    let hint = bounded(weights / 1024 - 8, &["--resume"]).refused("out");
    assert!(!hint.is_empty());
    assert_eq!(left(), ["step-00000004.safetensors", "step-00000006.safetensors"]);
    let is_written = || std::path::Path::new(&out).exists();
    assert!(!is_written() && !scratch.names().iter().any(|name| name.contains("partial")));
    let resumed = shrink(&[&args[..], &["--resume"]].concat());
    assert!(resumed.stderr.contains("going on from step 6"), "{}", resumed.stderr);
    resumed.text();
    assert!(is_written());
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
    refused(&model, &data, &["--validation", &short], "--validation is a text of");
    refused(&model, &data, &["--loss", "reconstruction"], "does not store the original W_k and W_v");
    let one = |flag: &str, value: &str| shrink(&["train", &model, "-o", &out, "--data", &data, flag, value]);
    one("--max-length", "100000").refused("exceed the model's context");
    one("--early-stopping-patience", "2").refused("expected a text to measure on");
    for (flag, value, expected) in [
        ("--weight-decay", "-1", "expected 0 to 1"),
        ("--temperature", "0", "expected 0.01 to 100"),
        ("--max-length", "1", "1 is not in 2..=2147483647"),
        ("--euclidean-lr", "-1", "expected 0 to 10"),
        ("--riemannian-lr", "nan", "expected 0 to 10"),
        ("--batch-size", "0", "0 is not in 1..=2147483647"),
        ("--early-stopping-patience", "0", "0 is not in 1..=2147483647"),
        ("--validation-windows", "0", "0 is not in 1..=2147483647"),
    ] {
        one(flag, value).misused(expected);
    }
    // A file of settings is held to the same ranges.
    for (line, what) in [
        ("weight_decay = -1.0", "weight_decay is -1, expected 0 to 1"),
        ("max_length = 1", "max_length is 1, expected at least 2"),
        ("num_epochs = 4294967296", "num_epochs is 4294967296, expected at most 2147483647"),
        ("riemannian_lr = nan", "riemannian_lr is NaN, expected 0 to 10"),
    ] {
        one("--config", &scratch.write("settings.toml", line)).refused(what);
    }
    refused(&model, &data, &["--teacher", &golden("llama")], "has another tokenizer");
    let hint = train(&model, &out, &data, &["--loss", "reconstruction"]).refused("original W_k");
    assert!(hint.contains("--store-original-weights"), "{hint}");
    train(&model, &out, &data, &["--loss", "kl", "--loss", "lm"]).misused("--loss");
    train(&model, &out, &data, &["--loss", "magic"]).misused("reconstruction");
}

#[test]
fn a_model_learns_from_text_that_its_donor_writes() {
    let scratch = Scratch::new();
    let (model, _) = converted(&scratch, &["--method", "separate"]);
    let (out, heldout) = (scratch.path("trained"), golden("demo/heldout.txt"));
    let more = ["--loss", "kl", "--max-steps", "60", "--validation", &heldout, "--json"];
    let train = |out: &str, data: &str| {
        let args = ["train", &model, "-o", out, "--data", data, "--batch-size", "4", "--max-length", "64"];
        shrink(&[&args[..], &["--euclidean-lr", "3e-4", "--riemannian-lr", "3e-3"], &more].concat())
    };
    let found = train(&out, "self").json();
    let [before, after] =
        ["perplexity_before", "perplexity"].map(|field| found[field].as_f64().expect("one"));
    assert!(after < before, "{before} {after}");
    // A word of text that is neither the donor's nor there.
    train(&scratch.path("other"), "self:none").refused("--data");
    train(&scratch.path("other"), "nowhere").refused("nowhere");
}

#[test]
fn rates_are_found_and_a_run_that_goes_on_keeps_them() {
    let scratch = Scratch::new();
    let (model, data) = converted(&scratch, &["--method", "separate"]);
    let out = scratch.path("out");
    let timid = ["--max-length", "32", "--batch-size", "2", "--loss", "kl", "--euclidean-lr", "1e-7"];
    let args = ["--riemannian-lr", "3e-7", "--max-steps", "6", "--save-steps", "3", "--find-rates=4"];
    let args = [&["train", &model, "-o", &out, "--data", &data], &timid[..], &args].concat();
    let found = shrink(&[&args[..], &["--json"]].concat()).json();
    let trials = found["rates"]["tried"]["trials"].as_array().expect("a list").clone();
    // Rates that do next to nothing: every higher one does better.
    assert_eq!(trials.len(), 5, "{found}");
    let losses: Vec<f64> = trials.iter().map(|trial| trial["loss"].as_f64().expect("a loss")).collect();
    assert!(losses.windows(2).all(|pair| pair[1] < pair[0]), "{losses:?}");
    assert!(losses[4] < found["rates"]["tried"]["untrained"].as_f64().expect("a loss"), "{found}");
    assert_eq!(found["rates"]["euclidean_lr"], trials[4]["euclidean_lr"]);
    let settings = String::from_utf8(scratch.read("out.run/settings.toml")).expect("text");
    assert!(
        settings.contains("euclidean_lr = 1e-5") || settings.contains("euclidean_lr = 0.00001"),
        "{settings}"
    );
    let log = String::from_utf8(scratch.read("out.run/log.jsonl")).expect("a log");
    assert!(log.lines().next().is_some_and(|line| line.contains("\"rates\"")), "{log}");

    let again = shrink(&[&args[..], &["--resume", "--force", "--json"]].concat()).json();
    assert_eq!(
        (&again["rates"]["tried"], &again["rates"]["euclidean_lr"]),
        (&Value::Null, &trials[4]["euclidean_lr"])
    );
}

#[test]
fn rates_that_nobody_names_are_those_of_the_method() {
    for (method, rate) in [("separate", 1e-3), ("cascade", 3e-5)] {
        let scratch = Scratch::new();
        let (model, data) = converted(&scratch, &["--method", method]);
        let short = ["--max-length", "32", "--max-steps", "1", "--loss", "lm", "--json"];
        let out = scratch.path("out");
        let args = [&["train", &model, "-o", &out, "--data", &data], &short[..]].concat();
        assert_eq!(shrink(&args).json()["rates"]["euclidean_lr"], rate, "{method}");
    }
}
