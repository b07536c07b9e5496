//! Calibration text: from where, how much, and that it helps.

use serde_json::json;

use crate::folder::{Scratch, golden};
use crate::program::{BINARY, Run, command, number, shrink};

/// A few windows, and the method that needs the fewest tokens.
const FEW: [&str; 6] =
    ["--num-calibration-samples", "3", "--max-calibration-length", "16", "--method", "separate"];

/// Converts llama's twin on some text and returns the weights.
fn convert(scratch: &Scratch, calibration: &[&str]) -> Vec<u8> {
    let (donor, out) = (golden("llama"), scratch.path("out"));
    let args = ["convert", &donor, "-o", &out, "-r", "2", "--force", "--calibration"];
    shrink(&[&args[..], calibration, &FEW].concat()).text();
    scratch.read("out/model.safetensors")
}

#[test]
fn lines_and_a_text_of_the_same_words_give_the_same_model() {
    let scratch = Scratch::new();
    let (one, two) =
        ("The first document has some words.", "And the second has others, a few more than the first.");
    let line = |text: &str| format!("{}\n", json!({ "id": 7, "text": text }));
    let whole = scratch.write("whole.txt", format!("{one}\n\n{two}"));
    let rows = scratch.write("rows.jsonl", line(one) + &line("") + &line(two));
    let expected = convert(&scratch, &[&whole]);
    assert_eq!(convert(&scratch, &[&rows]), expected);
    let other = scratch.write("other.jsonl", line(two) + &line(one));
    assert_ne!(convert(&scratch, &[&other]), expected);
}

#[test]
fn several_sources_have_the_shares_that_were_asked_for() {
    let scratch = Scratch::new();
    let (first, second) =
        (scratch.write("one.txt", "a".repeat(900)), scratch.write("two.txt", "b".repeat(900)));
    let (donor, out) = (golden("llama"), scratch.path("out"));
    let args = [
        "convert",
        &donor,
        "-o",
        &out,
        "-r",
        "2",
        "--force",
        "--method",
        "separate",
        "--num-calibration-samples",
        "8",
    ];
    let sources = ["--max-calibration-length", "16", "--calibration", &first, "self", &second];
    let kinds = |shares: &[&str]| -> Vec<(String, u64)> {
        shrink(&[&args[..], &sources, shares].concat()).text();
        let record = scratch.read_json("out/shrink.json");
        assert_eq!(record["calibration"]["source"], format!("{first}, self, {second}"));
        let kinds = record["calibration"]["kinds"].as_array().expect("kinds").clone();
        let of = |kind: &serde_json::Value| {
            (kind["name"].as_str().expect("a name").to_owned(), kind["samples"].as_u64().expect("a number"))
        };
        kinds.iter().map(of).collect()
    };
    let named = |counts: [u64; 3]| {
        let names = ["one.txt", "self", "two.txt"].map(str::to_owned);
        names.into_iter().zip(counts).collect::<Vec<_>>()
    };
    assert_eq!(kinds(&[]), named([3, 3, 2]));
    assert_eq!(kinds(&["--calibration-shares", "5,2,1"]), named([5, 2, 1]));
    let run = |shares: &str| shrink(&[&args[..], &sources, &["--calibration-shares", shares]].concat());
    run("1,1").refused("--calibration-shares");
    let hint = run("1000,1000,1").refused("two.txt has no share of 8 windows");
    assert!(hint.contains("--num-calibration-samples"), "{hint}");
    run("1,0,1").misused("invalid value '0'");
}

#[test]
fn text_that_the_model_writes_is_the_same_for_one_seed_and_measured_by_kind() {
    let scratch = Scratch::new();
    let donor = golden("demo");
    let convert = |out: &str, seed: &str| {
        let out = scratch.path(out);
        let args =
            ["convert", &donor, "-o", &out, "-r", "2", "--method", "separate", "--seed", seed, "--json"];
        let text = ["--calibration", "self:2048", "builtin:prose", "--num-calibration-samples", "16"];
        shrink(&[&args[..], &text, &["--max-calibration-length", "64"]].concat()).json()
    };
    let found = convert("one", "3");
    assert_eq!(found["calibration_tokens"], 2048 + 16 * 64);
    convert("again", "3");
    convert("other", "4");
    assert_eq!(scratch.read("one/model.safetensors"), scratch.read("again/model.safetensors"));
    assert_ne!(scratch.read("one/model.safetensors"), scratch.read("other/model.safetensors"));
    // What is reported was not chosen by, and says how sure it is.
    let reported = &found["reported"];
    let names: Vec<_> =
        reported["kinds"].as_array().expect("kinds").iter().map(|kind| &kind["name"]).collect();
    assert_eq!(names, ["self", "builtin:prose"]);
    assert!(number(reported, "standard_error") > 0.0 && number(reported, "kl") > 0.0);
    assert_eq!(found["kl"], reported["kl"]);
    assert_eq!(scratch.read_json("one/shrink.json")["reported"], *reported);
    let card = String::from_utf8(scratch.read("one/README.md")).expect("text");
    assert!(card.contains("tokens not used to choose") && card.contains(" ± "), "{card}");
}

