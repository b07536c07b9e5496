//! What a model folder says about its tokenizer.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::Error;

const TOKENIZER: &str = "tokenizer.json";
const SETTINGS: &str = "tokenizer_config.json";
const VOCABULARY: &str = "vocab.json";
const MERGES: &str = "merges.txt";

/// Files of tokenizers that shrink does not read, and those it reads only in pairs.
const OTHERS: [&str; 7] =
    ["tokenizer.model", "spiece.model", "spm.model", "tekken.json", "tiktoken.model", VOCABULARY, MERGES];

/// Ids by token, and the pairs that are merged, as `tokenizer.json` has them.
pub(super) type Vocabulary = (Map<String, Value>, Vec<Value>);

/// The files of a folder that concern its tokenizer; large ones are read when asked for.
pub(super) struct Files {
    folder: PathBuf,
    tokenizer: Option<Vec<u8>>,
    settings: Map<String, Value>,
    special_tokens_map: Map<String, Value>,
    added_tokens: Map<String, Value>,
    config: Map<String, Value>,
}

impl Files {
    /// # Errors
    /// When a file cannot be read or is no JSON object.
    pub(super) fn read(folder: &Path) -> Result<Self, Error> {
        let object = |name: &str| Ok::<_, Error>(object(&folder.join(name))?.unwrap_or_default());
        Ok(Self {
            folder: folder.to_owned(),
            tokenizer: bytes(&folder.join(TOKENIZER))?,
            settings: object(SETTINGS)?,
            special_tokens_map: object("special_tokens_map.json")?,
            added_tokens: object("added_tokens.json")?,
            config: object("config.json")?,
        })
    }

    /// The file that the vocabulary comes from.
    pub(super) fn path(&self) -> PathBuf {
        self.folder.join(if self.tokenizer.is_some() { TOKENIZER } else { VOCABULARY })
    }

    /// `tokenizer.json` as it lies there.
    pub(super) fn tokenizer(&self) -> Option<&[u8]> {
        self.tokenizer.as_deref()
    }

    /// The fields of `tokenizer_config.json`; none where there is no such file.
    pub(super) fn settings(&self) -> &Map<String, Value> {
        &self.settings
    }

    /// Named tokens in the place that they had before `tokenizer_config.json` had `added_tokens_decoder`.
    pub(super) fn special_tokens_map(&self) -> &Map<String, Value> {
        &self.special_tokens_map
    }

    /// Added tokens in the place that they had before `tokenizer_config.json` had `added_tokens_decoder`.
    pub(super) fn added_tokens(&self) -> &Map<String, Value> {
        &self.added_tokens
    }

    /// `model_type`; empty where `config.json` has none.
    pub(super) fn model_type(&self) -> &str {
        text(&self.config, "model_type").unwrap_or_default()
    }

    /// The tokenizer's class by `tokenizer_config.json`.
    pub(super) fn class(&self) -> Option<&str> {
        text(&self.settings, "tokenizer_class")
    }

    /// The tokenizer's class by `config.json`, which counts where `tokenizer_config.json` names none.
    pub(super) fn class_of_model(&self) -> Option<&str> {
        text(&self.config, "tokenizer_class")
    }

    /// `vocab.json` and the pairs of `merges.txt`, where both are there.
    ///
    /// # Errors
    /// When one cannot be read or is not what it should be.
    pub(super) fn vocabulary(&self) -> Result<Option<Vocabulary>, Error> {
        let path = self.folder.join(MERGES);
        let (Some(vocabulary), Some(merges)) = (object(&self.folder.join(VOCABULARY))?, bytes(&path)?) else {
            return Ok(None);
        };
        let damaged = |reason: String| Error::Tokenizer { path: path.clone(), reason };
        let merges = String::from_utf8(merges).map_err(|error| damaged(error.to_string()))?;
        let lines = merges.lines().enumerate().filter(|(_, line)| !line.starts_with("#version"));
        let pair = |(place, line): (usize, &str)| match line.split(' ').collect::<Vec<_>>()[..] {
            [left, right] => Ok(Value::from(vec![left, right])),
            _ => Err(damaged(format!("line {}: expected two tokens, found {line:?}", place + 1))),
        };
        Ok(Some((vocabulary, lines.map(pair).collect::<Result<_, _>>()?)))
    }

    /// What is wrong with a folder from which no tokenizer can be made.
    pub(super) fn absent(&self) -> Error {
        let is_there = |name: &&str| self.folder.join(name).exists();
        let found = OTHERS.into_iter().filter(is_there).map(str::to_owned).collect();
        Error::NoTokenizer { path: self.folder.clone(), found }
    }
}

/// A text field.
pub(super) fn text<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    fields.get(name).and_then(Value::as_str)
}

/// A switch; what is no boolean counts as absent.
pub(super) fn switch(fields: &Map<String, Value>, name: &str) -> Option<bool> {
    fields.get(name).and_then(Value::as_bool)
}

fn bytes(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    if path.exists() {
        crate::lfs::refuse(path)?;
    }
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

fn object(path: &Path) -> Result<Option<Map<String, Value>>, Error> {
    let Some(bytes) = bytes(path)? else { return Ok(None) };
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(fields)) => Ok(Some(fields)),
        Ok(_) => Err(Error::Tokenizer { path: path.into(), reason: "expected a JSON object".into() }),
        Err(source) => Err(Error::Json { path: path.into(), source }),
    }
}
