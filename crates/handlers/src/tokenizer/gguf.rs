//! A tokenizer as GGUF's metadata says it.
//!
//! llama.cpp has its own tokenizers and chooses one by name: byte-level BPE (`gpt2`), whose rule for splitting text has a name of
//! its own, and SentencePiece's BPE with bytes to fall back on (`llama`), which merges the pair whose result has the highest score.
//! What it has no name for is refused: a model that reads other tokens than it was trained on answers with nonsense.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value as Json;

use super::{ChatTemplate, Tokenizer};
use crate::error::Error;
use crate::gguf::Value;

/// What llama.cpp calls a rule that splits text: its pattern, its name, and whether a word that is a token is taken whole.
pub const PATTERNS: [(&str, &str, bool); 5] = [
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "llama-bpe",
        true,
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "dbrx",
        false,
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "qwen2",
        false,
    ),
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "tekken",
        true,
    ),
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "gpt-4o",
        false,
    ),
];

/// What kind a token is, by the format's numbers.
#[derive(Clone, Copy)]
enum Kind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// The ids that a model's configuration names.
pub(crate) struct Ends<'a> {
    pub bos: Option<u32>,
    pub eos: &'a [u32],
    pub pad: Option<u32>,
}

/// The metadata of a folder's tokenizer, for a model of `vocab_size` tokens.
///
/// # Errors
/// When the folder has no tokenizer that shrink reads, or llama.cpp has none like it.
pub(crate) fn metadata(
    folder: &Path,
    vocab_size: usize,
    ends: &Ends<'_>,
) -> Result<Vec<(String, Value)>, Error> {
    let tokenizer = Tokenizer::open(folder)?;
    let refuse = |reason: String| Error::Export { format: "gguf", reason };
    let json = serde_json::to_value(&tokenizer.inner).map_err(|e| tokenizer.error(e.into()))?;
    let Vocabulary { model, pre, mut tokens, scores } = Vocabulary::of(&json).map_err(refuse)?;
    if tokens.len() > vocab_size {
        return Err(refuse(format!(
            "the tokenizer has {} tokens, the model {vocab_size}: llama.cpp takes no token beyond",
            tokens.len()
        )));
    }
    for id in tokens.len()..vocab_size {
        tokens.push((format!("[PAD{id}]"), Kind::Unused));
    }
    let mut fields: Vec<(String, Value)> = Vec::new();
    let mut put = |key: &str, value: Value| fields.push((format!("tokenizer.{key}"), value));
    put("ggml.model", model.into());
    put("ggml.pre", pre.into());
    put("ggml.token_type", Value::I32s(tokens.iter().map(|(_, kind)| *kind as i32).collect()));
    put("ggml.tokens", Value::Texts(tokens.into_iter().map(|(token, _)| token).collect()));
    match scores {
        Some(mut scores) => {
            scores.resize(vocab_size, 0.0);
            put("ggml.scores", Value::F32s(scores));
            put("ggml.add_space_prefix", Value::Bool(prepends_space(&tokenizer)?));
        }
        None => put("ggml.merges", Value::Texts(merges(&json).map(|[a, b]| format!("{a} {b}")).collect())),
    }
    let (plain, prompt) = (tokenizer.encode("a")?, tokenizer.encode_prompt("a")?);
    let added = prompt.len() - plain.len().min(prompt.len());
    let leads = prompt.ends_with(&plain) && added > 0;
    put("ggml.add_bos_token", Value::Bool(leads));
    put("ggml.add_eos_token", Value::Bool(added > 0 && !leads));
    let bos = if leads { prompt.first().copied() } else { ends.bos };
    // A model may end in several ways; llama.cpp has a place for two.
    let named = [("bos", bos), ("eos", ends.eos.first().copied()), ("eot", ends.eos.get(1).copied())];
    for (name, id) in named.into_iter().chain([("padding", ends.pad)]) {
        if let Some(id) = id {
            put(&format!("ggml.{name}_token_id"), Value::U32(id));
        }
    }
    if let Some(template) = ChatTemplate::open(folder)? {
        put("chat_template", Value::Text(template.source().to_owned()));
    }
    Ok(fields)
}

/// What llama.cpp is told of a tokenizer's model.
struct Vocabulary {
    /// Its kind.
    model: &'static str,
    /// The name of its rule for splitting text.
    pre: &'static str,
    tokens: Vec<(String, Kind)>,
    /// Of SentencePiece's kind, by token.
    scores: Option<Vec<f32>>,
}

impl Vocabulary {
    fn of(json: &Json) -> Result<Self, String> {
        let model = &json["model"];
        let kind = model["type"].as_str().unwrap_or("one without a type");
        if kind != "BPE" {
            return Err(format!("its tokenizer is {kind}; the layout takes BPE"));
        }
        let falls_back = model["byte_fallback"].as_bool().unwrap_or(false);
        let pre = match falls_back {
            true => "default",
            false => split_rule(json).ok_or(
                "llama.cpp has no rule that splits text as its tokenizer does; --format deepseek needs none",
            )?,
        };
        let tokens = tokens(json, falls_back)?;
        let scores = if falls_back { Some(scores(json, &tokens)?) } else { None };
        Ok(Self { model: if falls_back { "llama" } else { "gpt2" }, pre, tokens, scores })
    }
}

