//! Text to ids as the tokenizers library of the reference does it.

use handlers::Tokenizer;
use serde::Deserialize;

use crate::twin::{TWINS, folder};

/// What of `goldens/demo/golden.json` concerns the tokenizer.
#[derive(Deserialize)]
struct DemoGolden {
    greedy: Continuation,
    tokens: Vec<Sample>,
}

#[derive(Deserialize)]
struct Continuation {
    prompt: String,
    prompt_ids: Vec<u32>,
    ids: Vec<u32>,
    text: String,
}

#[derive(Deserialize)]
struct Sample {
    text: String,
    ids: Vec<u32>,
}

fn demo() -> (Tokenizer, DemoGolden) {
    let path = folder("demo").join("golden.json");
    let golden = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let golden = serde_json::from_slice(&golden).expect("a golden file");
    (Tokenizer::open(&folder("demo")).expect("a tokenizer"), golden)
}

#[test]
fn texts_get_the_ids_of_the_reference() {
    let (tokenizer, golden) = demo();
    assert!(golden.tokens.len() >= 10, "{} samples", golden.tokens.len());
    for Sample { text, ids } in &golden.tokens {
        assert_eq!(tokenizer.encode(text).expect("ids"), *ids, "{text:?}");
    }
    assert_eq!(tokenizer.encode(&golden.greedy.prompt).expect("ids"), golden.greedy.prompt_ids);
}

#[test]
fn ids_get_their_texts_back_without_special_tokens() {
    let (tokenizer, golden) = demo();
    for Sample { text, ids } in &golden.tokens {
        assert_eq!(tokenizer.decode(ids).expect("a text"), text.replace("<|endoftext|>", ""), "{text:?}");
    }
    assert_eq!(tokenizer.decode(&golden.greedy.ids).expect("a text"), golden.greedy.text);
    assert_eq!(tokenizer.vocab_size(), 1024);
}

#[test]
fn the_twins_tokenizers_cover_their_embeddings() {
    for name in TWINS {
        let tokenizer = Tokenizer::open(&folder(name)).expect("a tokenizer");
        assert_eq!(tokenizer.vocab_size(), 264, "{name}");
        let ids = tokenizer.encode_prompt("the heathen<|endoftext|>").expect("ids");
        assert_eq!(ids.last(), Some(&263), "{name}");
    }
}
