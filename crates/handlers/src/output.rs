//! An output folder that appears whole or not at all.
//!
//! Everything is written to a [sibling](crate::sibling), synced, and renamed. A conversion that fails or is told to end removes
//! the sibling; one that is killed leaves it to the next that writes the same output. What could be refused is refused when
//! the output is prepared, before any work is done.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use crate::carried::carried;
use crate::config_json::ConfigJson;
use crate::error::Error;
use crate::folder::{RECORD, is_kind};
use crate::sibling;
use crate::unfinished::Unfinished;

/// What to do with a folder that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Leave it and fail.
    Keep,
    /// Replace it once the new one is complete, if it is empty or holds nothing but what shrink wrote.
    Replace,
}

/// A folder being written.
#[derive(Debug)]
pub struct Output {
    out: PathBuf,
    staging: Unfinished,
    existing: Existing,
    /// Tells other processes that the sibling has an owner; `None` where the file system has no locks.
    _lock: Option<File>,
}

impl Output {
    /// As [`prepare_beside`](Self::prepare_beside) a donor alone.
    ///
    /// # Errors
    /// As there.
    pub fn prepare(out: &Path, existing: Existing, donor: &Path) -> Result<Self, Error> {
        Self::prepare_beside(out, existing, donor, &[])
    }

    /// Checks the place and makes the sibling that will become the folder. What dead processes left beside it goes.
    ///
    /// `inputs` are files and folders that the same command reads or keeps; those that are not there are no input.
    ///
    /// # Errors
    /// When the place exists and may not be replaced, overlaps `donor`, is or holds one of `inputs`, has no name of its own
    /// (`.`, `..`, `/`), or the sibling cannot be made; when a file of the donor that would be carried along may not be.
    pub fn prepare_beside(
        out: &Path,
        existing: Existing,
        donor: &Path,
        inputs: &[PathBuf],
    ) -> Result<Self, Error> {
        let refuse = |reason: String| Error::OutputRefused { path: out.into(), reason };
        let Some(Component::Normal(name)) = out.components().next_back() else {
            return Err(refuse("is no name for a new folder".into()));
        };
        let parent = parent(out);
        sibling::sweep(parent, name, out);
        if out.exists() {
            match existing {
                Existing::Keep => return Err(Error::OutputExists { path: out.into() }),
                Existing::Replace => foreign(out).map_or(Ok(()), |reason| Err(refuse(reason)))?,
            }
        }
        std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        let place = parent.canonicalize().map_err(Error::io("create", parent))?.join(name);
        if let Ok(donor) = donor.canonicalize()
            && (donor.starts_with(&place) || place.starts_with(&donor))
        {
            return Err(refuse("overlaps the donor's folder".into()));
        }
        // It may be a link to where an input lies.
        let place = place.canonicalize().unwrap_or(place);
        let inside = |input: &&PathBuf| input.canonicalize().is_ok_and(|input| input.starts_with(&place));
        if let Some(input) = inputs.iter().find(inside) {
            return Err(refuse(format!("is or holds {}, which this command needs", input.display())));
        }
        if donor.is_dir() {
            carried(donor)?;
        }
        let (staging, lock) = sibling::make(parent, name)?;
        Ok(Self { out: out.into(), staging: Unfinished::new(staging), existing, _lock: lock })
    }

    /// Where to write until the folder is published.
    pub(crate) fn path(&self) -> &Path {
        self.staging.path()
    }

    /// Writes and syncs one file.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.path().join(name);
        let mut file = File::create(&path).map_err(Error::io("create", &path))?;
        file.write_all(bytes).map_err(Error::io("write", &path))?;
        file.sync_all().map_err(Error::io("sync", &path))
    }

    /// Renames the sibling into place; a folder that is to be replaced is moved aside first and removed last.
    pub(crate) fn publish(self) -> Result<(), Error> {
        let Self { out, staging, existing, _lock } = self;
        staging.finish(|staging| {
            let aside = staging.with_extension(sibling::REPLACED);
            let replaces = out.exists();
            let mut _held = None;
            if replaces {
                // Somebody else may have made it, or put something into it, since it was checked.
                if existing == Existing::Keep {
                    return Err(Error::OutputExists { path: out.clone() });
                }
                if let Some(reason) = foreign(&out) {
                    return Err(Error::OutputRefused { path: out.clone(), reason });
                }
                _held = sibling::hold(&out);
                std::fs::rename(&out, &aside).map_err(Error::io("move aside", &out))?;
            }
            if let Err(source) = std::fs::rename(staging, &out) {
                if replaces {
                    std::fs::rename(&aside, &out).map_err(Error::io("restore", &out))?;
                }
                return Err(match out.exists() {
                    true => Error::OutputExists { path: out.clone() },
                    false => Error::Io { action: "rename", path: out.clone(), source },
                });
            }
            if replaces {
                match std::fs::remove_dir_all(&aside) {
                    Err(source) if source.kind() != ErrorKind::NotFound => {
                        return Err(Error::Io { action: "remove", path: aside, source });
                    }
                    _ => {}
                }
            }
            sync(parent(&out))
        })
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

/// Why a folder is never replaced, however sure the user is: something in it is not shrink's. `None` for an empty one, and for
/// one whose files are all listed in its `shrink.json`; where that has no list, as in older folders, for one whose files all have
/// names that shrink gives.
fn foreign(out: &Path) -> Option<String> {
    let Ok(entries) = std::fs::read_dir(out) else { return Some("is no folder that can be read".into()) };
    let entries: Vec<_> = entries.collect();
    if entries.is_empty() {
        return None;
    }
    let Ok(record) = ConfigJson::read(&out.join(RECORD)) else {
        return Some(format!("has no {RECORD} and is not empty: shrink did not write it"));
    };
    let listed = record.get("files").and_then(Value::as_array);
    let is_ours = |name: &str| match listed {
        Some(files) => files.iter().any(|file| file == name),
        None => is_kind(name),
    };
    let not_ours = entries.into_iter().find_map(|entry| {
        let Ok(entry) = entry else { return Some("a file that cannot be read".into()) };
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        (!is_file || !is_ours(&name)).then_some(name)
    });
    not_ours.map(|name| format!("holds {name}, which shrink did not write"))
}
