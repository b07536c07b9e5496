//! An output folder that appears whole or not at all.
//!
//! Everything is written to a sibling, synced, and renamed. A failed conversion removes the sibling; one that is killed
//! leaves it (`.NAME.PID-N.partial`), and it can be deleted. What could be refused is refused when the output is
//! prepared, before any work is done.

use std::fs::File;
use std::io::Write;
use std::path::{Component, Path, PathBuf};

use crate::config_json::ConfigJson;
use crate::error::Error;

/// What to do with a folder that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Leave it and fail.
    Keep,
    /// Replace it once the new one is complete, if it is empty or was written by shrink.
    Replace,
}

/// A folder being written.
#[derive(Debug)]
pub struct Output {
    out: PathBuf,
    staging: PathBuf,
    existing: Existing,
}

impl Output {
    /// Checks the place and makes the sibling that will become the folder.
    ///
    /// # Errors
    /// When the place exists and may not be replaced, overlaps `donor`, has no name of its own (`.`, `..`, `/`), or the
    /// sibling cannot be made.
    pub fn prepare(out: &Path, existing: Existing, donor: &Path) -> Result<Self, Error> {
        let refuse = |reason: &str| Error::OutputRefused { path: out.into(), reason: reason.into() };
        let Some(Component::Normal(name)) = out.components().next_back() else {
            return Err(refuse("is no name for a new folder"));
        };
        if out.exists() {
            match existing {
                Existing::Keep => return Err(Error::OutputExists { path: out.into() }),
                Existing::Replace if is_ours(out) => {}
                Existing::Replace => return Err(refuse("was not written by shrink and is not empty")),
            }
        }
        let parent = parent(out);
        std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        let place = parent.canonicalize().map_err(Error::io("create", parent))?.join(name);
        if let Ok(donor) = donor.canonicalize()
            && (donor.starts_with(&place) || place.starts_with(&donor))
        {
            return Err(refuse("overlaps the donor's folder"));
        }
        Ok(Self { out: out.into(), staging: make_sibling(parent, &name.to_string_lossy())?, existing })
    }

    /// Where to write until the folder is published.
    pub(crate) fn path(&self) -> &Path {
        &self.staging
    }

    /// Writes and syncs one file.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.staging.join(name);
        let mut file = File::create(&path).map_err(Error::io("create", &path))?;
        file.write_all(bytes).map_err(Error::io("write", &path))?;
        file.sync_all().map_err(Error::io("sync", &path))
    }

    /// Renames the sibling into place; a folder that is to be replaced is moved aside first and removed last.
    pub(crate) fn publish(self) -> Result<(), Error> {
        let aside = self.staging.with_extension("replaced");
        let replaces = self.out.exists();
        if replaces {
            // Somebody else may have made it since it was checked.
            if self.existing == Existing::Keep {
                return Err(Error::OutputExists { path: self.out.clone() });
            }
            std::fs::rename(&self.out, &aside).map_err(Error::io("move aside", &self.out))?;
        }
        if let Err(source) = std::fs::rename(&self.staging, &self.out) {
            if replaces {
                std::fs::rename(&aside, &self.out).map_err(Error::io("restore", &self.out))?;
            }
            return Err(match self.out.exists() {
                true => Error::OutputExists { path: self.out.clone() },
                false => Error::Io { action: "rename", path: self.out.clone(), source },
            });
        }
        if replaces {
            std::fs::remove_dir_all(&aside).map_err(Error::io("remove", &aside))?;
        }
        sync(parent(&self.out))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // After a publish the path is gone and there is nothing to remove; on a failure the first error is the one
        // that counts.
        drop(std::fs::remove_dir_all(&self.staging));
    }
}

/// Flushes a file or folder to the disk.
pub(crate) fn sync(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|file| file.sync_all()).map_err(Error::io("sync", path))
}

fn parent(out: &Path) -> &Path {
    match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// An empty folder, or one with an `mla` section: nothing else is ever replaced, however sure the user is.
fn is_ours(path: &Path) -> bool {
    let is_empty = std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    is_empty || ConfigJson::read(&path.join("config.json")).is_ok_and(|config| config.get("mla").is_some())
}

/// A new folder: process ids repeat in containers, so a number makes the name unique.
fn make_sibling(parent: &Path, name: &str) -> Result<PathBuf, Error> {
    let mut number = 0;
    loop {
        let path = parent.join(format!(".{name}.{}-{number}.partial", std::process::id()));
        match std::fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
            Err(source) => return Err(Error::Io { action: "create", path, source }),
        }
    }
}
