//! Text to calibrate, train and measure on: `.txt`, `.jsonl` and `.parquet` files as documents, one after another.
//!
//! A text file is one document, unchanged but for a byte order mark. A row of the other two is one document; rows without
//! a visible character are dropped, as data sets such as wikitext separate their paragraphs with them. A row that cannot
//! be read is counted and passed over, unless the file has no other. Rows are read as they are asked for: what a file
//! holds beyond the last one is not looked at.

mod encoding;
mod error;
mod jsonl;
mod table;
mod tokens;

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};

pub use error::CorpusError;
pub use tokens::{Tokens, tokens};

/// The field of a row that holds its text, unless the user names another.
pub const DEFAULT_FIELD: &str = "text";

/// Where documents come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A text that is there.
    Text(&'static str),
    /// A file.
    File(PathBuf),
}

/// One row of a file, or the reason why it cannot be read.
type Row = Result<String, CorpusError>;

/// A file's rows in order; an error of its own ends it.
type Rows = Box<dyn Iterator<Item = Result<Row, CorpusError>>>;

/// The documents of some sources, in the order of the sources and of their rows.
pub struct Documents {
    field: String,
    sources: VecDeque<Source>,
    files: Vec<PathBuf>,
    open: Option<OpenFile>,
    skipped: Vec<Skipped>,
    rows: usize,
    is_empty: bool,
}

/// Rows of a file that could not be read.
#[derive(Debug)]
pub struct Skipped {
    /// How many.
    pub rows: usize,
    /// What is wrong with the first of them.
    pub first: CorpusError,
}

struct OpenFile {
    rows: Rows,
    readable: usize,
    skipped: Option<Skipped>,
}

impl Documents {
    /// Looks at all files and opens none yet.
    ///
    /// `field` names the field or column that holds a row's text; text files have none and take no notice of it.
    ///
    /// # Errors
    /// A file that is missing, a folder, or of an unknown kind.
    pub fn of(sources: impl IntoIterator<Item = Source>, field: &str) -> Result<Self, CorpusError> {
        let sources: VecDeque<Source> = sources.into_iter().collect();
        let mut files = Vec::new();
        for source in &sources {
            if let Source::File(path) = source {
                kind(path)?;
                files.push(path.clone());
            }
        }
        let field = field.to_owned();
        Ok(Self { field, sources, files, open: None, skipped: Vec::new(), rows: 0, is_empty: true })
    }

    /// The documents of some files.
    ///
    /// # Errors
    /// As [`Documents::of`].
    pub fn of_files(paths: &[PathBuf], field: &str) -> Result<Self, CorpusError> {
        Self::of(paths.iter().cloned().map(Source::File), field)
    }

    /// What was passed over so far, a file at a time.
    pub fn skipped(&self) -> impl Iterator<Item = &Skipped> {
        self.skipped.iter().chain(self.open.iter().filter_map(|open| open.skipped.as_ref()))
    }

    /// Rows that were read from files so far, whatever they held.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The next document of the file that is open; `None` at its end.
    fn next_of_file(&mut self) -> Result<Option<String>, CorpusError> {
        let Some(open) = &mut self.open else { return Ok(None) };
        for row in open.rows.by_ref() {
            self.rows += 1;
            match row? {
                Ok(text) => {
                    open.readable += 1;
                    if !text.trim().is_empty() {
                        return Ok(Some(text));
                    }
                }
                Err(error) => match &mut open.skipped {
                    Some(skipped) => skipped.rows += 1,
                    first => *first = Some(Skipped { rows: 1, first: error }),
                },
            }
        }
        let closed = self.open.take();
        match closed {
            Some(OpenFile { readable: 0, skipped: Some(skipped), .. }) => return Err(skipped.first),
            closed => self.skipped.extend(closed.and_then(|open| open.skipped)),
        }
        Ok(None)
    }

    fn next_document(&mut self) -> Result<Option<String>, CorpusError> {
        loop {
            if let Some(text) = self.next_of_file()? {
                return Ok(Some(text));
            }
            match self.sources.pop_front() {
                None => return Ok(None),
                Some(Source::Text(text)) => return Ok(Some(text.to_owned())),
                Some(Source::File(path)) => {
                    let rows: Rows = match kind(&path)? {
                        Kind::Text => Box::new(std::iter::once(encoding::read(&path).map(Ok))),
                        Kind::Jsonl => Box::new(jsonl::Lines::open(&path, &self.field)?),
                        Kind::Parquet => Box::new(table::rows(&path, &self.field)?),
                    };
                    self.open = Some(OpenFile { rows, readable: 0, skipped: None });
                }
            }
        }
    }
}

