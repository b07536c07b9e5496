//! Texts that cannot be calibrated on or scored.

use crate::folder::{Scratch, golden};
use crate::program::{Run, shrink};

/// Converts llama's twin at 2x (d_latent 16, context 64) on a file of the scratch folder; no output may be left.
#[track_caller]
fn calibrate(scratch: &Scratch, files: &[&str], more: &[&str]) -> Run {
    let before = scratch.names();
    let out = scratch.path("out");
    let args = ["convert", &golden("llama"), "-o", &out, "-r", "2", "--calibration"];
    let run = shrink(&[&args[..], files, more].concat());
    assert_eq!(scratch.names(), before, "something was left behind");
    run
}

fn score(files: &[&str], more: &[&str]) -> Run {
    shrink(&[&["eval", &golden("llama"), "--max-length", "32", "--data"], files, more].concat())
}

/// Neither command takes the file; both say why.
#[track_caller]
fn refuses(scratch: &Scratch, file: &str, what: &str) -> String {
    score(&[file], &[]).refused(what);
    calibrate(scratch, &[file], &[]).refused(what)
}

#[test]
fn a_text_without_a_visible_character() {
    let scratch = Scratch::new();
    for (name, content) in
        [("a.txt", ""), ("b.txt", " \n\t\n"), ("c.jsonl", "{\"text\": \"\"}\n"), ("d.jsonl", "")]
    {
        let file = scratch.write(name, content);
        let hint = refuses(&scratch, &file, &format!("{name}: expected text, found none"));
        assert!(hint.contains("some text"), "{hint}");
    }
}

#[test]
fn a_text_shorter_than_a_window() {
    let scratch = Scratch::new();
    let file = scratch.write("short.txt", "x".repeat(31));
    let hint = score(&[&file], &[]).refused("the text has 31 tokens, fewer than one window of 32");
    assert!(hint.contains("--max-length"), "{hint}");
    // The window is the context's 64 tokens, not the 512 of the default.
    let hint = calibrate(&scratch, &[&file], &[]).refused("has 31 tokens, fewer than one window of 64");
    assert!(hint.contains("--max-calibration-length"), "{hint}");
}

#[test]
fn fewer_calibration_tokens_than_ranks() {
    let scratch = Scratch::new();
    let file = scratch.write("few.txt", "x".repeat(20));
    // Of four windows one is held back.
    let hint = calibrate(&scratch, &[&file], &["--max-calibration-length", "5"])
        .refused("15 tokens, fewer than the latent width 16");
    assert!(hint.contains("at least 16 tokens"), "{hint}");
    let windows = ["--max-calibration-length", "5", "--num-calibration-samples", "2"];
    calibrate(&scratch, &[&golden("demo/calibration.txt")], &windows)
        .refused("10 tokens, fewer than the latent width 16");
}

#[test]
fn a_text_that_is_not_utf8() {
    let scratch = Scratch::new();
    for (name, content, offset) in
        [("latin1.txt", &b"caf\xe9"[..], 3), ("rows.jsonl", b"{\"text\": \"\xe9\"}", 10)]
    {
        let file = scratch.write(name, content);
        let what = format!("{name}: expected UTF-8, found an invalid byte at offset {offset}");
        let hint = refuses(&scratch, &file, &what);
        assert!(hint.contains("iconv"), "{hint}");
    }
    let file = scratch.write("utf16.txt", b"\xff\xfeh\0");
    let hint = refuses(&scratch, &file, "utf16.txt: expected UTF-8, found UTF-16");
    assert!(hint.contains("iconv -f UTF-16 -t UTF-8"), "{hint}");
}

#[test]
fn a_file_that_is_not_there_or_no_text() {
    let scratch = Scratch::new();
    refuses(&scratch, &scratch.path("nowhere.txt"), "nowhere.txt: not found");
    let table = scratch.write("table.csv", "a,b");
    let hint = refuses(&scratch, &table, "expected .txt, .jsonl or .parquet, found .csv");
    assert!(hint.contains(".parquet"), "{hint}");
    refuses(&scratch, &golden("demo"), "expected a file, found a folder");
    let broken = scratch.write("broken.parquet", "PAR1");
    refuses(&scratch, &broken, "broken.parquet: expected a parquet file");
}

