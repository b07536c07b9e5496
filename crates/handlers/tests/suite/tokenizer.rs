//! Text to ids as the tokenizers library of the reference does it.

use handlers::Tokenizer;
use serde::Deserialize;

use crate::twin::{folder, twins};

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

/// A tokenizer as LLaMA 2 has it: words begin with `▁`, unknown characters fall back to bytes, and the decoder drops the
/// space before the first word.
fn sentencepiece(decoder: &serde_json::Value) -> (tempfile::TempDir, Tokenizer) {
    let mut vocab: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    vocab.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    vocab.extend(["▁", "▁Paris", "▁is", "H", "i", "▁Hi"].map(str::to_owned));
    let vocab: serde_json::Map<_, _> = vocab.into_iter().enumerate().map(|(i, t)| (t, i.into())).collect();
    let special = |id: u32, content: &str| {
        serde_json::json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true })
    };
    let json = serde_json::json!({
        "version": "1.0",
        "added_tokens": [special(1, "<s>"), special(2, "</s>")],
        "normalizer": null,
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": decoder,
        "model": { "type": "BPE", "byte_fallback": true, "unk_token": "<unk>", "vocab": vocab, "merges": [] },
    });
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).expect("a file");
    let tokenizer = Tokenizer::open(folder.path()).expect("a tokenizer");
    (folder, tokenizer)
}

const BOS: u32 = 1;
const EOS: u32 = 2;
const SPACE: u32 = 259;
const PARIS: u32 = 260;
const IS: u32 = 261;
const HI: u32 = 264;

fn byte(byte: u8) -> u32 {
    3 + u32::from(byte)
}

/// LLaMA's decoder, then Mistral's later one.
fn decoders() -> [serde_json::Value; 2] {
    [
        serde_json::json!({ "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" },
            { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] }),
        serde_json::json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": false }),
    ]
}

#[test]
fn a_continuation_keeps_the_space_that_decoding_it_alone_would_drop() {
    for decoder in decoders() {
        let (_folder, tokenizer) = sentencepiece(&decoder);
        let prompt = [BOS, HI, PARIS];
        assert_eq!(tokenizer.decode(&[IS, PARIS]).expect("a text"), "is Paris", "the decoder drops it");
        assert_eq!(tokenizer.decode_after(&prompt, &[IS, PARIS]).expect("a text"), " is Paris");
        assert_eq!(tokenizer.decode_after(&prompt, &[EOS, IS]).expect("a text"), " is");
        assert_eq!(
            tokenizer.decode_after(&[BOS], &[IS, PARIS]).expect("a text"),
            "is Paris",
            "a text begins"
        );
        assert_eq!(tokenizer.decode_after(&prompt, &[]).expect("a text"), "");
    }
}

#[test]
fn the_pieces_of_a_continuation_are_the_text_of_the_whole() {
    let [decoder, _] = decoders();
    let (_folder, tokenizer) = sentencepiece(&decoder);
    let prompt = [BOS, HI];
    let e = [byte(0xC3), byte(0xA9)];
    for ids in [
        vec![IS, SPACE, SPACE, PARIS, SPACE, IS],
        vec![SPACE, e[0], e[1], IS, e[0], e[1], e[0], e[1]],
        vec![PARIS; 60],
        vec![IS, byte(0xF0), byte(0x9F), byte(0xA6), byte(0x80), PARIS],
    ] {
        let whole = tokenizer.decode(&[&prompt[..], &ids].concat()).expect("a text");
        assert_eq!(format!("Hi{}", tokenizer.decode_after(&prompt, &ids).expect("a text")), whole, "{ids:?}");
    }
    // A piece never ends inside a character.
    let mut continuation = tokenizer.continuation(&prompt);
    assert_eq!(continuation.push(e[0]).expect("a piece"), "");
    assert_eq!(continuation.push(e[1]).expect("a piece"), "é");
    assert_eq!(continuation.push(e[0]).expect("a piece"), "");
    assert_eq!(continuation.finish().expect("the rest"), "\u{FFFD}\u{FFFD}", "é breaks with what follows it");
}

#[test]
fn bytes_that_are_no_text_neither_fail_nor_wait_for_ever() {
    let [decoder, _] = decoders();
    let (_folder, tokenizer) = sentencepiece(&decoder);
    let mut continuation = tokenizer.continuation(&[BOS, HI]);
    let mut piece = |id| continuation.push(id).expect("a piece");
    assert_eq!([byte(0xC3), byte(0xA9), byte(0xFF)].map(&mut piece), ["", "é", ""]);
    assert!(piece(IS).ends_with(" is"));
    let pieces: Vec<String> = (0..100).map(|_| piece(byte(0xFF))).collect();
    assert!(pieces.iter().any(|piece| !piece.is_empty()));
}

#[test]
fn the_twins_tokenizers_cover_their_embeddings() {
    for name in twins() {
        let tokenizer = Tokenizer::open(&folder(name)).expect("a tokenizer");
        assert_eq!(tokenizer.vocab_size(), 264, "{name}");
        let ids = tokenizer.encode_prompt("the heathen<|endoftext|>").expect("ids");
        assert_eq!(ids.last(), Some(&263), "{name}");
    }
}
