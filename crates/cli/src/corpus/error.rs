//! What can go wrong between a text file's name and its documents.

use std::path::{Path, PathBuf};

use parquet::errors::ParquetError;

/// Why a text could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// There is nothing at the path.
    #[error("text file {path}: not found", path = .path.display())]
    Missing {
        /// The path as it was given.
        path: PathBuf,
    },

    /// The path is a folder.
    #[error("text file {path}: expected a file, found a folder", path = .path.display())]
    Folder {
        /// The path as it was given.
        path: PathBuf,
    },

    /// Three lines that Git LFS would replace by the file.
    #[error("text file {path}: a Git LFS pointer, not the file", path = .path.display())]
    LfsPointer {
        /// The path as it was given.
        path: PathBuf,
    },

    /// The name does not tell the format.
    #[error("text file {path}: expected .txt, .jsonl or .parquet, found {found}", path = .path.display())]
    UnknownExtension {
        /// The path as it was given.
        path: PathBuf,
        /// The extension that it has.
        found: String,
    },

    /// The file could not be read.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// The file is not UTF-8.
    #[error("{path}: expected UTF-8, found an invalid byte at offset {offset_bytes}", path = .path.display())]
    InvalidUtf8 {
        /// The file.
        path: PathBuf,
        /// How many valid bytes come before the invalid one.
        offset_bytes: u64,
    },

    /// The file is in an encoding with two or four bytes a character.
    #[error("{path}: expected UTF-8, found {found}", path = .path.display())]
    Wide {
        /// The file.
        path: PathBuf,
        /// The encoding, as iconv calls it.
        found: &'static str,
    },

    /// A line of a `.jsonl` file is not a JSON object.
    #[error("{path}, line {line}: expected a JSON object, found {found}", path = .path.display())]
    InvalidJson {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        found: String,
    },

    /// A line of a `.jsonl` file lacks the field.
    #[error("{path}, line {line}: expected the field {field:?}, found {}",
        listed(.found), path = .path.display())]
    FieldMissing {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The field that should hold the text.
        field: String,
        /// The fields that the line has.
        found: Vec<String>,
    },

    /// A line's field does not hold text.
    #[error("{path}, line {line}: expected text in {field:?}, found {found}", path = .path.display())]
    FieldNotText {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The field that should hold the text.
        field: String,
        /// The kind of value that it holds.
        found: &'static str,
    },

    /// A `.parquet` file lacks the column.
    #[error("{path}: expected the column {column:?}, found {}", listed(.found), path = .path.display())]
    ColumnMissing {
        /// The file.
        path: PathBuf,
        /// The column that should hold the text.
        column: String,
        /// The columns of text that the file has.
        found: Vec<String>,
    },

    /// A `.parquet` file's column does not hold text.
    #[error("{path}: expected text in the column {column:?}, found {found}", path = .path.display())]
    ColumnNotText {
        /// The file.
        path: PathBuf,
        /// The column that should hold the text.
        column: String,
        /// The type that it has.
        found: String,
    },

    /// A row of a `.parquet` file holds nothing.
    #[error("{path}, row {row}: expected text in the column {column:?}, found null", path = .path.display())]
    NullRow {
        /// The file.
        path: PathBuf,
        /// The row, counted from 1.
        row: usize,
        /// The column that should hold the text.
        column: String,
    },

    /// A `.parquet` file could not be decoded.
    #[error("{path}: expected a parquet file, found {source}", path = .path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        source: ParquetError,
    },

    /// All files together hold no visible character.
    #[error("{}: expected text, found none", paths_listed(.paths))]
    NoText {
        /// The files that were read.
        paths: Vec<PathBuf>,
    },
}

impl CorpusError {
    /// The remedy, where there is one that the user can apply.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { .. } => Some("check the path".into()),
            Self::LfsPointer { .. } => {
                Some("run `git lfs pull` in the folder it was cloned to, or download the file itself".into())
            }
            Self::Folder { .. } => Some("name the files in it: folder/*.parquet".into()),
            Self::UnknownExtension { .. } => {
                Some("known are .txt (one document), .jsonl and .parquet (one document a row)".into())
            }
            Self::InvalidUtf8 { .. } => Some("convert the file: iconv -f LATIN1 -t UTF-8".into()),
            Self::Wide { found, .. } => Some(format!("convert the file: iconv -f {found} -t UTF-8")),
            Self::InvalidJson { .. } => Some("a .jsonl file holds one JSON object a line".into()),
            Self::FieldMissing { found, .. } | Self::ColumnMissing { found, .. } if !found.is_empty() => {
                Some(format!("name the one that holds the text, such as {:?}", found[0]))
            }
            Self::FieldNotText { .. } | Self::ColumnNotText { .. } | Self::NullRow { .. } => {
                Some("name another field, one that holds plain text".into())
            }
            Self::NoText { .. } => Some("pass files that hold some text".into()),
            Self::Parquet { .. } => Some("the file may be cut short: download it again".into()),
            Self::FieldMissing { .. } | Self::ColumnMissing { .. } => {
                Some("pass a file whose rows hold plain text".into())
            }
            Self::Io { .. } => Some("check the file's permissions and what its links lead to".into()),
        }
    }

    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "none that holds text".to_owned() } else { names.join(", ") }
}

fn paths_listed(paths: &[PathBuf]) -> String {
    let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    if names.is_empty() { "no file".to_owned() } else { names.join(", ") }
}
