//! The files of the repository, as the rules see them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Endings of the files whose text the rules read.
const READ: [&str; 3] = [".rs", ".md", ".toml"];

/// What git tracks, and what it would if it were added: nothing that is ignored.
#[derive(Debug, Default)]
pub struct Tree {
    files: BTreeMap<String, File>,
}

/// A file; its path is relative to the repository and has forward slashes.
#[derive(Debug)]
pub struct File {
    /// Its size.
    pub bytes: u64,
    /// Its text, where a rule could want it; empty for all other files.
    pub text: String,
}

impl Tree {
    /// Reads the working tree.
    pub fn read(root: &Path) -> Result<Self> {
        let list = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
        let output = Command::new("git").args(list).current_dir(root).output().context("cannot run git")?;
        if !output.status.success() {
            bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let mut files = BTreeMap::new();
        for path in String::from_utf8(output.stdout)?.split_terminator('\0') {
            let full = root.join(path);
            // A file that git tracks may be gone from the working tree.
            let Ok(metadata) = fs::metadata(&full) else { continue };
            let text = match READ.iter().any(|end| path.ends_with(end)) {
                true => fs::read_to_string(&full).with_context(|| format!("cannot read {path}"))?,
                false => String::new(),
            };
            files.insert(path.to_owned(), File { bytes: metadata.len(), text });
        }
        Ok(Self { files })
    }

    /// A tree made of texts.
    #[cfg(test)]
    pub fn of(files: &[(&str, &str)]) -> Self {
        let file = |text: &str| File { bytes: text.len() as u64, text: text.to_owned() };
        Self { files: files.iter().map(|&(path, text)| (path.to_owned(), file(text))).collect() }
    }

    /// Every file in a folder or below it; all files for the empty string.
    pub fn below(&self, folder: &str) -> impl Iterator<Item = (&str, &File)> {
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        self.files
            .iter()
            .filter(move |(path, _)| path.starts_with(&prefix))
            .map(|(path, file)| (path.as_str(), file))
    }

    /// A file's text.
    pub fn text(&self, path: &str) -> Option<&str> {
        self.files.get(path).map(|file| file.text.as_str())
    }

    /// Whether a file or folder is there; the empty string is the repository itself.
    pub fn has(&self, path: &str) -> bool {
        self.files.contains_key(path) || self.below(path).next().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_not_a_prefix() {
        let tree = Tree::of(&[("docs/a.md", ""), ("docs-old/b.md", "")]);
        assert_eq!(tree.below("docs").map(|(path, _)| path).collect::<Vec<_>>(), ["docs/a.md"]);
        assert!(tree.has("docs") && tree.has("docs/a.md") && tree.has(""));
        assert!(!tree.has("doc") && !tree.has("docs/b.md"));
    }
}
