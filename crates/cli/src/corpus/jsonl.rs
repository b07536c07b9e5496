//! Rows of a `.jsonl` file: one JSON object a line.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{CorpusError, Row, encoding};

/// The lines that hold a row, read as they are asked for.
pub(super) struct Lines {
    reader: BufReader<File>,
    path: PathBuf,
    field: String,
    line: usize,
    offset_bytes: u64,
}

impl Lines {
    pub(super) fn open(path: &Path, field: &str) -> Result<Self, CorpusError> {
        let mut reader = BufReader::new(File::open(path).map_err(CorpusError::io(path))?);
        let head = reader.fill_buf().map_err(CorpusError::io(path))?;
        encoding::check(head, path)?;
        let mark = encoding::mark_bytes(head);
        reader.consume(mark);
        Ok(Self {
            reader,
            path: path.to_owned(),
            field: field.to_owned(),
            line: 0,
            offset_bytes: mark as u64,
        })
    }

    fn row(&self, bytes: &[u8]) -> Option<Row> {
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let offset_bytes = self.offset_bytes + error.valid_up_to() as u64;
                return Some(Err(CorpusError::InvalidUtf8 { path: self.path.clone(), offset_bytes }));
            }
        };
        (!text.trim().is_empty()).then(|| parse(text, &self.field, &self.path, self.line))
    }
}

impl Iterator for Lines {
    type Item = Result<Row, CorpusError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            match self.reader.read_until(b'\n', &mut bytes) {
                Ok(0) => return None,
                Ok(read) => {
                    self.line += 1;
                    let row = self.row(&bytes);
                    self.offset_bytes += read as u64;
                    if let Some(row) = row {
                        return Some(Ok(row));
                    }
                }
                Err(source) => return Some(Err(CorpusError::io(&self.path)(source))),
            }
        }
    }
}

/// The text of one line.
fn parse(text: &str, field: &str, path: &Path, line: usize) -> Row {
    let path = || path.to_owned();
    let invalid = |found| CorpusError::InvalidJson { path: path(), line, found };
    let value = serde_json::from_str(text).or_else(|error| {
        // Python writes numbers that JSON has no word for, and reads them.
        without_nan(text).and_then(|text| serde_json::from_str(&text).ok()).ok_or(error)
    });
    let value: Value = value.map_err(|error| {
        // The parser sees one line at a time, so its own line number says nothing.
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default();
        invalid(format!("{message} at column {}", error.column()))
    })?;
    let Value::Object(mut row) = value else { return Err(invalid(kind(&value).to_owned())) };
    match row.remove(field) {
        Some(Value::String(text)) => Ok(text),
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

/// The same JSON with null for every `NaN`, `Infinity` and `-Infinity` outside of its strings, if there is one.
fn without_nan(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let (mut rest, mut replaced) = (text, false);
    while let Some(first) = rest.chars().next() {
        let word = ["NaN", "-Infinity", "Infinity"].into_iter().find(|word| rest.starts_with(word));
        let length = match (first, word) {
            ('"', _) => string_bytes(rest),
            (_, Some(word)) => {
                out += "null";
                replaced = true;
                rest = &rest[word.len()..];
                continue;
            }
            _ => first.len_utf8(),
        };
        out += &rest[..length];
        rest = &rest[length..];
    }
    replaced.then_some(out)
}

/// The length of the JSON string that a text begins with, quotes included; of one without an end, all of it.
fn string_bytes(text: &str) -> usize {
    let mut escaped = true;
    for (place, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return place + 1,
            _ => {}
        }
    }
    text.len()
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

    #[test]
    fn numbers_that_json_lacks_become_null_outside_of_strings() {
        let text = r#"{"NaN \" NaN": "Infinity\\", "a": NaN, "b": [-Infinity, Infinity]}"#;
        let expected = r#"{"NaN \" NaN": "Infinity\\", "a": null, "b": [null, null]}"#;
        assert_eq!(without_nan(text).as_deref(), Some(expected));
        for same in ["", "{\"a\": \"NaN\"}", "{\"a\": \"NaN", "日\"\\"] {
            assert_eq!(without_nan(same), None, "{same}");
        }
    }
}
