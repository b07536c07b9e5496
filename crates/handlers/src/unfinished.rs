//! Folders that are worth nothing until they are finished, and go when the process is told to end.
//!
//! A signal ends a process at any moment, and no destructor runs. Whoever handles it calls [`remove_unfinished`] first.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::Error;
use crate::sibling::GOING;

static FOLDERS: Mutex<Folders> = Mutex::new(Folders { paths: BTreeSet::new(), over: false });

struct Folders {
    paths: BTreeSet<PathBuf>,
    /// The process is about to end: nothing is begun or finished any more.
    over: bool,
}

/// A folder that is removed when this is dropped, or when the process is told to end.
#[derive(Debug)]
pub struct Unfinished {
    path: PathBuf,
}

impl Unfinished {
    /// Takes charge of a folder that is there.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let mut folders = folders();
        if folders.over {
            // Nobody will come to remove it.
            drop(std::fs::remove_dir_all(&path));
        } else {
            folders.paths.insert(path.clone());
        }
        Self { path }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Finishes the folder by moving it somewhere else. The process does not end for a signal meanwhile: it is done before, or
    /// not at all.
    ///
    /// # Errors
    /// As `publish`; or when the process is about to end, and the folder gone.
    pub fn finish<T>(self, publish: impl FnOnce(&Path) -> Result<T, Error>) -> Result<T, Error> {
        let folders = folders();
        if folders.over {
            let source = std::io::Error::from(std::io::ErrorKind::Interrupted);
            return Err(Error::Io { action: "finish", path: self.path.clone(), source });
        }
        let published = publish(&self.path);
        // Unlocked before this is dropped, which locks again.
        drop(folders);
        published
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let mut folders = folders();
        folders.paths.remove(&self.path);
        // After a publish the path is gone and there is nothing to remove; on a failure the first error is the one that counts.
        drop(std::fs::remove_dir_all(&self.path));
    }
}

/// Removes every unfinished folder of this process, and keeps any from being finished: for a process that ends at once.
pub fn remove_unfinished() {
    let mut folders = folders();
    folders.over = true;
    for path in std::mem::take(&mut folders.paths) {
        // Under another name first: other threads still write into it, and would make files anew while it is emptied.
        let going = path.with_extension(GOING);
        let gone = match std::fs::rename(&path, &going) {
            Ok(()) => std::fs::remove_dir_all(&going),
            Err(_) => std::fs::remove_dir_all(&path),
        };
        // There is nobody to tell, and nothing else to be done.
        drop(gone);
    }
}

fn folders() -> MutexGuard<'static, Folders> {
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner)
}