#[test]
fn a_model_that_writes_one_token_for_ever_is_no_source_of_text() {
    let (donor, scratch) = (Scratch::of("llama-llama3"), Scratch::new());
    // Blocks that add nothing leave the embedding of the last token, to which no row of the tied head is nearer than its own.
    donor.edit(|tensors| {
        tensors.get_mut("model.norm.weight").expect("the last norm").scale(300.0);
        let adds = |name: &str| name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
        tensors.iter_mut().filter(|(name, _)| adds(name)).for_each(|(_, tensor)| tensor.scale(0.0));
    });
    let args = ["convert", &donor.root(), "-o", &scratch.path("out"), "--calibration", "self"];
    let hint = shrink(&args).refused("the model writes no text to calibrate on");
    assert!(hint.contains("--calibration builtin"), "{hint}");
    assert_eq!(scratch.names(), [""; 0]);
}

#[test]
fn a_chat_template_that_fails_is_named() {
    let (donor, scratch) = (Scratch::of("demo"), Scratch::new());
    donor.write("chat_template.jinja", "{{ raise_exception('only tools may speak') }}");
    let args = ["convert", &donor.root(), "-o", &scratch.path("out"), "--calibration", "self"];
    let hint = shrink(&args).refused("chat_template.jinja fails: line 1: only tools may speak");
    assert!(hint.contains("--calibration FILE"), "{hint}");
    assert_eq!(scratch.names(), [""; 0]);
}

#[test]
fn parquet_gives_what_its_rows_give_as_text() {
    let scratch = Scratch::new();
    let text = scratch.write("rows.txt", "first row\n\nnaïve — 日本語 🦀\n\nlast row\nof two lines");
    let expected = convert(&scratch, &[&text]);
    assert_eq!(convert(&scratch, &[&golden("corpus/sample.parquet")]), expected);
}

#[test]
fn another_field_is_another_text() {
    let scratch = Scratch::new();
    let row =
        json!({ "text": "a".repeat(60), "body": "Quite other words than those, and sixty bytes of them." });
    let rows = scratch.write("rows.jsonl", row.to_string());
    let body = scratch.write("body.txt", row["body"].as_str().expect("a text"));
    let expected = convert(&scratch, &[&body]);
    assert_eq!(convert(&scratch, &[&rows, "--text-field", "body"]), expected);
    assert_ne!(convert(&scratch, &[&rows]), expected);
}

#[test]
fn fewer_windows_than_asked_for_are_noted() {
    let scratch = Scratch::new();
    let file = scratch.write("short.txt", "x".repeat(70));
    let (donor, out) = (golden("llama"), scratch.path("out"));
    let args =
        ["convert", &donor, "-o", &out, "--calibration", &file, "--max-calibration-length", "16", "--json"];
    let run = shrink(&args);
    // Of four windows one is held back.
    let note = "note: short.txt gives 3 windows of 16 tokens, fewer than the 128 asked for\n";
    assert!(run.stderr.contains(note), "{}", run.stderr);
    let found = run.json();
    assert_eq!((&found["calibration_tokens"], &found["selection_tokens"]), (&json!(48), &json!(16)));
}

#[test]
fn windows_longer_than_the_context_are_cut_to_it() {
    let scratch = Scratch::new();
    let (donor, out) = (golden("gpt2"), scratch.path("out"));
    let found =
        shrink(&["convert", &donor, "-o", &out, "--calibration", "builtin:prose", "--json", "--quiet"])
            .json();
    // 128 windows of 48 tokens, the context, not of 512.
    assert_eq!(found["calibration_tokens"], 128 * 48);
    assert_eq!(scratch.read_json("out/shrink.json")["calibration"]["source"], "builtin:prose");
}

#[test]
fn ids_beyond_the_vocabulary_are_the_tokenizers_fault() {
    // The bundled model's tokenizer has 1024 tokens, the twin's embedding 264.
    let (scratch, donor) = (Scratch::new(), Scratch::of("llama"));
    donor.write("tokenizer.json", std::fs::read(golden("demo/tokenizer.json")).expect("a tokenizer"));
    let (folder, out) = (donor.root(), scratch.path("out"));
    let hint = shrink(&["convert", &folder, "-o", &out, "--calibration", "builtin:prose"])
        .refused("outside the model's vocabulary of 264");
    assert!(hint.contains("does not belong to this model"), "{hint}");
    assert_eq!(scratch.names(), [""; 0]);
}

