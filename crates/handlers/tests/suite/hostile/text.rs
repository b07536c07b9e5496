//! `tokenizer.json` and `generation_config.json`.

use handlers::{Error, Tokenizer};
use serde_json::{Value, json};

use super::refuses;
use crate::scratch::Scratch;

#[test]
fn a_missing_tokenizer_is_named() {
    let scratch = Scratch::of("llama");
    scratch.remove("tokenizer.json");
    refuses!(Tokenizer::open(scratch.folder()), Error::NoTokenizer { path, found }
        if path == scratch.folder() && found.is_empty());
}

#[test]
fn another_tokenizer_is_named_with_the_command_that_mends_it() {
    let scratch = Scratch::of("llama");
    scratch.remove("tokenizer.json");
    // The class of a LLaMA reads no vocab.json.
    for file in ["tokenizer.model", "vocab.json", "merges.txt"] {
        scratch.write(file, "{}");
    }
    let error = Tokenizer::open(scratch.folder()).expect_err("no tokenizer");
    assert!(
        error.to_string().ends_with("has no tokenizer.json, only tokenizer.model, vocab.json, merges.txt"),
        "{error}"
    );
    let folder = scratch.folder().display();
    let command = format!("AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')\"");
    assert!(error.hint().is_some_and(|hint| hint.ends_with(&command)), "{:?}", error.hint());
}

#[test]
fn damaged_files_beside_the_tokenizer_are_named() {
    for (file, text) in [
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("special_tokens_map.json", "{\"pad_token\": {}}"),
        ("added_tokens.json", "{\"<new>\": -1}"),
        ("tokenizer_config.json", "{\"added_tokens_decoder\": {\"7\": \"<new>\"}}"),
    ] {
        let scratch = Scratch::of("llama");
        scratch.write(file, text);
        refuses!(Tokenizer::open(scratch.folder()), Error::Tokenizer { .. } | Error::Json { .. });
    }
    let scratch = Scratch::of("gpt2");
    scratch.remove("tokenizer.json");
    scratch.remove("tokenizer_config.json");
    scratch.write("vocab.json", "{\"a\": 0, \"b\": 1, \"ab\": 2}");
    scratch.write("merges.txt", "#version: 0.2\na b\na b c\n");
    refuses!(Tokenizer::open(scratch.folder()), Error::Tokenizer { path, reason }
        if path.ends_with("merges.txt") && reason.starts_with("line 3"));
}

#[test]
fn a_named_token_may_be_an_object_of_its_content_alone() {
    let scratch = Scratch::of("llama");
    scratch.edit_json("tokenizer_config.json", |json| {
        drop(json.insert("pad_token".into(), json!({ "content": "<pad>" })))
    });
    let tokenizer = Tokenizer::open(scratch.folder()).expect("a tokenizer");
    assert_eq!(tokenizer.encode("<pad>").expect("ids"), [264]);
}

#[test]
fn a_damaged_tokenizer_is_named() {
    let scratch = Scratch::of("llama");
    let whole = std::fs::read(scratch.path("tokenizer.json")).expect("a tokenizer");
    for bytes in
        [Vec::new(), b"{}".to_vec(), b"[]".to_vec(), vec![0xff; 40], whole[..whole.len() / 2].to_vec()]
    {
        scratch.write("tokenizer.json", bytes);
        refuses!(Tokenizer::open(scratch.folder()), Error::Tokenizer { .. });
    }
    // A class that takes no more than the vocabulary from it.
    scratch.write("tokenizer_config.json", "{\"tokenizer_class\": \"GPT2Tokenizer\"}");
    for text in [
        "",
        "{}",
        "[]",
        "{\"model\": {\"vocab\": {\"a\": \"b\"}}}",
        "{\"added_tokens\": [{}], \"model\": {}}",
    ] {
        scratch.write("tokenizer.json", text);
        refuses!(Tokenizer::open(scratch.folder()), Error::Tokenizer { .. });
    }
}

#[test]
fn settings_for_padding_and_truncation_do_not_touch_a_corpus() {
    let scratch = Scratch::of("llama");
    let text = "the heathen in the trees ".repeat(200);
    let tokenizer = Tokenizer::open(scratch.folder()).expect("a tokenizer");
    let expected = tokenizer.encode(&text).expect("ids");
    assert!(expected.len() > 1000);
    scratch.edit_json("tokenizer.json", |json| {
        let truncation =
            json!({ "max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right" });
        let padding = json!({
            "strategy": { "Fixed": 16 }, "direction": "Left", "pad_to_multiple_of": null,
            "pad_id": 263, "pad_type_id": 0, "pad_token": "<|endoftext|>",
        });
        json.insert("truncation".into(), truncation);
        json.insert("padding".into(), padding);
    });
    let tokenizer = Tokenizer::open(scratch.folder()).expect("a tokenizer");
    assert_eq!(tokenizer.encode(&text).expect("ids"), expected);
    assert_eq!(
        tokenizer.encode("the").expect("ids").len(),
        tokenizer.encode_prompt("the").expect("ids").len()
    );
    assert!(tokenizer.encode("the").expect("ids").len() < 8, "nothing is padded");
}

#[test]
fn a_sequence_ends_where_the_folder_says() {
    let scratch = Scratch::of("llama");
    let eos = || scratch.open().expect("a model").generation().eos.clone();
    assert_eq!(eos(), [263]);
    scratch.write("generation_config.json", "{\"eos_token_id\": [5, 6, 7]}");
    assert_eq!(eos(), [5, 6, 7]);
    for silent in ["{}", "{\"eos_token_id\": null}"] {
        scratch.write("generation_config.json", silent);
        assert_eq!(eos(), [263], "config.json says it then");
    }
    scratch.remove("generation_config.json");
    assert_eq!(eos(), [263]);
    scratch.set("eos_token_id", json!([1, 2]));
    assert_eq!(eos(), [1, 2]);
    scratch.set("eos_token_id", Value::Null);
    assert!(eos().is_empty());
}

#[test]
fn an_end_that_is_no_token_is_refused() {
    let scratch = Scratch::of("llama");
    for bad in [json!(-1), json!("eos"), json!(1.5), json!(1_u64 << 32), json!([1, "2"]), json!({})] {
        scratch.write("generation_config.json", json!({ "eos_token_id": bad }).to_string());
        refuses!(scratch.open(), Error::BadField { field, path, .. }
            if field == "eos_token_id" && path.ends_with("generation_config.json"));
    }
    scratch.write("generation_config.json", "{");
    refuses!(scratch.open(), Error::Json { path, .. } if path.ends_with("generation_config.json"));
}
