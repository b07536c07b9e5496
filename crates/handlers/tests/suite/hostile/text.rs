//! `tokenizer.json` and `generation_config.json`.

use handlers::{Error, Tokenizer};
use serde_json::{Value, json};

use super::refuses;
use crate::scratch::Scratch;

#[test]
fn a_missing_tokenizer_is_named() {
    let scratch = Scratch::of("llama");
    scratch.remove("tokenizer.json");
    refuses!(Tokenizer::open(scratch.folder()), Error::Tokenizer { path, reason }
        if path.ends_with("tokenizer.json") && reason.contains("missing"));
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