#[test]
fn a_folder_named_as_a_dataset_is_none_and_a_file_of_an_unknown_kind_is_named() {
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.path("wikitext")).expect("a folder");
    let donor = golden("llama");
    let run = |calibration: &[&str]| {
        let args = [&["convert", &donor, "-o", "out"], calibration].concat();
        Run::of(command(BINARY).args(args).current_dir(scratch.root()))
    };
    run(&["--calibration", "wikitext"]).refused("cannot get the calibration dataset wikitext: ");
    scratch.write("corpus.csv", "a,b");
    let hint = run(&["--calibration", "corpus.csv"]).refused("corpus.csv");
    assert!(hint.contains(".jsonl"), "{hint}");
    run(&["--calibration", "nowhere.csv"]).refused("nowhere.csv");
    // A dot does not make a hub id a file.
    run(&["--calibration", "org/data-v1.5"]).refused("cannot get the calibration dataset org/data-v1.5: ");
}

#[test]
fn calibration_beats_the_weights_alone() {
    let scratch = Scratch::new();
    let (donor, heldout) = (golden("demo"), golden("demo/heldout.txt"));
    let score = |out: &str, calibration: &[&str]| {
        let out = scratch.path(out);
        shrink(&[&["convert", &donor, "-o", &out, "-r", "4", "--quiet"], calibration].concat()).text();
        let args = ["eval", &out, "--data", &heldout, "--max-length", "128", "--windows", "10", "--json"];
        number(&shrink(&args).json(), "perplexity")
    };
    let calibrated = score(
        "calibrated",
        &[
            "--calibration",
            "builtin:prose",
            "--num-calibration-samples",
            "32",
            "--max-calibration-length",
            "128",
        ],
    );
    let plain = score("plain", &["--no-calibration"]);
    assert!(calibrated < plain, "{calibrated} is no better than {plain}");
}

#[test]
fn what_was_gathered_is_taken_up_again_and_gives_the_same_bytes() {
    let scratch = Scratch::new();
    let (donor, cache) = (golden("demo"), scratch.path("cache"));
    let convert = |out: &str, kept: &str, more: &[&str]| {
        let out = scratch.path(out);
        let args = ["convert", &donor, "-o", &out, "--calibration", "self", "builtin:prose"];
        let few =
            ["--num-calibration-samples", "8", "--max-calibration-length", "64", "--keep-statistics", kept];
        let mut command = command(BINARY);
        Run::of(command.env("SHRINK_CACHE", &cache).args([&args[..], &few, more].concat()))
    };
    let weights = |out: &str| scratch.read(&format!("{out}/model.safetensors"));
    let taken = "statistics of this donor and text are taken up again";
    let first = convert("first", "1", &["-r", "4", "--method", "cascade"]);
    assert!(first.stderr.contains("kept for further conversions in"), "{}", first.stderr);
    assert!(!first.stderr.contains(taken), "{}", first.stderr);
    for (out, more) in [
        ("joint", &["-r", "2", "--method", "joint"][..]),
        ("deepseek", &["-r", "2", "--method", "deepseek", "--d-rope", "8"]),
        ("again", &["-r", "2", "--method", "deepseek", "--d-rope", "8"]),
    ] {
        let run = convert(out, "1", more);
        assert!(run.stderr.contains(taken), "{}", run.stderr);
        // A shared key's statistics are gathered once too.
        assert_eq!(run.stderr.contains("forward with the shared key"), out == "deepseek", "{}", run.stderr);
        let fresh = convert("fresh", "0", &[more, &["--force"]].concat());
        assert!(!fresh.stderr.contains(taken), "{}", fresh.stderr);
        assert!(weights(out) == weights("fresh"), "{more:?}");
    }
    // Other text, another seed or another weight of the sink are other statistics.
    for more in [&["--seed", "1"][..], &["--sink-weight", "0.5"], &["--calibration-shares", "1,3"]] {
        let run = convert("fresh", "1", &[&["-r", "2", "--method", "joint", "--force"], more].concat());
        assert!(!run.stderr.contains(taken), "{more:?}: {}", run.stderr);
    }
    // What is damaged is gathered again.
    for entry in std::fs::read_dir(scratch.path("cache/kept")).expect("the store") {
        let path = entry.expect("an entry").path();
        let bytes = std::fs::read(&path).expect("an entry");
        std::fs::write(&path, &bytes[..bytes.len() / 2]).expect("half of it");
    }
    let run = convert("fresh", "1", &["-r", "2", "--method", "joint", "--force"]);
    assert!(run.stderr.contains("is gathered again"), "{}", run.stderr);
    assert!(weights("joint") == weights("fresh"));
}
