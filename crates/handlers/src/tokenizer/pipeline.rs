//! How a class splits text: the rules that transformers 5 puts in the place of `tokenizer.json`'s own.

use serde_json::{Map, Value, json};

use super::class::Class;
use super::files::{switch, text};

/// Qwen2's way to split text into words (`tokenization_qwen2.py`).
const QWEN2_WORDS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// Everything of a tokenizer but its vocabulary, its merges and its added tokens, as `tokenizer.json` writes it.
pub(super) struct Rules {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    /// Fields of the model beside its vocabulary and its merges.
    model: Value,
}

/// The rules of a class; `None` where `tokenizer.json` stands as it is.
pub(super) fn rules(class: Class, settings: &Map<String, Value>) -> Option<Rules> {
    let prefix_space = switch(settings, "add_prefix_space");
    let unknown = || match settings.get("unk_token") {
        Some(Value::Object(token)) => text(token, "content").unwrap_or("<unk>").to_owned(),
        _ => text(settings, "unk_token").unwrap_or("<unk>").to_owned(),
    };
    let byte_level = |normalizer| Rules {
        normalizer,
        pre_tokenizer: byte_level(prefix_space.unwrap_or(false), true),
        decoder: byte_level_decoder(),
        model: json!({ "fuse_unk": false, "byte_fallback": false }),
    };
    Some(match class {
        Class::Plain | Class::Unmodelled => return None,
        Class::Gpt2 | Class::Roberta => byte_level(Value::Null),
        Class::GptNeoX => byte_level(json!({ "type": "NFC" })),
        Class::Qwen2 => {
            let words = json!({ "type": "Split", "pattern": { "Regex": QWEN2_WORDS }, "behavior": "Isolated",
                "invert": false });
            let bytes = self::byte_level(prefix_space.unwrap_or(false), false);
            Rules {
                pre_tokenizer: json!({ "type": "Sequence", "pretokenizers": [words, bytes] }),
                ..byte_level(json!({ "type": "NFC" }))
            }
        }
        Class::Llama => {
            let prefix_space = prefix_space.unwrap_or(true);
            let scheme = match (prefix_space, switch(settings, "legacy").unwrap_or(false)) {
                (false, _) => "never",
                (true, false) => "first",
                (true, true) => "always",
            };
            spaces_as_marks(scheme, prefix_space, Value::Null)
        }
        Class::CodeLlama => {
            let scheme = if prefix_space.unwrap_or(true) { "first" } else { "never" };
            spaces_as_marks(scheme, true, unknown().into())
        }
        Class::Gemma => Rules {
            normalizer: json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" }),
            pre_tokenizer: json!({ "type": "Split", "pattern": { "String": " " },
                "behavior": "MergedWithPrevious", "invert": false }),
            ..spaces_as_marks("never", false, unknown().into())
        },
    })
}

/// A `tokenizer.json` of a vocabulary and merges alone.
pub(super) fn model(vocabulary: Map<String, Value>, merges: Vec<Value>) -> Value {
    json!({ "model": { "vocab": vocabulary, "merges": merges } })
}

impl Rules {
    /// The tokenizer of these rules over the vocabulary and the merges of a `tokenizer.json`, without added tokens.
    pub(super) fn over(&self, file: &Value) -> Result<tokenizers::Tokenizer, serde_json::Error> {
        let model = &file["model"];
        let vocabulary = match &model["vocab"] {
            // A Unigram's pieces, in order.
            Value::Array(pieces) => {
                let piece =
                    |piece: &Value| piece.get(0).unwrap_or(piece).as_str().unwrap_or_default().to_owned();
                pieces.iter().zip(0_u32..).map(|(one, id)| (piece(one), Value::from(id))).collect()
            }
            Value::Object(vocabulary) => vocabulary.clone(),
            _ => return Err(serde::de::Error::custom("the model has no vocabulary")),
        };
        let mut bpe = json!({ "type": "BPE", "dropout": null, "unk_token": null, "ignore_merges": false });
        if let (Value::Object(bpe), Value::Object(fields)) = (&mut bpe, &self.model) {
            bpe.extend(fields.clone());
            bpe.insert("vocab".into(), Value::Object(vocabulary));
            bpe.insert("merges".into(), model.get("merges").cloned().unwrap_or_else(|| json!([])));
        }
        let whole = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [],
            "normalizer": self.normalizer,
            "pre_tokenizer": self.pre_tokenizer,
            "post_processor": null,
            "decoder": self.decoder,
            "model": bpe,
        });
        serde_json::from_str(&whole.to_string())
    }
}

fn byte_level(prefix_space: bool, splits: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": true, "use_regex": splits })
}

fn byte_level_decoder() -> Value {
    byte_level(true, true)
}

/// SentencePiece's way: a space is ▁, and what is unknown falls back to bytes.
fn spaces_as_marks(scheme: &str, strips: bool, unknown: Value) -> Rules {
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if strips {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    Rules {
        normalizer: Value::Null,
        pre_tokenizer: json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false }),
        decoder: json!({ "type": "Sequence", "decoders": decoders }),
        model: json!({ "fuse_unk": true, "byte_fallback": true, "unk_token": unknown }),
    }
}
