//! Added and special tokens, from the places where folders have kept them over the years.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::class::Class;
use super::files::Files;
use crate::error::Error;

/// The names that every tokenizer has tokens for, in the order in which they are added.
const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A token and what was said of it.
enum Token {
    /// A text alone: special, and what that implies.
    Text(String),
    /// A whole description.
    Described(AddedToken),
}

impl Token {
    /// A text, or an object with its `content`; anything else names no token.
    fn parse(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Some(Self::Text(text.clone())),
            Value::Object(fields) => described(fields, false).map(Self::Described),
            _ => None,
        }
    }

    fn content(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Described(token) => &token.content,
        }
    }
}

/// What a folder says of tokens beside `tokenizer.json`, or in it where that is built anew.
pub(super) struct Specials {
    /// By id, as far as a file says which.
    added: BTreeMap<u32, AddedToken>,
    /// By name, in the order of adding.
    named: Vec<(String, Token)>,
    extra: Vec<Token>,
    splits_special: bool,
}

/// The added tokens of a `tokenizer.json`.
pub(super) fn of_file(file: &Value) -> Result<Vec<(u32, AddedToken)>, serde_json::Error> {
    let tokens = file.get("added_tokens").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let with_id = |token: &Value| {
        let id = token.get("id").and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
        Ok((id.unwrap_or(u32::MAX), serde_json::from_value(token.clone())?))
    };
    tokens.iter().map(with_id).collect()
}

impl Specials {
    /// Gathers them; `of_file` are the added tokens of `tokenizer.json`.
    ///
    /// # Errors
    /// When an added token is no token.
    pub(super) fn read(files: &Files, class: Class, of_file: Vec<(u32, AddedToken)>) -> Result<Self, Error> {
        let mut settings = files.settings().clone();
        let bad = |what: &str| Error::Tokenizer {
            path: files.path(),
            reason: format!("{what} describes no token"),
        };
        let mut extra: Vec<Token> = list(&settings, "extra_special_tokens");
        let mut more = Vec::new();
        if extra.is_empty() {
            extra = list(&settings, "additional_special_tokens");
        }
        let mut added = BTreeMap::new();
        if let Some(Value::Object(tokens)) = settings.get("added_tokens_decoder") {
            for (id, token) in tokens {
                let token = token.as_object().and_then(|fields| described(fields, false));
                let (Ok(id), Some(token)) = (id.parse(), token) else {
                    return Err(bad(&format!("`added_tokens_decoder`, {id},")));
                };
                added.insert(id, token);
            }
        } else {
            // Before that field there were two files for it.
            let special_of_settings = |settings: &Map<String, Value>, text: &str| {
                NAMES.iter().any(|&name| settings.get(name) == Some(&text.into()))
            };
            for (name, value) in files.special_tokens_map() {
                let value = match value {
                    Value::Object(fields) if name != "extra_special_tokens" => {
                        let token = described(fields, true).ok_or_else(|| bad(name))?;
                        serde_json::to_value(token).unwrap_or_default()
                    }
                    other => other.clone(),
                };
                match name.as_str() {
                    "extra_special_tokens" if value.is_array() => more = tokens(Some(&value)),
                    "additional_special_tokens" if extra.is_empty() => more = tokens(Some(&value)),
                    "additional_special_tokens" => {}
                    _ => drop(settings.insert(name.clone(), value)),
                }
            }
            for (text, id) in files.added_tokens() {
                let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
                let id = id.ok_or_else(|| bad(&format!("added_tokens.json: {text:?}")))?;
                let in_map = files.special_tokens_map().iter().any(|(name, value)| {
                    NAMES.contains(&name.as_str())
                        && Token::parse(value).is_some_and(|token| token.content() == text)
                });
                let special = in_map
                    || special_of_settings(&settings, text)
                    || extra.iter().any(|token| token.content() == text);
                added.insert(id, AddedToken::from(text.clone(), special));
            }
            added.extend(of_file);
        }
        extra.extend(more);
        let named = named(&settings, class);
        let splits_special = super::files::switch(&settings, "split_special_tokens").unwrap_or(false);
        Ok(Self { added, named, extra, splits_special })
    }

    /// The text of a named token.
    pub(super) fn named(&self, name: &str) -> Option<&str> {
        self.named.iter().find(|(known, _)| known == name).map(|(_, token)| token.content())
    }

    /// Adds what the tokenizer does not have, in the order of transformers, which decides their ids.
    pub(super) fn add_to(&self, inner: &mut tokenizers::Tokenizer, class: Class) -> tokenizers::Result<()> {
        let mut known: Vec<String> =
            inner.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
        let is_named = |text: &str| self.named.iter().any(|(_, token)| token.content() == text);
        let mut new: Vec<AddedToken> = self.added.values().cloned().collect();
        known.extend(new.iter().map(|token| token.content.clone()));
        for token in self.named.iter().map(|(_, token)| token).chain(&self.extra) {
            if !known.iter().any(|text| text == token.content()) {
                known.push(token.content().to_owned());
                new.push(match token {
                    Token::Text(text) => AddedToken::from(text.clone(), true),
                    Token::Described(token) => token.clone(),
                });
            }
        }
        for token in &mut new {
            token.special |= is_named(&token.content);
        }
        inner.add_tokens(new)?;
        if class == Class::Qwen2 {
            let all = self.named.iter().map(|(_, token)| token).chain(&self.extra);
            inner.add_tokens(all.map(|token| AddedToken::from(token.content(), true)))?;
        }
        inner.set_encode_special_tokens(self.splits_special);
        Ok(())
    }
}

/// Named tokens of a folder, or else of the class; a null is none.
fn named(settings: &Map<String, Value>, class: Class) -> Vec<(String, Token)> {
    let default = |name: &str| class.tokens().iter().find(|(known, _)| *known == name).map(|(_, text)| *text);
    let mut named = Vec::new();
    let mut put = |name: &str, value: Option<&Value>| {
        let token = match value {
            Some(value) => Token::parse(value),
            None => default(name).map(|text| Token::Text(text.to_owned())),
        };
        named.extend(token.map(|token| (name.to_owned(), token)));
    };
    for name in NAMES {
        put(name, settings.get(name));
    }
    let is_own = |name: &str| name.ends_with("_token") && !NAMES.contains(&name);
    for (name, _) in class.tokens().iter().filter(|(name, _)| is_own(name)) {
        put(name, settings.get(*name));
    }
    for (name, value) in settings {
        if is_own(name) && default(name).is_none() {
            put(name, Some(value));
        }
    }
    if let Some(Value::Object(by_name)) = settings.get("extra_special_tokens") {
        for (name, value) in by_name {
            put(name, Some(value));
        }
    }
    named
}

fn list(settings: &Map<String, Value>, name: &str) -> Vec<Token> {
    tokens(settings.get(name))
}

fn tokens(value: Option<&Value>) -> Vec<Token> {
    let values = value.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    values.iter().filter_map(Token::parse).collect()
}

/// A token's description; `special` where the file does not say so itself.
fn described(fields: &Map<String, Value>, special: bool) -> Option<AddedToken> {
    let content = fields.get("content")?.as_str()?;
    let flag = |name: &str| fields.get(name).and_then(Value::as_bool);
    let special = special || flag("special").unwrap_or(false);
    let token = AddedToken::from(content, special);
    Some(AddedToken {
        single_word: flag("single_word").unwrap_or(token.single_word),
        lstrip: flag("lstrip").unwrap_or(token.lstrip),
        rstrip: flag("rstrip").unwrap_or(token.rstrip),
        normalized: flag("normalized").unwrap_or(token.normalized),
        ..token
    })
}
