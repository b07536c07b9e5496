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
fn text_lines_and_several_files_of_the_same_words_give_the_same_model() {
    let scratch = Scratch::new();
    let (one, two) =
        ("The first document has some words.", "And the second has others, a few more than the first.");
    let line = |text: &str| format!("{}\n", json!({ "id": 7, "text": text }));
    let whole = scratch.write("whole.txt", format!("{one}\n\n{two}"));
    let (first, second) = (scratch.write("one.txt", one), scratch.write("two.txt", two));
    let rows = scratch.write("rows.jsonl", line(one) + &line("") + &line(two));
    let expected = convert(&scratch, &[&whole]);
    assert_eq!(convert(&scratch, &[&first, &second]), expected);
    assert_eq!(convert(&scratch, &[&rows]), expected);
    assert_ne!(convert(&scratch, &[&second, &first]), expected);
    // The last conversion's record names what it read.
    let record = scratch.read_json("out/shrink.json");
    assert_eq!(record["calibration"]["source"], format!("{second}, {first}"));
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
    let note = "note: the text gives 3 windows of 16 tokens, fewer than the 128 asked for\n";
    assert!(run.stderr.contains(note), "{}", run.stderr);
    let found = run.json();
    assert_eq!((&found["calibration_tokens"], &found["held_back_tokens"]), (&json!(48), &json!(16)));
}

#[test]
fn windows_longer_than_the_context_are_cut_to_it() {
    let scratch = Scratch::new();
    let (donor, out) = (golden("gpt2"), scratch.path("out"));
    let found =
        shrink(&["convert", &donor, "-o", &out, "--calibration", "builtin", "--json", "--quiet"]).json();
    // 128 windows of 48 tokens, the context, not of 512.
    assert_eq!(found["calibration_tokens"], 128 * 48);
    assert_eq!(scratch.read_json("out/shrink.json")["calibration"]["source"], "builtin");
}

#[test]
fn ids_beyond_the_vocabulary_are_the_tokenizers_fault() {
    // The bundled model's tokenizer has 1024 tokens, the twin's embedding 264.
    let (scratch, donor) = (Scratch::new(), Scratch::of("llama"));
    donor.write("tokenizer.json", std::fs::read(golden("demo/tokenizer.json")).expect("a tokenizer"));
    let (folder, out) = (donor.root(), scratch.path("out"));
    let hint = shrink(&["convert", &folder, "-o", &out, "--calibration", "builtin"])
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
    run(&[]).refused("cannot get the calibration dataset wikitext: ");
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
        &["--calibration", "builtin", "--num-calibration-samples", "32", "--max-calibration-length", "128"],
    );
    let plain = score("plain", &["--no-calibration"]);
    assert!(calibrated < plain, "{calibrated} is no better than {plain}");
}
