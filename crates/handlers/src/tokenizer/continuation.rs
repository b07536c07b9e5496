//! The text of tokens that come one by one.

use super::Tokenizer;
use crate::error::Error;

/// A text that grows token by token: whole characters only, since a token may be part of one.
///
/// Each piece is the difference of two decodings, with and without what is new, that begin at the piece before it, so a
/// step costs the same however long the text is. (`tokenizers::DecodeStream` does so too, but fails where invalid bytes
/// change a character that it gave out, which a model is free to write.)
#[derive(Debug)]
pub struct Continuation<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    /// The last piece's ids, then those whose text is not out yet.
    pub(super) ids: Vec<u32>,
    /// How many of `ids` are out.
    pub(super) read: usize,
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
