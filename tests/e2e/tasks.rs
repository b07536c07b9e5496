//! `shrink eval --task`: what is asked of a model beside perplexity.
//!
//! The bundled model is far too small to find a key or to look up a value: what is held here is that the figures are where they
//! should be, come again under a seed, and say of a model beside itself that nothing is lost.

use serde_json::{Value, json};

use crate::folder::{Scratch, golden};
use crate::program::{number, shrink};

/// Gives the bundled model a task.
fn task(task: &str, more: &[&str]) -> Value {
    shrink(&[&["eval", &golden("demo"), "--json", "--task", task], more].concat()).json()
}

/// The entries of a list.
fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().unwrap_or_else(|| panic!("{field} is no list in {value:#}"))
}

/// A text of its own for agreement.
fn heldout() -> String {
    golden("demo/heldout.txt")
}

#[test]
fn a_model_finds_all_the_keys_that_it_finds_itself() {
    let demo = golden("demo");
    let few = ["--lengths", "300,600", "--depths", "0,0.5,1", "--trials", "2", "--against", &demo];
    let found = task("needle", &few);
    assert_eq!(
        (&found["task"], &found["text"], &found["trials"]),
        (&json!("needle"), &json!(["builtin"]), &json!(2))
    );
    assert_eq!((&found["against"], &found["seed"]), (&found["model"], &json!(0)));
    let lengths = list(&found, "lengths");
    assert_eq!(lengths.iter().map(|length| &length["tokens"]).collect::<Vec<_>>(), [300, 600]);
    for length in lengths {
        assert_eq!(length["found"], length["donor"]["found"]);
        assert_eq!(length["by_depth"], length["donor"]["by_depth"]);
        let depths: Vec<f64> = list(length, "by_depth").iter().map(|depth| number(depth, "depth")).collect();
        assert_eq!(depths, [0.0, 0.5, 1.0]);
        // Where the donor finds nothing there is nothing to keep.
        let kept = if number(length, "found") > 0.0 { json!(1.0) } else { Value::Null };
        assert_eq!(length["of_the_donors"], kept);
    }
    let some = lengths.iter().rev().find(|length| number(length, "found") > 0.0);
    assert_eq!(found["holds_to"], some.map_or(Value::Null, |length| length["tokens"].clone()));
    assert_eq!(task("needle", &few), found);
}

#[test]
fn lengths_double_as_far_as_the_context_goes() {
    let tokens = |found: &Value| -> Vec<u64> {
        list(found, "lengths").iter().filter_map(|length| length["tokens"].as_u64()).collect()
    };
    assert_eq!(tokens(&task("copy", &["--trials", "1"])), [512, 1024]);
    let data = golden("demo/heldout.txt");
    let short = ["eval", &golden("llama"), "--json", "--task", "copy", "--trials", "1", "--data", &data];
    let context = tokens(&shrink(&short).json());
    assert_eq!(context.len(), 1, "the context is shorter than the first of the series: {context:?}");
}

#[test]
fn a_copy_is_scored_beside_the_donors_and_follows_the_seed() {
    let demo = golden("demo");
    let few = ["--lengths", "64,128", "--trials", "3", "--against", &demo];
    let found = task("copy", &few);
    for (length, scored) in list(&found, "lengths").iter().zip([3 * 31, 3 * 63]) {
        let own = |field: &str| (length[field].clone(), length["donor"][field].clone());
        let (ours, theirs) = own("nll");
        assert!(ours == theirs && number(length, "nll") > 0.0, "{length}");
        assert!((0.0..=1.0).contains(&number(length, "accuracy")), "{length}");
        assert!((scored - 3..=scored).contains(&length["scored"].as_u64().unwrap_or(0)), "{length}");
    }
    assert_eq!(task("copy", &few), found);
    let seeded = task("copy", &[&few[..], &["--seed", "1"]].concat());
    assert_ne!(seeded["lengths"], found["lengths"]);
}

#[test]
fn values_are_looked_up_beside_the_donor() {
    let demo = golden("demo");
    let few = ["--trials", "4", "--pairs", "2,8", "--against", &demo];
    let found = task("retrieval", &few);
    let pairs = list(&found, "pairs");
    assert_eq!(pairs.iter().map(|pairs| &pairs["pairs"]).collect::<Vec<_>>(), [2, 8]);
    for pairs in pairs {
        assert!((0.0..=1.0).contains(&number(pairs, "accuracy")), "{pairs}");
        assert_eq!(pairs["accuracy"], pairs["donor"], "{pairs}");
    }
    assert_eq!(task("retrieval", &few), found);
    let by_default: Vec<u64> = list(&task("retrieval", &["--trials", "1"]), "pairs")
        .iter()
        .filter_map(|pairs| pairs["pairs"].as_u64())
        .collect();
    assert_eq!(by_default, [4, 8, 16, 32, 64]);
}

