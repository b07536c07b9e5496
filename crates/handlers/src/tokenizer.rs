//! Text to ids, as `AutoTokenizer` of transformers 5 does it for a model folder, by the `tokenizers` library.
//!
//! A class ([`class`]) is chosen as transformers chooses it. A plain one is `tokenizer.json` as it stands; the others
//! take the vocabulary and the merges from there, or from `vocab.json` and `merges.txt`, and split text by rules of their
//! own ([`pipeline`]). Tokens that other files name are added ([`special`]). What begins and ends a prompt is what
//! `tokenizer.json` says; `add_bos_token` and `add_eos_token` count where there is none. Where transformers 4 gives other
//! ids, a [`TokenizerNote`] says so.

mod chat;
mod class;
mod continuation;
mod ends;
mod files;
pub(crate) mod gguf;
mod note;
mod pipeline;
mod special;

use std::path::{Path, PathBuf};

use serde_json::Value;

use self::class::Class;
use self::ends::Ends;
use self::files::Files;
use self::special::Specials;
use crate::error::Error;

pub use chat::{ChatTemplate, Message};
pub use continuation::Continuation;
pub use note::TokenizerNote;

/// Text to token ids and back.
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    notes: Vec<TokenizerNote>,
}

impl Tokenizer {
    /// Loads the tokenizer of a model folder.
    ///
    /// # Errors
    /// When there is none that shrink reads, or a file of it is damaged.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let files = Files::read(folder)?;
        let class = Class::of(&files);
        let path = files.path();
        let damaged = |e: tokenizers::Error| Error::Tokenizer { path: path.clone(), reason: e.to_string() };
        let unread = |e: serde_json::Error| damaged(e.into());
        let file = files.tokenizer();
        let (mut inner, tokens) = match (file, pipeline::rules(class, files.settings())) {
            (Some(bytes), None) => {
                let inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(damaged)?;
                let tokens = inner.get_added_tokens_decoder().into_iter().collect();
                (inner, tokens)
            }
            (Some(bytes), Some(rules)) => {
                let whole: Value = serde_json::from_slice(bytes).map_err(unread)?;
                let tokens = special::of_file(&whole).map_err(unread)?;
                (rules.over(&whole).map_err(unread)?, tokens)
            }
            (None, Some(rules)) if class.reads_vocabulary_and_merges() => match files.vocabulary()? {
                Some((vocabulary, merges)) => {
                    let model = pipeline::model(vocabulary, merges);
                    (rules.over(&model).map_err(unread)?, Vec::new())
                }
                None => return Err(files.absent()),
            },
            (None, _) => return Err(files.absent()),
        };
        // A folder may ask for padding or truncation to some length; a corpus must come through whole.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(damaged)?;

        let specials = Specials::read(&files, class, tokens)?;
        specials.add_to(&mut inner, class).map_err(damaged)?;
        let theirs = ends::of_file(&mut inner, file).map_err(damaged)?;
        let ends = Ends::of(class, &files, &specials);
        ends.put(&mut inner).map_err(damaged)?;

        let mut tokenizer = Self { path, inner, notes: Vec::new() };
        tokenizer.notes = note::find(&tokenizer, class, &files, &specials, &theirs)?;
        Ok(tokenizer)
    }

    /// Where transformers 4 gives other ids, and what shrink does not do as transformers does.
    pub fn notes(&self) -> &[TokenizerNote] {
        &self.notes
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

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("path", &self.path).finish_non_exhaustive()
    }
}
