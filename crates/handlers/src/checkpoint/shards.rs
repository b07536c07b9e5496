//! Opening and reading safetensors files.
//!
//! Tensors are read from the file at their offset when they are asked for, not mapped: resident memory is then what
//! we hold and nothing else, a file cut short under us is an error and not a signal, and no line is `unsafe`.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use safetensors::tensor::Metadata;
use serde_json::Value;

use super::dtype::Dtype;
use crate::config_json::ConfigJson;
use crate::error::Error;

const SINGLE: &str = "model.safetensors";
/// The limit of the safetensors format.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const INDEX: &str = "model.safetensors.index.json";

/// The tensors of a model folder, known but not read.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, StoredTensor>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: File,
    len: u64,
}

/// Where and how one tensor is stored.
#[derive(Clone, Debug)]
pub struct StoredTensor {
    /// Its shape.
    pub shape: Vec<usize>,
    dtype: safetensors::Dtype,
    shard: usize,
    offset: u64,
    len: usize,
}

impl Checkpoint {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// When there are no weights, shards are missing, or a header is damaged.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let mut checkpoint = Self { folder: folder.into(), shards: Vec::new(), tensors: BTreeMap::new() };
        if folder.join(SINGLE).exists() {
            checkpoint.add(SINGLE)?;
        } else if folder.join(INDEX).exists() {
            checkpoint.add_index()?;
        } else {
            return Err(no_weights(folder));
        }
        Ok(checkpoint)
    }

    /// The folder the weights lie in.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The weight files.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.shards.iter().map(|shard| shard.path.as_path())
    }

    /// Bytes of all weight files.
    pub fn file_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.len).sum()
    }

    /// Every tensor's name, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor's place.
    pub fn get(&self, key: &str) -> Option<&StoredTensor> {
        self.tensors.get(key)
    }

    /// The float type of a tensor.
    ///
    /// # Errors
    /// When the tensor is stored in a type that is no plain float.
    pub fn dtype(&self, key: &str, tensor: &StoredTensor) -> Result<Dtype, Error> {
        Dtype::from_safetensors(tensor.dtype).ok_or_else(|| Error::UnsupportedDtype {
            path: self.folder.clone(),
            key: key.into(),
            found: format!("{:?}", tensor.dtype),
        })
    }

    /// The stored bytes of a tensor.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(&self, tensor: &StoredTensor) -> Result<Vec<u8>, Error> {
        self.read_part(tensor, 0, tensor.len)
    }

    /// Some of the stored bytes of a tensor.
    ///
    /// # Errors
    /// When the file cannot be read.
    ///
    /// # Panics
    /// If the part reaches beyond the tensor.
    pub fn read_part(&self, tensor: &StoredTensor, start: usize, len: usize) -> Result<Vec<u8>, Error> {
        assert!(start + len <= tensor.len, "a part of a tensor lies inside it");
        let shard = &self.shards[tensor.shard];
        let mut bytes = vec![0; len];
        read_exact_at(&shard.file, &mut bytes, tensor.offset + start as u64)
            .map_err(Error::io("read", &shard.path))?;
        Ok(bytes)
    }

    fn add_index(&mut self) -> Result<(), Error> {
        let path = self.folder.join(INDEX);
        let index = ConfigJson::read(&path)?;
        let bad = |reason: String| Error::BadIndex { path: path.clone(), reason };
        let places = index.object("weight_map")?.ok_or_else(|| index.missing("weight_map"))?;
        let mut wanted: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (key, shard) in places.fields() {
            let Value::String(shard) = shard else {
                return Err(bad(format!("the shard of {key} is no file name")));
            };
            // A name is only a name: an index from a stranger must not reach outside the folder.
            if Path::new(shard).file_name().is_none_or(|name| name != shard.as_str()) {
                return Err(bad(format!("{shard:?} is not a file name in the folder")));
            }
            wanted.entry(shard).or_default().push(key);
        }
        let missing = |shard: &&&str| !self.folder.join(shard).exists();
        let missing: Vec<String> = wanted.keys().filter(missing).map(|s| (*s).to_owned()).collect();
        if !missing.is_empty() {
            return Err(Error::MissingShards { path, missing });
        }
        if wanted.is_empty() {
            return Err(bad("it names no tensors".into()));
        }
        for (shard, keys) in wanted {
            self.add(shard)?;
            let number = self.shards.len() - 1;
            if let Some(key) =
                keys.iter().find(|&&key| self.tensors.get(key).is_none_or(|t| t.shard != number))
            {
                return Err(bad(format!("{key} is said to be in {shard}, which does not have it")));
            }
        }
        Ok(())
    }

    fn add(&mut self, name: &str) -> Result<(), Error> {
        let path = self.folder.join(name);
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        let (data, metadata, file_len) = read_header(&file, &path)?;
        let shard = self.shards.len();
        for (key, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let tensor = StoredTensor {
                shape: info.shape.clone(),
                dtype: info.dtype,
                shard,
                offset: data + start as u64,
                len: end - start,
            };
            if self.tensors.insert(key.clone(), tensor).is_some() {
                return Err(Error::BadSafetensors { path, reason: format!("{key} is in another shard too") });
            }
        }
        self.shards.push(Shard { path, file, len: file_len });
        Ok(())
    }
}

/// Where the data starts, what it holds, and the file's length. Nothing is trusted before it is checked against the
/// file: neither the header's length nor any offset.
fn read_header(file: &File, path: &Path) -> Result<(u64, Metadata, u64), Error> {
    let bad = |reason: String| Error::BadSafetensors { path: path.into(), reason };
    let file_len = file.metadata().map_err(Error::io("read", path))?.len();
    if file_len < 8 {
        return Err(bad(format!("it has {file_len} bytes, too few for a header")));
    }
    let mut length = [0; 8];
    read_exact_at(file, &mut length, 0).map_err(Error::io("read", path))?;
    let header_len = u64::from_le_bytes(length);
    if header_len > MAX_HEADER_BYTES || header_len > file_len - 8 {
        return Err(bad(format!("the header claims {header_len} bytes, the file has {file_len}")));
    }
    let mut header = vec![0; header_len as usize];
    read_exact_at(file, &mut header, 8).map_err(Error::io("read", path))?;
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|e| bad(format!("the header is wrong: {e}")))?;
    // Eight tensors of 2^61 bytes are a valid header: their sum must not wrap.
    let expected = (8 + header_len).saturating_add(metadata.data_len() as u64);
    if expected != file_len {
        return Err(bad(format!("the header describes {expected} bytes, the file has {file_len}")));
    }
    Ok((8 + header_len, metadata, file_len))
}

#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    while !buffer.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buffer, offset)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => (buffer, offset) = (&mut buffer[n..], offset + n as u64),
        }
    }
    Ok(())
}

fn no_weights(folder: &Path) -> Error {
    let is_other = |name: &String| {
        [".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"].iter().any(|ext| name.ends_with(ext))
    };
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut others: Vec<String> =
        names.filter_map(|entry| entry.file_name().into_string().ok()).filter(is_other).collect();
    others.sort();
    Error::NoWeights { path: folder.into(), others }
}