#[test]
fn a_model_goes_on_as_itself_and_not_as_its_conversion() {
    let scratch = Scratch::new();
    let (demo, out, data) = (golden("demo"), scratch.path("out"), heldout());
    shrink(&["convert", &demo, "-o", &out, "-r", "4", "--no-calibration", "--quiet"]).text();
    let few = [
        "--data",
        &data,
        "--against",
        &demo,
        "--lengths",
        "96,200",
        "--trials",
        "5",
        "--max-new-tokens",
        "16",
    ];
    let found = task("agreement", &few);
    let entry = |tokens: u64| json!({ "tokens": tokens, "prompts": 5, "common_tokens": 16.0, "equal_tokens": 1.0, "equal_wholes": 1.0 });
    assert_eq!(found["lengths"], json!([entry(96), entry(200)]));
    assert_eq!((&found["max_new_tokens"], &found["text"]), (&json!(16), &json!([data])));
    let other = shrink(&[&["eval", &out, "--json", "--task", "agreement"], &few[..]].concat()).json();
    let first = &list(&other, "lengths")[0];
    assert!(number(first, "equal_tokens") < 1.0 && number(first, "common_tokens") < 16.0, "{other}");
}

#[test]
fn a_table_says_what_was_found() {
    let demo = golden("demo");
    let args = ["eval", &demo, "--task", "needle", "--lengths", "200", "--depths", "0.25", "--trials", "1"];
    let text = shrink(&args).text();
    let lines: Vec<&str> = text.lines().collect();
    let [header, _, row] = lines.as_slice() else { panic!("{text}") };
    assert_eq!(header.split_whitespace().collect::<Vec<_>>(), ["tokens", "at", "0.25", "found"]);
    assert!(row.starts_with("200 ") && row.ends_with('%'), "{row}");
    let text = shrink(&[&args[..], &["--against", &demo]].concat()).text();
    assert!(text.contains("of the donor's") && text.lines().count() == 4, "{text}");
    let copied = shrink(&["eval", &demo, "--task", "copy", "--lengths", "64", "--trials", "1"]).text();
    assert!(copied.starts_with("tokens  copied  "), "{copied}");
}

#[test]
fn what_a_task_cannot_do_is_said_with_a_hint() {
    let (demo, data) = (golden("demo"), heldout());
    let refused = |task: &str, more: &[&str], what: &str| {
        shrink(&[&["eval", &demo, "--task", task], more].concat()).refused(what)
    };
    let hint =
        refused("needle", &["--lengths", "512,2048"], "a context of 2048 tokens exceeds the model's of 1024");
    assert!(hint.contains("--lengths"), "{hint}");
    let hint = refused("needle", &["--lengths", "60"], "has no room for the task");
    assert!(hint.contains("longer --lengths"), "{hint}");
    refused("copy", &["--lengths", "3"], "has no room for the task");
    let hint = refused("retrieval", &["--pairs", "500", "--trials", "1"], "exceeds the model's of 1024");
    assert!(hint.contains("--pairs"), "{hint}");
    refused("agreement", &["--data", &data], "--against is missing");
    refused("agreement", &["--against", &demo], "--data is missing");
    let agreement = ["--data", &data, "--against", &demo, "--lengths", "64"];
    refused("agreement", &agreement, "a prompt of 0 tokens has no room");
    let hint = refused("copy", &["--depths", "0.5"], "--depths belongs to the task needle, not to copy");
    assert!(hint.contains("--depths"), "{hint}");
    refused("retrieval", &["--lengths", "512"], "--lengths belongs to the task needle, copy, agreement");
    refused("needle", &["--pairs", "4"], "--pairs belongs to the task retrieval");
    refused("needle", &["--max-new-tokens", "4"], "--max-new-tokens belongs to the task agreement");
    refused("needle", &["--against", &golden("llama")], "vocabularies of 1024 and 264");

    let scratch = Scratch::new();
    let short = scratch.write("short.txt", "A few words. And a few more.");
    let hint = refused("needle", &["--data", &short, "--lengths", "512"], "the text gives ");
    assert!(hint.contains("--data"), "{hint}");
    refused(
        "retrieval",
        &["--data", &short, "--pairs", "64"],
        "different words of four to eight small letters",
    );
    let agreement = ["--data", &short, "--against", &demo];
    refused("agreement", &agreement, "the text gives ");
}

#[test]
fn a_tokenizer_without_digits_is_refused_where_numbers_are_asked_for() {
    let scratch = Scratch::of("demo");
    let mut tokenizer = scratch.read_json("tokenizer.json");
    // A normaliser that makes an x of every digit.
    tokenizer["normalizer"] = json!({ "type": "Replace", "pattern": { "Regex": "[0-9]" }, "content": "x" });
    scratch.write("tokenizer.json", tokenizer.to_string());
    let root = scratch.root();
    for task in ["needle", "retrieval"] {
        let hint = shrink(&["eval", &root, "--task", task]).refused("reads the digits 0123456789 as \"x");
        assert!(hint.contains("--task copy"), "{hint}");
    }
    shrink(&["eval", &root, "--task", "copy", "--lengths", "64", "--trials", "1"]).text();
}

#[test]
fn a_task_goes_with_no_option_of_windows() {
    let demo = golden("demo");
    let args = ["eval", &demo, "--task", "copy"];
    for other in [
        &["--stride", "8"][..],
        &["--through-cache"],
        &["--max-length", "64"],
        &["--windows", "2"],
        &["--by-position"],
    ] {
        shrink(&[&args[..], other].concat()).misused("cannot be used with");
    }
    shrink(&["eval", &demo, "--data", &heldout(), "--trials", "2"]).misused("--task");
    shrink(&["eval", &demo]).misused("--data");
    shrink(&["eval", &demo, "--task", "needle", "--depths", "1.5"]).misused("0 to 1");
    shrink(&["eval", &demo, "--task", "song"]).misused("needle, copy, retrieval, agreement");
}
