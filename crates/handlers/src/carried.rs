//! The files that go with a model: tokenizer, templates, licence. A conversion carries them along as they are, and from the hub
//! they are fetched with the weights: one rule for both.

use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::lfs;

const NAMES: [&str; 11] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
];
/// How the names of licences and notices begin, in whatever case.
const LEGAL: [&str; 6] = ["LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY", "USAGE_POLICY"];
/// How they end, after a point.
const LEGAL_ENDS: [&str; 5] = ["txt", "md", "pdf", "rst", "html"];

/// Whether a file of a model's folder, by its name there, goes with the model.
pub(crate) fn is_carried(name: &str) -> bool {
    NAMES.contains(&name) || is_legal(name)
}

/// Whether a file is a licence or a notice: `LICENSE`, `LICENSE-MODEL.md`, `Notice`, `USE_POLICY.md`, …
fn is_legal(name: &str) -> bool {
    let ends_well = name.rsplit_once('.').is_none_or(|(_, end)| LEGAL_ENDS.contains(&end));
    let upper = name.to_uppercase();
    ends_well && !name.contains('/') && LEGAL.iter().any(|start| upper.starts_with(start))
}

/// The files of a folder that go with its model, by name and sorted.
///
/// # Errors
/// When one of them is a Git LFS pointer, or a link to a file that is not the model's: what is written may be published.
pub(crate) fn carried(folder: &Path) -> Result<Vec<String>, Error> {
    let entries = std::fs::read_dir(folder).map_err(Error::io("read", folder))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> =
        names.filter(|name| is_carried(name) && folder.join(name).is_file()).collect();
    names.sort();
    for name in &names {
        check(folder, &folder.join(name))?;
    }
    Ok(names)
}

/// The content of a file that goes with a model, such as its card; `None` where there is none.
///
/// # Errors
/// When it cannot be read, is a Git LFS pointer, or a link to a file that is not the model's: what is written may be published.
pub fn read_companion(folder: &Path, name: &str) -> Result<Option<Vec<u8>>, Error> {
    let path = folder.join(name);
    if !path.is_file() {
        return Ok(None);
    }
    check(folder, &path)?;
    std::fs::read(&path).map(Some).map_err(Error::io("read", &path))
}

/// Refuses a file that is not there for real, or not the model's.
fn check(folder: &Path, path: &Path) -> Result<(), Error> {
    lfs::refuse(path)?;
    let target = path.canonicalize().map_err(Error::io("read", path))?;
    match homes(folder).iter().any(|home| target.starts_with(home)) || is_hub_blob(&target) {
        true => Ok(()),
        false => Err(Error::LinkOutside { path: path.into(), target }),
    }
}

/// Where a model's files may really lie: in its folder, or, where that is made of links, beside its configuration.
fn homes(folder: &Path) -> Vec<PathBuf> {
    let config = folder.join("config.json").canonicalize().ok();
    let beside = config.and_then(|config| config.parent().map(Path::to_path_buf));
    folder.canonicalize().into_iter().chain(beside).collect()
}

/// Whether a file is content of the hub's cache, `models--org--name/blobs/<hash>`: snapshots are links to such.
fn is_hub_blob(target: &Path) -> bool {
    let blobs = target.parent().filter(|parent| parent.file_name().is_some_and(|name| name == "blobs"));
    let repo = blobs.and_then(Path::parent).and_then(Path::file_name);
    repo.is_some_and(|name| name.to_string_lossy().starts_with("models--"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_and_notices_are_carried_whatever_their_spelling() {
        for name in [
            "LICENSE",
            "LICENSE.txt",
            "LICENSE-MODEL",
            "license.md",
            "LICENCE",
            "Notice",
            "NOTICE.txt",
            "USE_POLICY.md",
            "COPYING",
            "LICENSE.pdf",
        ] {
            assert!(is_carried(name), "{name}");
        }
        for name in ["README.md", "licenses.safetensors", "original/LICENSE", "config.json", "shrink.json"] {
            assert!(!is_carried(name), "{name}");
        }
    }
}
