//! Opening and reading safetensors files.
//!
//! Tensors are read from the file at their offset when they are asked for, not mapped: resident memory is then what
//! we hold and nothing else, a file cut short under us is an error and not a signal, and no line is `unsafe`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use safetensors::tensor::Metadata;
use serde_json::Value;

use super::dtype::Dtype;
use super::numbered::numbered;
use crate::config_json::ConfigJson;
use crate::error::Error;
use crate::lfs;

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
    lacks_index: bool,
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
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names, or without an index a whole set of
    /// shards by their numbers.
    ///
    /// # Errors
    /// When there are no weights, shards are missing, or a header is damaged.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let empty =
            Self { folder: folder.into(), shards: Vec::new(), tensors: BTreeMap::new(), lacks_index: false };
        if folder.join(SINGLE).exists() {
            empty.with_shards(&[SINGLE.to_owned()], &BTreeMap::new())
        } else if folder.join(INDEX).exists() {
            let places = places(&folder.join(INDEX))?;
            let wanted: BTreeSet<&String> = places.values().collect();
            let wanted: Vec<String> = wanted.into_iter().cloned().collect();
            empty.with_shards(&wanted, &places)
        } else {
            empty.by_numbers()
        }
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

    /// Whether the shards were found by their numbers, since there is no index.
    pub fn lacks_index(&self) -> bool {
        self.lacks_index
    }

    /// Every tensor's name, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor's place.
    pub fn get(&self, key: &str) -> Option<&StoredTensor> {
        self.tensors.get(key)
    }

    /// The name of the type that a tensor is stored in, as safetensors has it: `BF16`, `F8_E4M3`, …
    pub(crate) fn stored_type(tensor: &StoredTensor) -> String {
        format!("{:?}", tensor.dtype)
    }

    /// The float type of a tensor.
    ///
    /// # Errors
    /// When the tensor is stored in a type that is no plain float.
    pub fn dtype(&self, key: &str, tensor: &StoredTensor) -> Result<Dtype, Error> {
        Dtype::from_safetensors(tensor.dtype).ok_or_else(|| Error::UnsupportedDtype {
            path: self.folder.clone(),
            key: key.into(),
            found: Self::stored_type(tensor),
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

    fn by_numbers(mut self) -> Result<Self, Error> {
        let names = names(&self.folder);
        let Some(set) = numbered(names.iter().map(String::as_str)) else {
            return Err(no_weights(&self.folder, names));
        };
        if !set.missing.is_empty() {
            return Err(Error::IncompleteShards {
                path: self.folder,
                missing: set.missing,
                found: set.found,
            });
        }
        self.lacks_index = true;
        self.with_shards(&set.found, &BTreeMap::new())
    }

    /// Reads the headers. Of a tensor in several shards the copy counts that `places` names; a tensor that is only said to be
    /// in one is simply not there, and missed by whoever needs it.
    fn with_shards(mut self, shards: &[String], places: &BTreeMap<String, String>) -> Result<Self, Error> {
        let mut copies = BTreeMap::<String, Vec<StoredTensor>>::new();
        for (shard, name) in shards.iter().enumerate() {
            let path = self.folder.join(name);
            let file = File::open(&path).map_err(Error::io("open", &path))?;
            let (data, metadata, len) = read_header(&file, &path)?;
            for (key, info) in metadata.tensors() {
                let (start, end) = info.data_offsets;
                let (shape, dtype, offset) = (info.shape.clone(), info.dtype, data + start as u64);
                let tensor = StoredTensor { shape, dtype, shard, offset, len: end - start };
                copies.entry(key).or_default().push(tensor);
            }
            self.shards.push(Shard { path, file, len });
        }
        for (key, mut found) in copies {
            let named = |copy: &StoredTensor| places.get(&key) == Some(&shards[copy.shard]);
            let chosen = match found.len() {
                1 => Some(0),
                _ => found.iter().position(named),
            };
            let Some(chosen) = chosen else {
                let shards = found.iter().map(|copy| shards[copy.shard].clone()).collect();
                return Err(Error::TwoCopies { path: self.folder, key, shards });
            };
            self.tensors.insert(key, found.swap_remove(chosen));
        }
        Ok(self)
    }
}

/// Which shard an index says each tensor is in; every shard is there.
fn places(path: &Path) -> Result<BTreeMap<String, String>, Error> {
    let index = ConfigJson::read(path)?;
    let bad = |reason: String| Error::BadIndex { path: path.into(), reason };
    let map = index.object("weight_map")?.ok_or_else(|| index.missing("weight_map"))?;
    let mut places = BTreeMap::new();
    for (key, shard) in map.fields() {
        let Value::String(shard) = shard else {
            return Err(bad(format!("the shard of {key} is no file name")));
        };
        // A name is only a name: an index from a stranger must not reach outside the folder.
        if Path::new(shard).file_name().is_none_or(|name| name != shard.as_str()) {
            return Err(bad(format!("{shard:?} is not a file name in the folder")));
        }
        places.insert(key.clone(), shard.clone());
    }
    if places.is_empty() {
        return Err(bad("it names no tensors".into()));
    }
    let wanted: BTreeSet<&String> = places.values().collect();
    let missing = wanted.into_iter().filter(|shard| !path.with_file_name(shard).exists());
    match missing.cloned().collect::<Vec<String>>() {
        missing if missing.is_empty() => Ok(places),
        missing => Err(Error::MissingShards { path: path.into(), missing }),
    }
}

/// Where the data starts, what it holds, and the file's length. Nothing is trusted before it is checked against the
/// file: neither the header's length nor any offset.
fn read_header(file: &File, path: &Path) -> Result<(u64, Metadata, u64), Error> {
    lfs::refuse(path)?;
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

/// The names of everything in a folder; none where it cannot be read.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn no_weights(folder: &Path, mut names: Vec<String>) -> Error {
    const ENDS: [&str; 8] = [".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"];
    names.retain(|name| ENDS.iter().any(|end| name.ends_with(end)));
    Error::NoWeights { path: folder.into(), others: names }
}
