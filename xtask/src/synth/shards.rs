//! safetensors files of bounded size with an index, as the hub holds large models.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::Spec;

/// Bytes of tensors in a shard at most; a larger tensor has one to itself.
pub const LARGEST: u64 = 4 << 30;

/// Writes tensors to their shards, holding one at a time.
#[derive(Debug)]
pub struct Writer {
    folder: PathBuf,
    shards: Vec<Vec<Spec>>,
}

impl Writer {
    /// Puts tensors in shards in their order.
    pub fn new(folder: &Path, tensors: &[Spec], largest: u64) -> Self {
        let mut shards: Vec<Vec<Spec>> = Vec::new();
        let mut room = 0;
        for spec in tensors {
            if spec.bytes() > room || shards.is_empty() {
                shards.push(Vec::new());
                room = largest;
            }
            room = room.saturating_sub(spec.bytes());
            if let Some(shard) = shards.last_mut() {
                shard.push(spec.clone());
            }
        }
        Self { folder: folder.into(), shards }
    }

    /// Writes every shard, then the index.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn write(&mut self, fill: impl Fn(&Spec, &mut [u8])) -> Result<()> {
        let mut places = Map::new();
        let mut buffer = Vec::new();
        for (at, shard) in self.shards.iter().enumerate() {
            let name = format!("model-{:05}-of-{:05}.safetensors", at + 1, self.shards.len());
            let path = self.folder.join(&name);
            let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
            let mut file = BufWriter::new(file);
            let write = |bytes: &[u8], file: &mut BufWriter<File>| {
                file.write_all(bytes).with_context(|| format!("cannot write {}", path.display()))
            };
            let header = header(shard);
            write(&(header.len() as u64).to_le_bytes(), &mut file)?;
            write(header.as_bytes(), &mut file)?;
            for spec in shard {
                buffer.clear();
                buffer.resize(spec.bytes() as usize, 0);
                fill(spec, &mut buffer);
                write(&buffer, &mut file)?;
                places.insert(spec.name.clone(), name.clone().into());
            }
            file.flush().with_context(|| format!("cannot write {}", path.display()))?;
        }
        let total: u64 = self.shards.iter().flatten().map(Spec::bytes).sum();
        let index = json!({ "metadata": { "total_size": total }, "weight_map": places });
        let path = self.folder.join("model.safetensors.index.json");
        std::fs::write(&path, format!("{index:#}\n"))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The header of a safetensors file, padded with spaces so that the data begin at a multiple of 8.
fn header(shard: &[Spec]) -> String {
    let mut entries = Map::new();
    entries.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut begin = 0;
    for spec in shard {
        let end = begin + spec.bytes();
        let entry = json!({ "dtype": "BF16", "shape": spec.shape, "data_offsets": [begin, end] });
        entries.insert(spec.name.clone(), entry);
        begin = end;
    }
    let text = Value::Object(entries).to_string();
    let width = text.len().next_multiple_of(8);
    format!("{text:width$}")
}

#[cfg(test)]
mod tests {
    use super::super::Fill;
    use super::*;

    fn spec(name: &str, numbers: usize) -> Spec {
        Spec { name: name.into(), shape: vec![numbers], fill: Fill::Ones }
    }

    #[test]
    fn shards_stay_within_their_size_and_a_larger_tensor_has_its_own() {
        let tensors = [spec("a", 3), spec("b", 2), spec("c", 9), spec("d", 1), spec("e", 4)];
        let writer = Writer::new(Path::new(""), &tensors, 10);
        let names: Vec<Vec<&str>> =
            writer.shards.iter().map(|shard| shard.iter().map(|spec| spec.name.as_str()).collect()).collect();
        assert_eq!(names, [vec!["a", "b"], vec!["c"], vec!["d", "e"]]);
    }

    #[test]
    fn a_shard_is_a_length_a_header_and_the_numbers() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut writer = Writer::new(folder.path(), &[spec("a", 3), spec("b", 2)], 100);
        writer.write(|spec, into| into.fill(spec.name.as_bytes()[0])).expect("written");
        let bytes = std::fs::read(folder.path().join("model-00001-of-00001.safetensors")).expect("a file");
        let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        assert_eq!(length % 8, 0);
        let header: Value = serde_json::from_slice(&bytes[8..8 + length]).expect("json");
        assert_eq!(header["b"], json!({ "dtype": "BF16", "shape": [2], "data_offsets": [6, 10] }));
        assert_eq!(&bytes[8 + length..], b"aaaaaabbbb");
    }
}
