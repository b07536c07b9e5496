//! Model folders to run the program on: the goldens as they are, and copies to change or damage.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value};
use tempfile::TempDir;

/// One tiny model a family.
pub const TWINS: [&str; 5] = ["gpt2", "llama", "mistral", "mixtral", "qwen2"];

/// A file or folder of the goldens.
pub fn golden(name: &str) -> String {
    let path = std::path::PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"))
        .join("../../goldens")
        .join(name);
    let path = path.canonicalize().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    path.to_str().expect("a UTF-8 path").to_owned()
}

/// A `config.json` as the hub has it.
pub fn config(name: &str) -> String {
    format!(
        "{}/../../tests/e2e/configs/{name}.json",
        std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")
    )
}

/// A tensor as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Raw {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Raw {
    /// Multiplies every element of an f32 tensor.
    pub fn scale(&mut self, factor: f32) {
        self.map(|_, value| value * factor);
    }

    /// Sets one element of an f32 tensor.
    pub fn set(&mut self, index: usize, to: f32) {
        self.map(|i, value| if i == index { to } else { value });
    }

    fn map(&mut self, f: impl Fn(usize, f32) -> f32) {
        assert_eq!(self.dtype, Dtype::F32);
        for (i, bytes) in self.bytes.chunks_exact_mut(4).enumerate() {
            let value = f32::from_le_bytes(bytes.try_into().expect("four bytes"));
            bytes.copy_from_slice(&f(i, value).to_le_bytes());
        }
    }
}

/// The tensors of a file by name.
pub type Tensors = BTreeMap<String, Raw>;

/// A temporary folder; it goes when this is dropped.
pub struct Scratch {
    folder: TempDir,
}

impl Scratch {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    /// A copy of a golden model's folder.
    pub fn of(name: &str) -> Self {
        let scratch = Self::new();
        let model = [
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ];
        for file in model {
            std::fs::copy(Path::new(&golden(name)).join(file), scratch.folder.path().join(file))
                .expect("a copy");
        }
        scratch
    }

    /// The folder itself.
    pub fn root(&self) -> String {
        self.path("")
    }

    /// A place in the folder.
    pub fn path(&self, name: &str) -> String {
        let path = self.folder.path().join(name);
        path.to_str().expect("a UTF-8 path").trim_end_matches('/').to_owned()
    }

    /// Writes a file and returns its path.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::write(&path, content).expect("a file");
        path
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub fn read_json(&self, name: &str) -> Value {
        serde_json::from_slice(&self.read(name)).expect("a JSON file")
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).expect("the file goes");
    }

    /// Every file and folder below, by its path from here, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut folders = vec![PathBuf::from(self.folder.path())];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                let name = path.strip_prefix(self.folder.path()).expect("a path below");
                names.push(name.to_str().expect("a UTF-8 name").to_owned());
                if path.is_dir() {
                    folders.push(path);
                }
            }
        }
        names.sort();
        names
    }

    /// Sets a field of `config.json`.
    pub fn set(&self, field: &str, value: impl Into<Value>) {
        let mut config = self.read_json("config.json");
        config[field] = value.into();
        self.write("config.json", config.to_string());
    }

    /// The tensors of a weight file.
    pub fn tensors(&self, name: &str) -> Tensors {
        let bytes = self.read(name);
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let raw = |view: TensorView<'_>| Raw {
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            bytes: view.data().to_vec(),
        };
        file.tensors().into_iter().map(|(name, view)| (name, raw(view))).collect()
    }

    pub fn write_tensors(&self, name: &str, tensors: &Tensors) {
        let views = tensors.iter().map(|(name, raw)| {
            let view = TensorView::new(raw.dtype, raw.shape.clone(), &raw.bytes);
            (name, view.expect("as many bytes as the shape says"))
        });
        let bytes = safetensors::serialize(views, None).expect("a safetensors file");
        self.write(name, bytes);
    }

    /// Changes tensors of `model.safetensors`.
    pub fn edit(&self, edit: impl FnOnce(&mut Tensors)) {
        let mut tensors = self.tensors("model.safetensors");
        edit(&mut tensors);
        self.write_tensors("model.safetensors", &tensors);
    }

    /// Replaces the weight file by two shards and their index.
    pub fn shard(&self) {
        let tensors = self.tensors("model.safetensors");
        self.remove("model.safetensors");
        let mut weight_map = Map::new();
        for (number, name) in
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"].iter().enumerate()
        {
            let mine: Tensors =
                tensors.iter().skip(number).step_by(2).map(|(key, raw)| (key.clone(), raw.clone())).collect();
            self.write_tensors(name, &mine);
            weight_map.extend(mine.into_keys().map(|key| (key, (*name).into())));
        }
        self.write(
            "model.safetensors.index.json",
            serde_json::json!({ "weight_map": weight_map }).to_string(),
        );
    }
}