/// The name of the rule by which text is split before pairs are merged.
fn split_rule(json: &Json) -> Option<&'static str> {
    // What llama.cpp does not do before it splits.
    if !(json["normalizer"].is_null() || json["normalizer"]["type"] == "NFC") {
        return None;
    }
    let before = &json["pre_tokenizer"];
    let one = std::slice::from_ref(before);
    let steps = before["pretokenizers"].as_array().map_or(one, Vec::as_slice);
    let (last, first) = steps.split_last()?;
    let is = |step: &Json, kind: &str| step["type"] == *kind;
    if !is(last, "ByteLevel") || last["add_prefix_space"] == true {
        return None;
    }
    match (first, last["use_regex"] != false) {
        ([], true) => Some("gpt-2"),
        ([digits], true) if is(digits, "Digits") && digits["individual_digits"] == true => Some("smollm"),
        ([split], false) if is(split, "Split") && split["invert"] != true => {
            let pattern = split["pattern"]["Regex"].as_str()?;
            let whole = json["model"]["ignore_merges"] == true;
            let found =
                PATTERNS.iter().find(|(known, _, takes_whole)| *known == pattern && *takes_whole == whole);
            found.map(|(_, name, _)| *name)
        }
        _ => None,
    }
}

/// Every token by id, with its kind.
fn tokens(json: &Json, falls_back: bool) -> Result<Vec<(String, Kind)>, String> {
    let vocabulary = json["model"]["vocab"].as_object().ok_or("its tokenizer has no vocabulary")?;
    let unknown = json["model"]["unk_token"].as_str();
    let id = |value: &Json| value.as_u64().and_then(|id| usize::try_from(id).ok());
    let mut by_id: Vec<(usize, String, Kind)> = Vec::new();
    for (token, value) in vocabulary {
        let kind = match falls_back {
            true if unknown == Some(token) => Kind::Unknown,
            true if byte(token).is_some() => Kind::Byte,
            _ => Kind::Normal,
        };
        by_id.push((id(value).ok_or("its tokenizer has a token without an id")?, token.clone(), kind));
    }
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        let (Some(id), Some(text)) = (id(&token["id"]), token["content"].as_str()) else { continue };
        let kind = match token["special"] == true {
            true if falls_back && unknown == Some(text) => Kind::Unknown,
            true => Kind::Control,
            false => Kind::UserDefined,
        };
        by_id.push((id, text.into(), kind));
    }
    let count = by_id.iter().map(|(id, ..)| id + 1).max().unwrap_or(0);
    if count > 2 * by_id.len() + 1024 {
        return Err(format!("its tokenizer's ids go up to {count}, most of them without a token"));
    }
    let unused = |id| (format!("[PAD{id}]"), Kind::Unused);
    let mut tokens: Vec<(String, Kind)> = (0..count).map(unused).collect();
    for (id, token, kind) in by_id {
        tokens[id] = (token, kind);
    }
    Ok(tokens)
}

/// The byte that `<0x0A>` stands for.
fn byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 2)
}

/// Pairs in the order in which they are merged. A space within one would part it: it is written as the letter that stands for it.
fn merges(json: &Json) -> impl Iterator<Item = [String; 2]> + '_ {
    json["model"]["merges"].as_array().into_iter().flatten().filter_map(|merge| {
        let (first, second) = match merge {
            Json::String(text) => text.split_once(' ')?,
            _ => (merge[0].as_str()?, merge[1].as_str()?),
        };
        Some([first, second].map(|part| part.replace(' ', "\u{120}")))
    })
}

/// The earlier a pair is merged, the higher its result scores. A token that no pair makes is never made of others.
///
/// # Errors
/// llama.cpp merges whatever two tokens make a third. SentencePiece's vocabularies list all such pairs; one that does not is refused.
fn scores(json: &Json, tokens: &[(String, Kind)]) -> Result<Vec<f32>, String> {
    let pieces = tokens.iter().enumerate().filter(|(_, (_, kind))| matches!(kind, Kind::Normal));
    let ids: HashMap<&str, usize> = pieces.map(|(id, (token, _))| (token.as_str(), id)).collect();
    let listed: HashMap<[String; 2], usize> = merges(json).zip(0..).collect();
    let mut scores = vec![-(listed.len() as f32) - 1.0; tokens.len()];
    for (token, &id) in &ids {
        let mut first = None;
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            let rank = listed.get(&[left.to_owned(), right.to_owned()]);
            if rank.is_none() && ids.contains_key(left) && ids.contains_key(right) {
                return Err(format!(
                    "its tokenizer does not merge {left:?} and {right:?} into {token:?}, and llama.cpp would"
                ));
            }
            first = first.into_iter().chain(rank.copied()).min();
        }
        if let Some(rank) = first {
            scores[id] = -(rank as f32);
        }
    }
    Ok(scores)
}

/// Whether a text is read as if a space stood before it.
fn prepends_space(tokenizer: &Tokenizer) -> Result<bool, Error> {
    let first = tokenizer.encode("a")?.first().and_then(|&id| tokenizer.inner.id_to_token(id));
    Ok(first.is_some_and(|token| token.starts_with('▁')))
}
