//! Which files of a model are needed, and which of them a folder has.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::cache::is_inside;
use super::error::HubError;
use super::{ModelFolder, Need};
use crate::checkpoint::numbered;

pub(super) const CONFIG: &str = "config.json";
pub(super) const TOKENIZER: &str = "tokenizer.json";
/// What stands for it where it is not there: both of them.
pub(super) const VOCABULARY: [&str; 2] = ["vocab.json", "merges.txt"];
pub(super) const WEIGHTS: &str = "model.safetensors";
pub(super) const WEIGHTS_INDEX: &str = "model.safetensors.index.json";
/// What shrink wrote beside a converted model.
const RECORD: &str = "shrink.json";
const CARD: &str = "README.md";
const SAFETENSORS: &str = ".safetensors";
/// How files of weights end that are not safetensors.
const OTHER_WEIGHTS: [&str; 9] =
    [".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".npz"];

/// The files beside the weights that are taken along: those that a conversion carries, the card, which names the licence, and the
/// record of a converted model.
pub(super) fn companions(names: &[String]) -> impl Iterator<Item = &String> {
    names.iter().filter(move |name| {
        let is_said = [RECORD, CARD].contains(&name.as_str());
        name.as_str() != TOKENIZER && (crate::carried::is_carried(name) || is_said)
    })
}

/// A model's folder on this machine, as it is.
pub(super) fn local(path: &Path, need: Need) -> Result<ModelFolder, HubError> {
    if !path.exists() {
        return Err(HubError::FolderMissing { path: path.to_owned() });
    }
    if !path.is_dir() {
        return Err(HubError::NotAFolder { path: path.to_owned() });
    }
    if need == Need::Everything {
        let mut names = entries(path)?;
        if names.iter().any(|name| is_weights(name)) && !names.iter().any(|name| name.ends_with(SAFETENSORS))
        {
            names.retain(|name| is_weights(name));
            return Err(HubError::NoSafetensors { model: path.display().to_string(), found: names });
        }
    }
    Ok(ModelFolder { path: path.to_owned(), id: None, revision: None })
}

/// Whether a file holds weights, in whatever format.
pub(super) fn is_weights(name: &str) -> bool {
    let is_other = OTHER_WEIGHTS.iter().any(|end| name.ends_with(end)) && name != "training_args.bin";
    is_other || name.ends_with(SAFETENSORS)
}

/// The first file that a cached folder lacks.
pub(super) fn missing(folder: &Path, need: Need) -> Option<String> {
    let lacks = |file: &str| !folder.join(file).exists();
    if lacks(CONFIG) {
        return Some(CONFIG.to_owned());
    }
    if need == Need::ConfigOnly {
        return None;
    }
    if lacks(TOKENIZER) && VOCABULARY.iter().any(|file| lacks(file)) {
        return Some(TOKENIZER.to_owned());
    }
    if !lacks(WEIGHTS) {
        return None;
    }
    if !lacks(WEIGHTS_INDEX) {
        return match shards(&folder.join(WEIGHTS_INDEX)) {
            Ok(shards) => shards.into_iter().find(|shard| lacks(shard)),
            Err(_) => Some(WEIGHTS.to_owned()),
        };
    }
    let names = entries(folder).unwrap_or_default();
    match numbered(names.iter().map(String::as_str)) {
        Some(set) => set.missing.into_iter().next(),
        None => Some(WEIGHTS.to_owned()),
    }
}

/// The files that an index spreads the weights over, in order.
pub(super) fn shards(index: &Path) -> Result<BTreeSet<String>, HubError> {
    let malformed = |found: String| malformed(index, found);
    let places = places(index)?;
    let names = places.values().map(|file| match file.as_str().filter(|file| is_inside(file)) {
        Some(file) => Ok(file.to_owned()),
        None => Err(malformed(file.to_string())),
    });
    names.collect()
}

/// The tensors that an index names, each with the file that it says has it.
pub(super) fn places(index: &Path) -> Result<serde_json::Map<String, serde_json::Value>, HubError> {
    let bytes = fs::read(index).map_err(HubError::io(index))?;
    let json: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|error| malformed(index, error.to_string()))?;
    let map = json.get("weight_map").and_then(|map| map.as_object()).filter(|map| !map.is_empty());
    map.cloned().ok_or_else(|| malformed(index, "no tensor".to_owned()))
}

fn malformed(index: &Path, found: String) -> HubError {
    let expected = "a JSON object with a weight_map from tensors to files";
    HubError::Malformed { from: index.display().to_string(), expected, found }
}

/// The names of everything in a folder, sorted.
fn entries(folder: &Path) -> Result<Vec<String>, HubError> {
    let entries = fs::read_dir(folder).map_err(HubError::io(folder))?;
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_names_each_shard_once_and_none_outside_its_folder() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let index = folder.path().join(WEIGHTS_INDEX);
        let read = |json: &str| {
            fs::write(&index, json).expect("an index");
            shards(&index)
        };
        let good =
            read(r#"{"weight_map": {"a": "2.safetensors", "b": "1.safetensors", "c": "2.safetensors"}}"#);
        assert_eq!(
            good.expect("two shards").into_iter().collect::<Vec<_>>(),
            ["1.safetensors", "2.safetensors"]
        );
        for bad in
            [r#"{"weight_map": {"a": "../x"}}"#, r#"{"weight_map": {"a": 1}}"#, r#"{"weight_map": {}}"#, "{"]
        {
            assert!(matches!(read(bad), Err(HubError::Malformed { .. })), "{bad}");
        }
    }

    #[test]
    fn a_card_and_a_record_are_taken_along() {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let donor = names(&["LICENSE", "README.md", "config.json", "tokenizer.json", "vocab.json"]);
        assert_eq!(companions(&donor).collect::<Vec<_>>(), ["LICENSE", "README.md", "vocab.json"]);
        let converted = names(&["README.md", "shrink.json", "original/LICENSE"]);
        assert_eq!(companions(&converted).collect::<Vec<_>>(), ["README.md", "shrink.json"]);
    }
}
