//! Bytes as text: UTF-8, with or without a byte order mark, and what else they may be.

use std::fs;
use std::path::Path;

use super::CorpusError;

/// UTF-8's byte order mark, which Windows writes and which is no part of a text.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// Reads a whole text file.
pub(super) fn read(path: &Path) -> Result<String, CorpusError> {
    let bytes = fs::read(path).map_err(CorpusError::io(path))?;
    check(&bytes, path)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let offset_bytes = error.utf8_error().valid_up_to() as u64;
        CorpusError::InvalidUtf8 { path: path.to_owned(), offset_bytes }
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// The length of the byte order mark that a file begins with.
pub(super) fn mark_bytes(head: &[u8]) -> usize {
    if head.starts_with(MARK) { MARK.len() } else { 0 }
}

/// Refuses a file whose first bytes are of another encoding.
pub(super) fn check(head: &[u8], path: &Path) -> Result<(), CorpusError> {
    match wide(head) {
        Some(found) => Err(CorpusError::Wide { path: path.to_owned(), found }),
        None => Ok(()),
    }
}

/// The encoding with two or four bytes a character that a text begins in: by its byte order mark, or by the zeros that
/// ASCII characters have there.
fn wide(head: &[u8]) -> Option<&'static str> {
    match head {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => Some("UTF-32"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("UTF-16"),
        [1..=255, 0, 0, 0, ..] => Some("UTF-32LE"),
        [0, 0, 0, 1..=255, ..] => Some("UTF-32BE"),
        [1..=255, 0, 1..=255, 0, ..] | [1..=255, 0] => Some("UTF-16LE"),
        [0, 1..=255, 0, 1..=255, ..] | [0, 1..=255] => Some("UTF-16BE"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_encodings_are_told_by_their_marks_and_by_their_zeros() {
        let text = "Hi, naïve 日本";
        let (mut le, mut be): (Vec<u8>, Vec<u8>) = (Vec::new(), Vec::new());
        for unit in text.encode_utf16() {
            le.extend(unit.to_le_bytes());
            be.extend(unit.to_be_bytes());
        }
        assert_eq!(wide(&le), Some("UTF-16LE"));
        assert_eq!(wide(&be), Some("UTF-16BE"));
        assert_eq!(wide(&[&b"\xff\xfe"[..], &le].concat()), Some("UTF-16"));
        assert_eq!(wide(&[&b"\xfe\xff"[..], &be].concat()), Some("UTF-16"));
        assert_eq!(wide(b"H\0\0\0i\0\0\0"), Some("UTF-32LE"));
        assert_eq!(wide(b"\0\0\0H\0\0\0i"), Some("UTF-32BE"));
        assert_eq!(wide(b"\xff\xfe\0\0H\0\0\0"), Some("UTF-32"));
        for text in ["", "a", "ab", "日本", "\u{feff}ab", "a\0b"] {
            assert_eq!(wide(text.as_bytes()), None, "{text:?}");
        }
    }
}
