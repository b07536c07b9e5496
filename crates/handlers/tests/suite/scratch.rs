//! A twin's folder in a temporary place, for tests that change or damage it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use handlers::{Error, Model, Registry};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value};
use tempfile::TempDir;

use crate::twin;

const FILES: [&str; 5] =
    ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];

/// A tensor as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Raw {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Raw {
    pub fn f32(shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { dtype: Dtype::F32, shape: shape.to_vec(), bytes }
    }

    pub fn values(&self) -> Vec<f32> {
        assert_eq!(self.dtype, Dtype::F32);
        self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect()
    }

    pub fn set(&mut self, index: usize, value: f32) {
        self.bytes[4 * index..4 * index + 4].copy_from_slice(&value.to_le_bytes());
    }
}

/// The tensors of a file by name.
pub type Tensors = BTreeMap<String, Raw>;

pub fn read_tensors(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let raw = |view: TensorView<'_>| Raw {
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        bytes: view.data().to_vec(),
    };
    file.tensors().into_iter().map(|(name, view)| (name, raw(view))).collect()
}

pub fn write_tensors(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, raw)| {
        (
            name,
            TensorView::new(raw.dtype, raw.shape.clone(), &raw.bytes)
                .expect("as many bytes as the shape says"),
        )
    });
    safetensors::serialize_to_file(views, None, path).expect("a file");
}

/// A safetensors file from a header's text and its data, right or wrong.
pub fn raw_file(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// A folder to change; it goes when this is dropped.
pub struct Scratch {
    folder: TempDir,
}

impl Scratch {
    pub fn empty() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    /// A copy of a twin.
    pub fn of(name: &str) -> Self {
        let scratch = Self::empty();
        for file in FILES {
            std::fs::copy(twin::folder(name).join(file), scratch.path(file)).expect("a copy");
        }
        scratch
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).expect("a file");
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).expect("the file goes");
    }

    pub fn edit_json(&self, name: &str, edit: impl FnOnce(&mut Map<String, Value>)) {
        let bytes = std::fs::read(self.path(name)).expect("a file");
        let mut fields: Map<String, Value> = serde_json::from_slice(&bytes).expect("an object");
        edit(&mut fields);
        self.write(name, Value::Object(fields).to_string());
    }

    /// Sets a field of `config.json`; `null` counts as absent.
    pub fn set(&self, field: &str, value: impl Into<Value>) {
        self.edit_json("config.json", |fields| {
            fields.insert(field.into(), value.into());
        });
    }

    pub fn edit_weights(&self, edit: impl FnOnce(&mut Tensors)) {
        let path = self.path("model.safetensors");
        let mut tensors = read_tensors(&path);
        edit(&mut tensors);
        write_tensors(&path, &tensors);
    }

    /// Replaces the weight file by shards and an index that says which tensor is where.
    pub fn shard(&self, shards: usize) -> Map<String, Value> {
        let tensors = read_tensors(&self.path("model.safetensors"));
        self.remove("model.safetensors");
        let mut places = Map::new();
        for number in 0..shards {
            let name = format!("part-{number}.safetensors");
            let mine = tensors.iter().skip(number).step_by(shards);
            let mine: Tensors = mine.map(|(key, raw)| (key.clone(), raw.clone())).collect();
            write_tensors(&self.path(&name), &mine);
            places.extend(mine.into_keys().map(|key| (key, name.clone().into())));
        }
        self.index(places.clone());
        places
    }

    pub fn index(&self, weight_map: Map<String, Value>) {
        self.write(
            "model.safetensors.index.json",
            serde_json::json!({ "weight_map": weight_map }).to_string(),
        );
    }

    pub fn open(&self) -> Result<Model, Error> {
        Model::open(self.folder(), &Registry::builtin())
    }

    /// The names of everything in the folder, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder()).expect("a folder");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}