/// # Errors
/// A file that is not what its name says, or of which no row can be read; no text at all in any of the sources.
impl Iterator for Documents {
    type Item = Result<String, CorpusError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.next_document() {
            Ok(Some(text)) => {
                self.is_empty = false;
                Some(Ok(text))
            }
            Ok(None) if self.is_empty => {
                self.is_empty = false;
                Some(Err(CorpusError::NoText { paths: std::mem::take(&mut self.files) }))
            }
            Ok(None) => None,
            Err(error) => {
                // Whoever goes on after an error gets no more.
                (self.open, self.is_empty) = (None, false);
                self.sources.clear();
                Some(Err(error))
            }
        }
    }
}

impl std::fmt::Debug for Documents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Documents")
            .field("sources", &self.sources)
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.rows {
            1 => write!(f, "a row that cannot be read was passed over: {}", self.first),
            rows => write!(f, "{rows} rows that cannot be read were passed over, the first: {}", self.first),
        }
    }
}

/// What a file's name promises.
enum Kind {
    Text,
    Jsonl,
    Parquet,
}

fn kind(path: &Path) -> Result<Kind, CorpusError> {
    let metadata = fs::metadata(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => CorpusError::Missing { path: path.to_owned() },
        _ => CorpusError::io(path)(source),
    })?;
    if metadata.is_dir() {
        return Err(CorpusError::Folder { path: path.to_owned() });
    }
    if handlers::is_lfs_pointer(path) {
        return Err(CorpusError::LfsPointer { path: path.to_owned() });
    }
    let extension = path.extension().map(|end| end.to_string_lossy().to_lowercase());
    match extension.as_deref() {
        Some("txt") => Ok(Kind::Text),
        Some("jsonl") => Ok(Kind::Jsonl),
        Some("parquet") => Ok(Kind::Parquet),
        other => {
            let found = other.map_or_else(|| "no extension".to_owned(), |end| format!(".{end}"));
            Err(CorpusError::UnknownExtension { path: path.to_owned(), found })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use std::fs::File;
    use std::sync::Arc;
    use tempfile::TempDir;

    fn folder() -> TempDir {
        tempfile::tempdir().expect("a temporary folder")
    }

    fn write(folder: &TempDir, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = folder.path().join(name);
        fs::write(&path, content).expect("a file");
        path
    }

    fn read(paths: &[PathBuf], field: &str) -> Result<Vec<String>, CorpusError> {
        Documents::of_files(paths, field)?.collect()
    }

    /// The documents of one file, and what is said of the rest.
    fn read_some(name: &str, content: impl AsRef<[u8]>) -> (Vec<String>, Vec<String>) {
        let folder = folder();
        let paths = [write(&folder, name, content)];
        let mut documents = Documents::of_files(&paths, DEFAULT_FIELD).expect("a file");
        let texts = documents.by_ref().collect::<Result<_, _>>().expect("documents");
        let place = format!("{}", folder.path().join("").display());
        let said = documents.skipped().map(|skipped| skipped.to_string().replace(&place, ""));
        (texts, said.collect())
    }

    fn read_one(name: &str, content: impl AsRef<[u8]>) -> Result<Vec<String>, CorpusError> {
        let folder = folder();
        read(&[write(&folder, name, content)], DEFAULT_FIELD)
    }

    fn sample() -> PathBuf {
        std::path::PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"))
            .join("../../goldens/corpus/sample.parquet")
    }

    #[test]
    fn a_text_file_is_one_document_unchanged() {
        let text = " two\r\n\r\nlines \u{feff}\n";
        assert_eq!(read_one("a.TXT", text).expect("a document"), [text]);
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_text() {
        assert_eq!(read_one("a.txt", "\u{feff}first").expect("a document"), ["first"]);
        let rows = "\u{feff}{\"text\": \"first\"}\n{\"text\": \"second\"}\n";
        assert_eq!(read_one("a.jsonl", rows).expect("two documents"), ["first", "second"]);
    }

    #[test]
    fn utf_16_is_named_with_the_command_that_converts_it() {
        let mut powershell = b"\xff\xfe".to_vec();
        powershell.extend("It was a dark night.\r\n".encode_utf16().flat_map(u16::to_le_bytes));
        for (name, content, found) in [
            ("a.txt", &powershell[..], "UTF-16"),
            ("a.jsonl", &powershell, "UTF-16"),
            ("a.txt", &powershell[2..], "UTF-16LE"),
        ] {
            let error = read_one(name, content).expect_err("no UTF-8");
            assert!(
                error.to_string().ends_with(&format!("{name}: expected UTF-8, found {found}")),
                "{error}"
            );
            assert_eq!(error.hint(), Some(format!("convert the file: iconv -f {found} -t UTF-8")));
        }
    }

    #[test]
    fn rows_that_cannot_be_read_are_passed_over_and_counted() {
        let good = "{\"text\": \"good\"}\n";
        let said =
            |what: &str| vec![format!("a row that cannot be read was passed over: a.jsonl, line 2: {what}")];
        for (bad, what) in [
            (
                "{\"text\": \"\\ud83d\"}",
                "expected a JSON object, found unexpected end of hex escape at column 17",
            ),
            ("{\"body\": \"y\"}", "expected the field \"text\", found body"),
            ("{\"text\": 7}", "expected text in \"text\", found a number"),
            ("{\"text\": null}", "expected text in \"text\", found null"),
            ("7", "expected a JSON object, found a number"),
        ] {
            let rows = format!("{good}{bad}\n{good}");
            assert_eq!(
                read_some("a.jsonl", &rows),
                (vec!["good".into(), "good".into()], said(what)),
                "{bad}"
            );
        }
        let cut = format!("{good}{{\"text\": \"cut sho");
        let (texts, notes) = read_some("a.jsonl", cut);
        assert!(texts == ["good"] && notes.len() == 1 && notes[0].contains("line 2"), "{notes:?}");
        let (texts, notes) = read_some("a.jsonl", [good.as_bytes(), b"{\"text\": \"\xe9\"}\n[]\n"].concat());
        let what = "2 rows that cannot be read were passed over, the first: a.jsonl: expected UTF-8, found an invalid byte";
        assert!(texts == ["good"] && notes[0].starts_with(what), "{notes:?}");
        assert_eq!(read_some("a.jsonl", good).1, [""; 0]);
    }

    #[test]
    fn a_row_whose_other_fields_are_not_finite_is_read() {
        let rows = "{\"text\": \"first\", \"score\": NaN}\n{\"text\": \"NaN\", \"score\": -Infinity}\n";
        assert_eq!(read_some("a.jsonl", rows), (vec!["first".into(), "NaN".into()], Vec::new()));
    }

    #[test]
    fn a_file_in_which_no_row_can_be_read_is_an_error_of_its_first() {
        let folder = folder();
        let good = write(&folder, "good.jsonl", "{\"text\": \"x\"}\n");
        let bad = write(&folder, "bad.jsonl", "{\"text\": 1}\n{}\n");
        let error = read(&[good, bad], DEFAULT_FIELD).expect_err("a bad file");
        assert!(
            error.to_string().ends_with("bad.jsonl, line 1: expected text in \"text\", found a number"),
            "{error}"
        );
    }

    #[test]
    fn an_invalid_byte_is_named_by_its_offset_in_the_file() {
        let offset = |name: &str, content: &[u8]| match read_one(name, content) {
            Err(CorpusError::InvalidUtf8 { offset_bytes, .. }) => offset_bytes,
            other => panic!("{other:?}"),
        };
        assert_eq!(offset("a.txt", b"caf\xe9"), 3);
        assert_eq!(offset("a.jsonl", b"\n{\"text\": \"\xe9\"}\n"), 11);
    }

    #[test]
    fn a_line_is_a_document_and_empty_ones_are_dropped() {
        let lines = concat!(
            "{\"text\": \"one\", \"id\": 1}\n\n{\"text\": \"\"}\r\n",
            "{\"text\": null}\n{\"text\": \"two\\nlines\"}",
        );
        assert_eq!(read_one("a.jsonl", lines).expect("two documents"), ["one", "two\nlines"]);
        let folder = folder();
        let path = write(&folder, "b.jsonl", "{\"body\": \"three\"}\n");
        assert_eq!(read(&[path], "body").expect("a document"), ["three"]);
    }

    #[test]
    fn a_line_without_the_field_is_named_with_the_fields_that_it_has() {
        let error = read_one("a.jsonl", "{\"n\": 1, \"body\": \"y\"}\n").expect_err("no text");
        assert!(error.to_string().ends_with("line 1: expected the field \"text\", found body"), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("\"body\"")));
    }

    #[test]
    fn a_line_that_holds_no_text_says_what_it_holds() {
        let message = |line: &str| read_one("a.jsonl", line).expect_err(line).to_string();
        assert!(message("{\"text\": [1]}").ends_with("line 1: expected text in \"text\", found an array"));
        assert!(message("[]").ends_with("line 1: expected a JSON object, found an array"));
        let broken = message("\n{\"text\": x}");
        assert!(
            broken.ends_with("line 2: expected a JSON object, found expected value at column 10"),
            "{broken}"
        );
    }

    #[test]
    fn a_parquet_file_of_the_reference_writer_gives_its_rows() {
        let text = read(&[sample()], DEFAULT_FIELD).expect("three documents");
        assert_eq!(text, ["first row", "naïve — 日本語 🦀", "last row\nof two lines"]);
        let (_, said) = read_some("a.parquet", fs::read(sample()).expect("the sample"));
        assert!(
            said.len() == 1 && said[0].contains("expected text in the column \"text\", found null"),
            "{said:?}"
        );
        assert_eq!(read(&[sample()], "other").expect("five documents"), ["a", "b", "c", "e", "f"]);
    }

    #[test]
    fn a_column_that_is_missing_or_no_text_says_what_there_is() {
        let message = |column: &str| read(&[sample()], column).expect_err(column).to_string();
        assert!(message("body").ends_with("expected the column \"body\", found text, other"));
        assert!(message("id").ends_with("expected text in the column \"id\", found int64"));
        assert!(message("raw").ends_with("expected text in the column \"raw\", found byte_array"));
        assert!(message("words").ends_with("expected text in the column \"words\", found a nested column"));
    }

    #[test]
    fn every_compression_reads_the_same() {
        let folder = folder();
        let rows: Vec<String> = (0..100).map(|i| format!("row {i} {}", "x".repeat(i))).collect();
        let values: Vec<ByteArray> = rows.iter().map(|row| row.as_str().into()).collect();
        for (i, compression) in [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::GZIP(GzipLevel::default()),
            Compression::BROTLI(BrotliLevel::default()),
            Compression::ZSTD(ZstdLevel::default()),
            Compression::LZ4_RAW,
            Compression::LZ4,
        ]
        .into_iter()
        .enumerate()
        {
            let path = folder.path().join(format!("{i}.parquet"));
            let schema = parse_message_type("message m { required binary text (UTF8); }").expect("a schema");
            let properties = WriterProperties::builder().set_compression(compression).build();
            let file = File::create(&path).expect("a file");
            let mut writer =
                SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties)).expect("a writer");
            let mut group = writer.next_row_group().expect("a row group");
            let mut column = group.next_column().expect("a column").expect("the only one");
            column.typed::<ByteArrayType>().write_batch(&values, None, None).expect("rows");
            column.close().expect("a column");
            group.close().expect("a row group");
            writer.close().expect("a file");
            assert_eq!(read(&[path], DEFAULT_FIELD).expect("the rows"), rows, "{compression:?}");
        }
    }

    #[test]
    fn a_pointer_in_the_place_of_a_file_is_named_and_never_read_as_a_text() {
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 9085657\n";
        for name in ["a.parquet", "a.jsonl", "a.txt"] {
            let error = read_one(name, pointer).expect_err(name);
            assert!(matches!(error, CorpusError::LfsPointer { .. }), "{name}: {error}");
            assert!(error.hint().is_some_and(|hint| hint.contains("git lfs pull")), "{name}");
        }
    }

    #[test]
    fn a_parquet_file_cut_short_is_an_error() {
        let whole = fs::read(sample()).expect("the sample");
        for cut in [0, 3, 100, whole.len() - 1] {
            assert!(
                matches!(read_one("a.parquet", &whole[..cut]), Err(CorpusError::Parquet { .. })),
                "{cut}"
            );
        }
    }

    #[test]
    fn files_are_read_in_the_order_given() {
        let folder = folder();
        let paths = [write(&folder, "b.txt", "b"), sample(), write(&folder, "a.txt", "a")];
        let documents = read(&paths, DEFAULT_FIELD).expect("five documents");
        assert_eq!((documents.len(), documents[0].as_str(), documents[4].as_str()), (5, "b", "a"));
    }

    #[test]
    fn what_is_not_a_text_file_is_told_apart() {
        let folder = folder();
        let one = |path: PathBuf| read(&[path], DEFAULT_FIELD).expect_err("not a text");
        assert!(matches!(one(folder.path().join("none.txt")), CorpusError::Missing { .. }));
        assert!(matches!(one(folder.path().to_owned()), CorpusError::Folder { .. }));
        let unknown = one(write(&folder, "a.csv", "a,b"));
        assert!(
            matches!(&unknown, CorpusError::UnknownExtension { found, .. } if found == ".csv"),
            "{unknown}"
        );
        assert!(
            unknown
                .hint()
                .is_some_and(|hint| [".txt", ".jsonl", ".parquet"].iter().all(|end| hint.contains(end)))
        );
        assert!(matches!(one(write(&folder, "bare", "x")), CorpusError::UnknownExtension { .. }));
    }

    #[test]
    fn no_text_at_all_is_an_error() {
        for (name, content) in [("a.txt", ""), ("a.txt", " \n\n"), ("a.jsonl", "{\"text\": \"\"}\n")] {
            assert!(matches!(read_one(name, content), Err(CorpusError::NoText { .. })), "{name} {content:?}");
        }
        assert_eq!(
            read(&[], DEFAULT_FIELD).expect_err("no file").to_string(),
            "no file: expected text, found none"
        );
    }
}
