//! Documents as one stream of tokens, read as far as it is needed.

use sha2::{Digest, Sha256};

use super::{CorpusError, Documents};

/// What stands between two documents.
const JOINT: &str = "\n\n";

/// Bytes of text that are tokenised together; a piece ends with the document that brings it here.
const PIECE_BYTES: usize = 1 << 20;

/// Bytes that a token of most texts has at most.
const BYTES_A_TOKEN: usize = 5;

/// Tokens beyond those asked for: where a text is cut short its last tokens may be others, and those before are not.
const MARGIN_TOKENS: usize = 256;

/// Tokens and the text that they are of.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// The ids.
    pub ids: Vec<u32>,
    /// SHA-256 of the text that was read, documents joined by blank lines.
    pub text_sha256: [u8; 32],
}

/// Tokenises documents as one text, joined by blank lines: all of it, or at least its first `wanted` tokens.
///
/// The text is tokenised in pieces of whole documents of a mebibyte; each but the first begins with the blank line. A
/// text within one piece, and a document whatever its size, is therefore tokenised once and whole. Where fewer tokens are
/// wanted, documents are read until a piece has them and some more, and the file is left at that.
///
/// # Errors
/// Those of the documents, and of `encode`.
pub fn tokens<E: From<CorpusError>>(
    documents: &mut Documents,
    wanted: Option<usize>,
    mut encode: impl FnMut(&str) -> Result<Vec<u32>, E>,
) -> Result<Tokens, E> {
    let enough = wanted.map(|wanted| wanted.saturating_add(MARGIN_TOKENS));
    let look_at_bytes = enough.map_or(usize::MAX, |enough| enough.saturating_mul(BYTES_A_TOKEN));
    let (mut ids, mut piece, mut hash) = (Vec::new(), String::new(), Sha256::new());
    let mut look_at = look_at_bytes;
    let mut first = true;
    for document in documents.by_ref() {
        let document = document?;
        let joint = if std::mem::take(&mut first) { "" } else { JOINT };
        for part in [joint, &document] {
            hash.update(part.as_bytes());
            piece += part;
        }
        let is_whole = piece.len() >= PIECE_BYTES;
        if !is_whole && piece.len() < look_at {
            continue;
        }
        let found = encode(&piece)?;
        let is_enough = enough.is_some_and(|enough| ids.len() + found.len() >= enough);
        if is_whole || is_enough {
            ids.extend(found);
            piece.clear();
            look_at = look_at_bytes;
        } else {
            // Another try once there is twice the text, so that trying costs no more than the piece does.
            look_at = 2 * piece.len();
        }
        if is_enough {
            break;
        }
    }
    if !piece.is_empty() {
        ids.extend(encode(&piece)?);
    }
    Ok(Tokens { ids, text_sha256: hash.finalize().into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::{DEFAULT_FIELD, Source};
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use std::fs::File;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    const ROWS: usize = 20_000;

    fn row(number: usize) -> String {
        format!("row {number} has some words, and a number of its own")
    }

    /// A file of many rows, in groups of a thousand.
    fn parquet_of(folder: &Path) -> PathBuf {
        let path = folder.join("rows.parquet");
        let schema = parse_message_type("message m { required binary text (UTF8); }").expect("a schema");
        let file = File::create(&path).expect("a file");
        let properties = Arc::new(WriterProperties::builder().build());
        let mut writer = SerializedFileWriter::new(file, Arc::new(schema), properties).expect("a writer");
        for group in 0..ROWS / 1000 {
            let rows: Vec<ByteArray> =
                (0..1000).map(|i| ByteArray::from(row(1000 * group + i).into_bytes())).collect();
            let mut group = writer.next_row_group().expect("a row group");
            let mut column = group.next_column().expect("a column").expect("the only one");
            column.typed::<ByteArrayType>().write_batch(&rows, None, None).expect("rows");
            column.close().expect("a column");
            group.close().expect("a row group");
        }
        writer.close().expect("a file");
        path
    }

    fn jsonl_of(folder: &Path) -> PathBuf {
        let path = folder.join("rows.jsonl");
        let line = |number| format!("{{\"text\": \"{}\"}}\n", row(number));
        std::fs::write(&path, (0..ROWS).map(line).collect::<String>()).expect("a file");
        path
    }

    /// Words and the spaces between them, as numbers.
    fn words(text: &str) -> Result<Vec<u32>, CorpusError> {
        let value = |word: &str| word.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31) + u32::from(byte));
        Ok(text.split_inclusive(char::is_whitespace).map(value).collect())
    }

    fn read(sources: &[Source], wanted: Option<usize>) -> (Tokens, usize) {
        let mut documents = Documents::of(sources.iter().cloned(), DEFAULT_FIELD).expect("files");
        let tokens = tokens(&mut documents, wanted, words).expect("tokens");
        (tokens, documents.rows())
    }

    #[test]
    fn a_file_with_more_rows_than_needed_is_not_read_to_its_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let whole = words(&(0..ROWS).map(row).collect::<Vec<_>>().join(JOINT)).expect("tokens");
        for path in [parquet_of(folder.path()), jsonl_of(folder.path())] {
            let file = [Source::File(path)];
            for wanted in [1, 100, 1000] {
                let (found, rows) = read(&file, Some(wanted));
                assert_eq!(found.ids[..wanted], whole[..wanted], "{wanted}");
                let needed = (wanted + MARGIN_TOKENS).div_ceil(12);
                assert!(rows <= 4 * needed, "{rows} rows for {wanted} tokens");
            }
            let (all, rows) = read(&file, None);
            assert!(all.ids == whole && rows == ROWS, "{rows} rows, {} tokens", all.ids.len());
            assert_eq!(read(&file, Some(usize::MAX)).0.ids.len(), whole.len(), "more than there are");
        }
    }

    #[test]
    fn what_was_read_is_what_is_hashed() {
        let folder = tempfile::tempdir().expect("a folder");
        let sources = [Source::Text("one"), Source::Text("two")];
        assert_eq!(read(&sources, None).0.text_sha256, <[u8; 32]>::from(Sha256::digest("one\n\ntwo")));
        let file = [Source::File(jsonl_of(folder.path()))];
        let (some, all) = (read(&file, Some(10)).0, read(&file, None).0);
        assert_ne!(some.text_sha256, all.text_sha256);
    }

    #[test]
    fn documents_are_tokenised_whole_and_pieces_begin_with_their_joint() {
        let long: &'static str = Box::leak("word ".repeat(PIECE_BYTES / 5 + 1).into_boxed_str());
        let mut pieces = Vec::new();
        let sources = [Source::Text("a"), Source::Text(long), Source::Text("b"), Source::Text("c")];
        let mut documents = Documents::of(sources, DEFAULT_FIELD).expect("texts");
        let mut count = |text: &str| {
            pieces.push((text.len(), text[..2].to_owned(), text[text.len() - 2..].to_owned()));
            Ok::<_, CorpusError>(vec![0; 10])
        };
        assert_eq!(tokens(&mut documents, None, &mut count).expect("tokens").ids.len(), 20);
        let piece = |length: usize, begin: &str, end: &str| (length, begin.to_owned(), end.to_owned());
        assert_eq!(pieces, [piece(3 + long.len(), "a\n", "d "), piece(6, "\n\n", "\nc")]);
    }
}
