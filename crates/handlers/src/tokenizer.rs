//! `tokenizer.json`, by the `tokenizers` library.

use std::path::{Path, PathBuf};

use crate::error::Error;

/// Text to token ids and back.
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// Loads `tokenizer.json` of a model folder.
    ///
    /// # Errors
    /// When it is missing or not a tokenizer.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let path = folder.join("tokenizer.json");
        if !path.exists() {
            return Err(Error::Tokenizer { path, reason: "the file is missing".into() });
        }
        let mut inner = tokenizers::Tokenizer::from_file(&path)
            .map_err(|e| Error::Tokenizer { path: path.clone(), reason: e.to_string() })?;
        // A folder may ask for padding or truncation to some length; a corpus must come through whole.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| Error::Tokenizer { path: path.clone(), reason: e.to_string() })?;
        Ok(Self { path, inner })
    }

    /// Token ids of a text as it stands, for corpora.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.run(text, false)
    }

    /// Token ids of a prompt, with the special tokens the model expects around it (LLaMA's BOS).
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.run(text, true)
    }

    /// The text of some tokens, without special ones.
    ///
    /// # Errors
    /// When an id is unknown.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        self.inner.decode(ids, true).map_err(|e| self.error(e))
    }

    /// Decodes what follows a prompt, token by token.
    ///
    /// New ids on their own do not have the text that they have after the prompt: SentencePiece decoders drop the space
    /// before the first one.
    pub fn continuation(&self, prompt: &[u32]) -> Continuation<'_> {
        Continuation { tokenizer: self, ids: prompt.to_vec(), read: prompt.len() }
    }

    /// The text that `ids` add to that of `prompt`, without special tokens: what [`Tokenizer::continuation`] gives in all.
    ///
    /// # Errors
    /// When the tokenizer refuses an id.
    pub fn decode_after(&self, prompt: &[u32], ids: &[u32]) -> Result<String, Error> {
        let mut continuation = self.continuation(prompt);
        let mut text = String::new();
        for &id in ids {
            text += &continuation.push(id)?;
        }
        Ok(text + &continuation.finish()?)
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    fn run(&self, text: &str, special: bool) -> Result<Vec<u32>, Error> {
        let encoding = self.inner.encode_fast(text, special).map_err(|e| self.error(e))?;
        Ok(encoding.get_ids().to_vec())
    }

    fn error(&self, e: tokenizers::Error) -> Error {
        Error::Tokenizer { path: self.path.clone(), reason: e.to_string() }
    }
}

/// A text that grows token by token: whole characters only, since a token may be part of one.
///
/// Each piece is the difference of two decodings, with and without what is new, that begin at the piece before it, so a
/// step costs the same however long the text is. (`tokenizers::DecodeStream` does so too, but fails where invalid bytes
/// change a character that it gave out, which a model is free to write.)
#[derive(Debug)]
pub struct Continuation<'a> {
    tokenizer: &'a Tokenizer,
    /// The last piece's ids, then those whose text is not out yet.
    ids: Vec<u32>,
    /// How many of `ids` are out.
    read: usize,
}

impl Continuation<'_> {
    /// Ids that may wait for the rest of a character; more are bytes that no character has.
    const MAX_WAITING: usize = 32;

    /// Adds a token; the text that is complete with it, often none.
    ///
    /// # Errors
    /// When the tokenizer refuses an id.
    pub fn push(&mut self, id: u32) -> Result<String, Error> {
        self.ids.push(id);
        let new = self.new_text()?;
        if new.is_empty() || new.ends_with('\u{FFFD}') && self.ids.len() - self.read < Self::MAX_WAITING {
            return Ok(String::new());
        }
        self.ids.drain(..self.read);
        self.read = self.ids.len();
        Ok(new)
    }

    /// The text that still waits, incomplete as it is.
    ///
    /// # Errors
    /// When the tokenizer refuses an id.
    pub fn finish(self) -> Result<String, Error> {
        self.new_text()
    }

    fn new_text(&self) -> Result<String, Error> {
        let before = self.tokenizer.decode(&self.ids[..self.read])?;
        let text = self.tokenizer.decode(&self.ids)?;
        Ok(match text.strip_prefix(&before) {
            Some(new) => new.to_owned(),
            // Invalid bytes broke up the last character; there are at least as many as there were.
            None => text.chars().skip(before.chars().count()).collect(),
        })
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("path", &self.path).finish_non_exhaustive()
    }
}
