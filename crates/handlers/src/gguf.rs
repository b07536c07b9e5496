//! The GGUF file: one file that holds a model's metadata and its tensors, as llama.cpp reads it.
//!
//! Version 3, little-endian: a header, typed metadata by key, what each tensor is and where it lies, then the tensors, each at a
//! multiple of 32 bytes. The format is described in ggml's `docs/gguf.md`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::checkpoint::Dtype;
use crate::error::Error;
use crate::layout::Encoded;
use crate::output::sync;

pub use crate::tokenizer::gguf::PATTERNS;

/// Bytes that a tensor's offset is a multiple of; the format's default.
const ALIGNMENT: u64 = 32;
const VERSION: u32 = 3;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A size or an id.
    U32(u32),
    /// A real number.
    F32(f32),
    /// Yes or no.
    Bool(bool),
    /// UTF-8 text.
    Text(String),
    /// Numbers of a list.
    I32s(Vec<i32>),
    /// Real numbers of a list.
    F32s(Vec<f32>),
    /// Texts of a list.
    Texts(Vec<String>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Text(text.into())
    }
}

impl Value {
    /// A size; none of a model's is beyond `u32`.
    pub(crate) fn size(size: usize) -> Self {
        Value::U32(u32::try_from(size).unwrap_or(u32::MAX))
    }

    /// The number by which the format knows the type.
    fn kind(&self) -> u32 {
        match self {
            Value::U32(_) => 4,
            Value::F32(_) => 6,
            Value::Bool(_) => 7,
            Value::Text(_) => 8,
            Value::I32s(_) | Value::F32s(_) | Value::Texts(_) => 9,
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Value::U32(number) => out.extend(number.to_le_bytes()),
            Value::F32(number) => out.extend(number.to_le_bytes()),
            Value::Bool(yes) => out.push(u8::from(*yes)),
            Value::Text(text) => put_text(text, out),
            Value::I32s(list) => {
                put_list(5, list.len(), out);
                list.iter().for_each(|number| out.extend(number.to_le_bytes()));
            }
            Value::F32s(list) => {
                put_list(6, list.len(), out);
                list.iter().for_each(|number| out.extend(number.to_le_bytes()));
            }
            Value::Texts(list) => {
                put_list(8, list.len(), out);
                list.iter().for_each(|text| put_text(text, out));
            }
        }
    }
}

/// Writes a file; `on_done` hears of the bytes of each tensor.
///
/// # Errors
/// When a tensor cannot be made or the disk fails.
pub(crate) fn write(
    path: &Path,
    metadata: &[(String, Value)],
    tensors: &[Encoded<'_>],
    on_done: &dyn Fn(u64),
) -> Result<(), Error> {
    let file = File::create(path).map_err(Error::io("create", path))?;
    let mut file = BufWriter::new(file);
    let mut put = |bytes: &[u8]| file.write_all(bytes).map_err(Error::io("write", path));
    let mut head = header(metadata, tensors);
    pad(&mut head);
    put(&head)?;
    for tensor in tensors {
        let mut bytes = (tensor.bytes)()?;
        pad(&mut bytes);
        put(&bytes)?;
        on_done(tensor.size());
    }
    file.flush().map_err(Error::io("write", path))?;
    sync(path)
}

/// All that stands before the tensors.
fn header(metadata: &[(String, Value)], tensors: &[Encoded<'_>]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_text(key, &mut out);
        out.extend(value.kind().to_le_bytes());
        value.put(&mut out);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        put_text(&tensor.key, &mut out);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        // The format names the dimension first whose numbers lie side by side.
        for &size in tensor.shape.iter().rev() {
            out.extend((size as u64).to_le_bytes());
        }
        let kind: u32 = match tensor.dtype {
            Dtype::F32 => 0,
            Dtype::F16 => 1,
            Dtype::Bf16 => 30,
        };
        out.extend(kind.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += tensor.size().next_multiple_of(ALIGNMENT);
    }
    out
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_list(kind: u32, length: usize, out: &mut Vec<u8>) {
    out.extend(kind.to_le_bytes());
    out.extend((length as u64).to_le_bytes());
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize((bytes.len() as u64).next_multiple_of(ALIGNMENT) as usize, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of a small file, put together by hand from the format's description.
    #[test]
    fn a_file_is_as_the_format_describes_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("model.gguf");
        let bytes: Vec<u8> = (0..12u8).collect();
        let data = bytes.clone();
        let tensor = Encoded {
            key: "t".into(),
            shape: vec![1, 3],
            dtype: Dtype::F32,
            bytes: Box::new(move || Ok(data.clone())),
        };
        let metadata = [("a".to_owned(), Value::U32(7)), ("b".to_owned(), Value::Texts(vec!["x".into()]))];
        write(&path, &metadata, &[tensor], &|_| ()).expect("a file");

        let mut expected = b"GGUF\x03\0\0\0".to_vec();
        expected.extend([1u64, 2].map(u64::to_le_bytes).concat());
        expected.extend(b"\x01\0\0\0\0\0\0\0a\x04\0\0\0\x07\0\0\0");
        expected.extend(b"\x01\0\0\0\0\0\0\0b\x09\0\0\0\x08\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0x");
        expected.extend(b"\x01\0\0\0\0\0\0\0t\x02\0\0\0\x03\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0");
        expected.extend(b"\0\0\0\0\0\0\0\0\0\0\0\0");
        expected.resize(expected.len().next_multiple_of(32), 0);
        expected.extend(&bytes);
        expected.resize(expected.len().next_multiple_of(32), 0);
        assert_eq!(std::fs::read(&path).expect("the file"), expected);
    }
}
