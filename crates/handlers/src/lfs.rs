//! Git LFS pointers: the three lines that a clone without Git LFS has in the place of a large file.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::Error;

/// How a pointer begins; the second is the name that Git LFS had before its first release.
const BEGINNINGS: [&[u8]; 2] =
    [b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/"];
/// A pointer is shorter than this, as its specification says.
const MAX_BYTES: u64 = 1024;

/// Whether a file is a Git LFS pointer; one that cannot be read is none.
pub fn is_lfs_pointer(path: &Path) -> bool {
    let is_short = path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() < MAX_BYTES);
    let mut content = Vec::new();
    is_short
        && File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut content)).is_ok()
        && is_pointer(&content)
}

/// Whether the content of a file is that of a pointer.
pub(crate) fn is_pointer(content: &[u8]) -> bool {
    (content.len() as u64) < MAX_BYTES && BEGINNINGS.iter().any(|beginning| content.starts_with(beginning))
}

/// Refuses a pointer.
pub(crate) fn refuse(path: &Path) -> Result<(), Error> {
    match is_lfs_pointer(path) {
        true => Err(Error::LfsPointer { path: path.into() }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 9085657\n";

    #[test]
    fn a_pointer_is_told_from_a_text_about_pointers() {
        assert!(is_pointer(POINTER.as_bytes()));
        assert!(is_pointer(b"version https://hawser.github.com/spec/v1\noid sha256:0123\nsize 3\n"));
        assert!(!is_pointer(b"version 3\n"));
        assert!(!is_pointer((POINTER.to_owned() + &"words ".repeat(200)).as_bytes()));
    }

    #[test]
    fn what_is_no_file_is_no_pointer() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert!(!is_lfs_pointer(folder.path()));
        assert!(!is_lfs_pointer(&folder.path().join("none")));
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, POINTER).expect("a file");
        assert!(is_lfs_pointer(&path));
    }
}