#[test]
fn a_row_without_the_field() {
    let scratch = Scratch::new();
    let rows = scratch.write("rows.jsonl", "{\"id\": 1, \"body\": \"y\"}\n{\"id\": 2}\n");
    let hint = refuses(&scratch, &rows, "rows.jsonl, line 1: expected the field \"text\", found body");
    assert!(hint.contains("\"body\""), "{hint}");
    let numbers = scratch.write("numbers.jsonl", "{\"id\": 1}\n");
    refuses(
        &scratch,
        &numbers,
        "numbers.jsonl, line 1: expected the field \"text\", found none that holds text",
    );
    let broken = scratch.write("broken.jsonl", "\n{\"text\"\n");
    refuses(&scratch, &broken, "broken.jsonl, line 2: expected a JSON object");
    let parquet = golden("corpus/sample.parquet");
    score(&[&parquet], &["--text-field", "body"]).refused("expected the column \"body\", found text, other");
}

#[test]
fn rows_that_cannot_be_read_are_passed_over_and_said() {
    let scratch = Scratch::new();
    let good = format!("{{\"text\": \"{}\"}}\n", "x".repeat(200));
    let (rows, whole) =
        (scratch.write("rows.jsonl", format!("{good}{{}}\n[]\n")), scratch.write("good.jsonl", &good));
    let run = score(&[&rows], &[]);
    let note = "note: 2 rows that cannot be read were passed over, the first: ";
    assert!(run.stderr.lines().any(|line| line.starts_with(note) && line.contains("line 2: ")), "{run:#?}");
    let clean = score(&[&whole], &[]);
    assert!(!clean.stderr.contains("passed over"), "{clean:#?}");
    assert_eq!(run.text(), clean.text());
}

#[test]
fn one_bad_file_among_good_ones() {
    let scratch = Scratch::new();
    let good = scratch.write("good.txt", "x".repeat(500));
    let bad = scratch.write("bad.txt", b"\xff");
    calibrate(&scratch, &[&good, &bad], &[]).refused("bad.txt: expected UTF-8");
    score(&[&good, &bad], &[]).refused("bad.txt: expected UTF-8");
}

#[test]
fn calibration_of_no_windows_or_of_single_tokens() {
    let scratch = Scratch::new();
    for (flag, value) in [
        ("--num-calibration-samples", "0"),
        ("--num-calibration-samples", "18446744073709551615"),
        ("--max-calibration-length", "0"),
        ("--max-calibration-length", "1"),
    ] {
        calibrate(&scratch, &["builtin:prose"], &[flag, value])
            .misused(&format!("invalid value '{value}' for '{flag} <N>'"));
    }
}

#[test]
fn activations_that_overflow_on_the_calibration_text() {
    let (donor, scratch) = (Scratch::of("llama"), Scratch::new());
    // Every weight is finite; what layer 0 adds to the residual stream is not.
    donor.edit(|tensors| {
        tensors.get_mut("model.layers.0.mlp.down_proj.weight").expect("a tensor").scale(3e38)
    });
    let args =
        ["convert", &donor.root(), "-o", &scratch.path("out"), "-r", "2", "--calibration", "builtin:prose"];
    let hint = shrink(&args).refused("the input of attention in layer 1 is not finite");
    assert!(hint.contains("overflow"), "{hint}");
    assert_eq!(scratch.names(), [""; 0]);
}

#[test]
fn a_dataset_without_a_network() {
    let scratch = Scratch::new();
    let args = ["convert", &golden("llama"), "-o", &scratch.path("out"), "--calibration", "wikitext"];
    let hint = shrink(&args).refused("cannot get the calibration dataset wikitext");
    assert!(hint.contains("--calibration FILE") && hint.contains("builtin"), "{hint}");
    assert_eq!(scratch.names(), [""; 0]);
}
