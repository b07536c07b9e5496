//! Text to calibrate, train and measure on: `.txt`, `.jsonl` and `.parquet` files as lists of documents.
//!
//! A text file is one document, unchanged. A row of the other two is one document; rows without a visible
//! character are dropped, as data sets such as wikitext separate their paragraphs with them.

mod error;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use parquet::basic::{ConvertedType, LogicalType};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::types::Type;
use serde_json::{Map, Value};

pub use error::CorpusError;

/// The field of a row that holds its text, unless the user names another.
pub const DEFAULT_FIELD: &str = "text";

/// Reads the documents of all files, in the order of the files and of their rows.
///
/// `field` names the field or column that holds a row's text; text files have none and take no notice of it.
///
/// # Errors
/// A file that is missing, a folder, of an unknown kind, or not what its name says; a row without the field;
/// no text at all in any of the files.
pub fn read(paths: &[PathBuf], field: &str) -> Result<Vec<String>, CorpusError> {
    let mut documents = Vec::new();
    for path in paths {
        let metadata = fs::metadata(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => CorpusError::Missing { path: path.clone() },
            _ => CorpusError::io(path)(source),
        })?;
        if metadata.is_dir() {
            return Err(CorpusError::Folder { path: path.clone() });
        }
        let extension = path.extension().map(|end| end.to_string_lossy().to_lowercase());
        match extension.as_deref() {
            Some("txt") => documents.push(read_text(path)?),
            Some("jsonl") => read_jsonl(path, field, &mut documents)?,
            Some("parquet") => read_parquet(path, field, &mut documents)?,
            other => {
                let found = other.map_or_else(|| "no extension".to_owned(), |end| format!(".{end}"));
                return Err(CorpusError::UnknownExtension { path: path.clone(), found });
            }
        }
    }
    documents.retain(|document| !document.trim().is_empty());
    if documents.is_empty() {
        return Err(CorpusError::NoText { paths: paths.to_vec() });
    }
    Ok(documents)
}

fn read_text(path: &Path) -> Result<String, CorpusError> {
    let bytes = fs::read(path).map_err(CorpusError::io(path))?;
    String::from_utf8(bytes).map_err(|error| {
        let offset_bytes = error.utf8_error().valid_up_to() as u64;
        CorpusError::InvalidUtf8 { path: path.to_owned(), offset_bytes }
    })
}

fn read_jsonl(path: &Path, field: &str, documents: &mut Vec<String>) -> Result<(), CorpusError> {
    let mut reader = BufReader::new(File::open(path).map_err(CorpusError::io(path))?);
    let mut bytes = Vec::new();
    let mut offset_bytes = 0;
    for line in 1.. {
        bytes.clear();
        let read = reader.read_until(b'\n', &mut bytes).map_err(CorpusError::io(path))?;
        if read == 0 {
            break;
        }
        let text = std::str::from_utf8(&bytes).map_err(|error| CorpusError::InvalidUtf8 {
            path: path.to_owned(),
            offset_bytes: offset_bytes + error.valid_up_to() as u64,
        })?;
        offset_bytes += read as u64;
        if !text.trim().is_empty() {
            documents.extend(parse_line(text, field, path, line)?);
        }
    }
    Ok(())
}

/// The text of one line; a null is a row without text.
fn parse_line(text: &str, field: &str, path: &Path, line: usize) -> Result<Option<String>, CorpusError> {
    let path = || path.to_owned();
    let invalid = |found| CorpusError::InvalidJson { path: path(), line, found };
    let value: Value = serde_json::from_str(text).map_err(|error| {
        // The parser sees one line at a time, so its own line number says nothing.
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default();
        invalid(format!("{message} at column {}", error.column()))
    })?;
    let Value::Object(mut row) = value else { return Err(invalid(kind(&value).to_owned())) };
    match row.remove(field) {
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Null) => Ok(None),
        Some(other) => {
            let found = kind(&other);
            Err(CorpusError::FieldNotText { path: path(), line, field: field.to_owned(), found })
        }
        None => {
            let found = text_fields(row);
            Err(CorpusError::FieldMissing { path: path(), line, field: field.to_owned(), found })
        }
    }
}

fn read_parquet(path: &Path, column: &str, documents: &mut Vec<String>) -> Result<(), CorpusError> {
    let parquet = |source| CorpusError::Parquet { path: path.to_owned(), source };
    let reader =
        SerializedFileReader::new(File::open(path).map_err(CorpusError::io(path))?).map_err(parquet)?;
    let schema = reader.metadata().file_metadata().schema();
    let Some(chosen) = schema.get_fields().iter().find(|field| field.name() == column) else {
        let texts = schema.get_fields().iter().filter(|field| is_text(field));
        let found = texts.map(|field| field.name().to_owned()).collect();
        return Err(CorpusError::ColumnMissing { path: path.to_owned(), column: column.to_owned(), found });
    };
    if !is_text(chosen) {
        let found = describe(chosen);
        return Err(CorpusError::ColumnNotText { path: path.to_owned(), column: column.to_owned(), found });
    }
    let projection = Type::group_type_builder(schema.name()).with_fields(vec![chosen.clone()]).build();
    let rows = reader.get_row_iter(Some(projection.map_err(parquet)?)).map_err(parquet)?;
    for row in rows {
        for (_, field) in row.map_err(parquet)?.into_columns() {
            if let Field::Str(text) = field {
                documents.push(text);
            }
        }
    }
    Ok(())
}

fn is_text(field: &Type) -> bool {
    let info = field.get_basic_info();
    let is_string = matches!(info.logical_type_ref(), Some(LogicalType::String));
    field.is_primitive() && !is_list(field) && (is_string || info.converted_type() == ConvertedType::UTF8)
}

fn is_list(field: &Type) -> bool {
    let info = field.get_basic_info();
    info.has_repetition() && info.repetition() == parquet::basic::Repetition::REPEATED
}

fn describe(field: &Type) -> String {
    match field {
        Type::PrimitiveType { .. } if is_list(field) => "a list".to_owned(),
        Type::PrimitiveType { physical_type, .. } => physical_type.to_string().to_lowercase(),
        Type::GroupType { .. } => "a nested column".to_owned(),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The fields of a row that hold text, in order.
fn text_fields(row: Map<String, Value>) -> Vec<String> {
    row.into_iter().filter(|(_, value)| value.is_string()).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
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
        let text = "\u{feff} two\r\n\r\nlines \n";
        assert_eq!(read_one("a.TXT", text).expect("a document"), [text]);
    }

    #[test]
    fn an_invalid_byte_is_named_by_its_offset_in_the_file() {
        let offset = |name: &str, content: &[u8]| match read_one(name, content) {
            Err(CorpusError::InvalidUtf8 { offset_bytes, .. }) => offset_bytes,
            other => panic!("{other:?}"),
        };
        assert_eq!(offset("a.txt", b"caf\xe9"), 3);
        assert_eq!(offset("a.jsonl", b"{\"text\": \"x\"}\n{\"text\": \"\xe9\"}\n"), 24);
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
        let error =
            read_one("a.jsonl", "{\"text\": \"x\"}\n{\"n\": 1, \"body\": \"y\"}\n").expect_err("no text");
        assert!(error.to_string().ends_with("line 2: expected the field \"text\", found body"), "{error}");
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
