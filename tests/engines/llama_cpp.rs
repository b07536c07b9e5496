//! Stock llama.cpp, through node-llama-cpp.

use std::path::Path;
use std::process::Command;

use handlers::Tokenizer;
use serde_json::{Value, json};

use crate::folder::Scratch;
use crate::program::{assert_close, number};
use crate::{
    PROMPT, TRAINED, convert, export, named, perplexity, run_json, same_tokens, script, tokens, windows,
};

const SERIES: [&str; 6] = ["--method", "deepseek", "--layout", "deepseek", "--d-rope", "16"];
/// Words, digits, marks, spaces, line ends and letters beyond ASCII.
const TRICKY: &str = "The ship's 12345 oars; they'll pull -- DON'T!\n\n  Two  spaces,\ttabs\r\nand élan, 漢字 — 3.14e-7 \u{1f680} end ";

/// What llama.cpp makes of a file.
fn llama(scratch: &Scratch, folder: &str, windows: &str, cache: &str) -> Value {
    let text = scratch.path("text.txt");
    std::fs::write(&text, TRICKY).expect("a file");
    let modules = named("SHRINK_NODE_MODULES", "cargo xtask ci llama-cpp makes a folder for these tests");
    let mut command = Command::new("node");
    command.args([
        &script("llama.mjs"),
        &format!("{folder}/model.gguf"),
        windows,
        PROMPT,
        tokens(TRAINED),
        &text,
    ]);
    run_json(command.env("SHRINK_NODE_MODULES", modules).env("SHRINK_CACHE", cache), "llama.mjs")
}

#[test]
fn runs_the_file_and_caches_what_was_promised() {
    let scratch = Scratch::new();
    let latent = convert(&scratch, TRAINED, &SERIES);
    let windows = windows(&scratch, &latent);
    let ours = perplexity(&latent);
    for padded in [&[][..], &["--pad-rank", "64"]] {
        let (out, report) =
            export(&scratch, &latent, &[&["--format", "gguf", "--dtype", "f32"], padded].concat());
        let found = llama(&scratch, &out, &windows, "f32");
        assert_close(number(&found, "perplexity"), ours, 1e-4);
        same_tokens(&found, &latent);
        assert_eq!(found["text"], json!(ids(&latent)));
        // llama.cpp says it in MiB, rounded, of a context of 256 numbers' multiple; the promise is of f16.
        let said = found["cache"].to_string();
        let (mib, cells) = (between(&said, "size = ", " MiB ("), between(&said, "MiB (", " cells"));
        let promised = 2.0 * number(&report, "cache_bytes_a_token") * cells / f64::from(1 << 20);
        assert!((mib - promised).abs() < 0.01, "{said}, {promised}");
    }
    let (out, _) = export(&scratch, &latent, &["--format", "gguf"]);
    assert_close(number(&llama(&scratch, &out, &windows, "f16"), "perplexity"), ours, 1e-2);
}

/// Each rule by which text is split, and SentencePiece's kind, in the place of the bundled model's tokenizer.
#[test]
fn reads_text_as_shrink_does() {
    let scratch = Scratch::new();
    let latent = convert(&scratch, TRAINED, &SERIES);
    let path = Path::new(&latent).join("tokenizer.json");
    let plain: Value = serde_json::from_slice(&std::fs::read(&path).expect("a file")).expect("JSON");
    std::fs::remove_file(Path::new(&latent).join("tokenizer_config.json")).expect("a file");
    let bytes =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    let with = |steps: Value, whole: bool| {
        let mut file = plain.clone();
        file["pre_tokenizer"] = json!({ "type": "Sequence", "pretokenizers": steps });
        file["model"]["ignore_merges"] = whole.into();
        file
    };
    let split = |pattern: &str| json!([{ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false }, bytes]);
    let mut words = bytes.clone();
    words["use_regex"] = true.into();
    let mut all = vec![
        ("gpt-2", plain.clone()),
        ("smollm", with(json!([{ "type": "Digits", "individual_digits": true }, words]), false)),
        ("llama", sentencepiece()),
    ];
    for (pattern, name, whole) in handlers::gguf::PATTERNS {
        all.push((name, with(split(pattern), whole)));
    }
    std::fs::write(scratch.path("none.json"), "[]").expect("a file");
    let none = scratch.path("none.json");
    for (name, file) in all {
        std::fs::write(&path, serde_json::to_vec(&file).expect("JSON")).expect("a file");
        let (out, _) = export(&scratch, &latent, &["--format", "gguf"]);
        assert_eq!(llama(&scratch, &out, &none, "f16")["text"], json!(ids(&latent)), "{name}");
    }
}

fn ids(folder: &str) -> Vec<u32> {
    Tokenizer::open(folder.as_ref()).expect("a tokenizer").encode(TRICKY).expect("ids")
}

/// A small tokenizer of LLaMA 2's kind.
fn sentencepiece() -> Value {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(('a'..='z').chain('A'..='Z').chain('0'..='9').map(String::from));
    tokens.extend(["▁", ",", ".", "'", "é", "-"].map(str::to_owned));
    // As SentencePiece's vocabularies become merges: in the order of scores, each token by all pairs that make it.
    let words =
        ["th", "▁t", "the", "▁th", "he", "▁the", "in", "ll", "sh", "▁sh", "ip", "▁ship", "▁▁", "12", "--"];
    tokens.extend(words.map(str::to_owned));
    let known = |part: &str| tokens.iter().any(|token| token == part);
    let splits = |word: &'static str| word.char_indices().skip(1).map(|(at, _)| word.split_at(at));
    let pairs = words.into_iter().flat_map(splits).filter(|(left, right)| known(left) && known(right));
    let merges: Vec<Value> = pairs.map(|(left, right)| json!([left, right])).collect();
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let special = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true })
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "post_processor": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "▁" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        ] },
        "pre_tokenizer": null,
        "decoder": { "type": "ByteFallback" },
        "model": { "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": merges },
    })
}

/// The number between two pieces of a text, the last of its kind.
fn between(text: &str, before: &str, after: &str) -> f64 {
    let rest = text.rsplit_once(before).unwrap_or_else(|| panic!("{before}: {text}")).1;
    rest.split_once(after).unwrap_or_else(|| panic!("{after}: {text}")).0.trim().parse().expect("a number")
}
