//! One repository's folder in the hub cache, laid out as `huggingface_hub` does.
//!
//! ```text
//! models--org--name/refs/<revision>              the commit a branch or tag stood for last time
//! models--org--name/blobs/<etag>                 content, named by its hash
//! models--org--name/snapshots/<commit>/<file>    links into blobs
//! .locks/models--org--name/<etag>.lock           held while a blob is written
//! ```

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use hf_hub::{Cache, CacheRepo, Repo};

use super::error::HubError;

/// The cached part of one repository at one revision.
pub(super) struct RepoCache {
    layout: CacheRepo,
    root: PathBuf,
    folder: String,
    revision: String,
}

impl RepoCache {
    pub(super) fn new(root: &Path, repo: &Repo) -> Self {
        Self {
            layout: Cache::new(root.to_owned()).repo(repo.clone()),
            root: root.to_owned(),
            folder: repo.folder_name(),
            revision: repo.revision().to_owned(),
        }
    }

    /// The cache that this repository lies in.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The commit that the revision stood for when it was last fetched.
    pub(super) fn commit(&self) -> Option<String> {
        if is_commit(&self.revision) {
            return Some(self.revision.clone());
        }
        let path = self.root.join(&self.folder).join("refs").join(&self.revision);
        let commit = fs::read_to_string(path).ok()?.trim().to_owned();
        is_commit(&commit).then_some(commit)
    }

    /// Makes the revision stand for `commit` from now on.
    pub(super) fn remember(&self, commit: &str) -> Result<(), HubError> {
        if self.revision == commit || self.commit().as_deref() == Some(commit) {
            return Ok(());
        }
        self.layout.create_ref(commit).map_err(HubError::io(self.root.join(&self.folder).join("refs")))
    }

    /// The folder of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.layout.pointer_path(commit)
    }

    /// Where content of this hash lies once it is whole.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.layout.blob_path(etag)
    }

    /// Where content of this hash lies while it is incomplete.
    pub(super) fn partial(&self, etag: &str) -> PathBuf {
        self.layout.blob_path(&format!("{etag}.incomplete"))
    }

    /// Waits until nobody else writes the blob; the lock ends with the returned file.
    ///
    /// It is the lock of the Python package, so the two do not write the same blob at the same time.
    pub(super) fn lock(&self, etag: &str) -> Result<File, HubError> {
        let path = self.root.join(".locks").join(&self.folder).join(format!("{etag}.lock"));
        make_parent(&path)?;
        make_parent(&self.blob(etag))?;
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(HubError::io(&path))?;
        match file.lock() {
            // Some network file systems have no locks; a lone user still wants the download.
            Err(error) if error.kind() != ErrorKind::Unsupported => Err(HubError::io(path)(error)),
            _ => Ok(file),
        }
    }

    /// Gives a whole blob its name in a commit's folder.
    pub(super) fn link(&self, etag: &str, commit: &str, file: &str) -> Result<PathBuf, HubError> {
        let pointer = self.snapshot(commit).join(file);
        if pointer.exists() {
            return Ok(pointer);
        }
        make_parent(&pointer)?;
        match fs::remove_file(&pointer) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(HubError::io(pointer)(error)),
            _ => {}
        }
        let up = "../".repeat(2 + file.matches('/').count());
        match link(&format!("{up}blobs/{etag}"), &self.blob(etag), &pointer) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(HubError::io(pointer)(error)),
            _ => Ok(pointer),
        }
    }
}

/// Whether the revision names a commit, which never moves.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Every file that a folder holds, as sorted paths relative to it; none for a folder that does not exist.
pub(super) fn files_below(folder: &Path) -> Vec<String> {
    let mut files = Vec::new();
    walk(folder, "", &mut files);
    files.sort();
    files
}

/// Whether a name from the hub stays inside the folder that it is joined to.
pub(super) fn is_inside(file: &str) -> bool {
    !file.is_empty()
        && !file.contains('\\')
        && Path::new(file).components().all(|part| matches!(part, Component::Normal(_)))
}

fn make_parent(path: &Path) -> Result<(), HubError> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(HubError::io(parent))
}

#[cfg(unix)]
fn link(relative: &str, _blob: &Path, pointer: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(relative, pointer)
}

/// Symbolic links need a privilege elsewhere; a second name for the same file needs none.
#[cfg(not(unix))]
fn link(_relative: &str, blob: &Path, pointer: &Path) -> std::io::Result<()> {
    fs::hard_link(blob, pointer).or_else(|_| fs::copy(blob, pointer).map(|_| ()))
}

fn walk(folder: &Path, prefix: &str, files: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&path, &format!("{prefix}{name}/"), files);
        } else if path.is_file() {
            files.push(format!("{prefix}{name}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hf_hub::RepoType;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn cache(root: &Path, revision: &str) -> RepoCache {
        RepoCache::new(root, &Repo::with_revision("org/name".into(), RepoType::Model, revision.into()))
    }

    #[test]
    fn a_linked_file_reads_as_its_blob_at_any_depth() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let cache = cache(root.path(), "main");
        let _lock = cache.lock("etag").expect("a lock");
        fs::write(cache.blob("etag"), "content").expect("a blob");
        for file in ["config.json", "a/b/c.txt"] {
            let pointer = cache.link("etag", COMMIT, file).expect("a link");
            assert_eq!(pointer, root.path().join("models--org--name/snapshots").join(COMMIT).join(file));
            assert_eq!(fs::read_to_string(pointer).expect("the blob's content"), "content");
        }
        assert_eq!(files_below(&cache.snapshot(COMMIT)), ["a/b/c.txt", "config.json"]);
    }

    #[test]
    fn a_link_to_a_deleted_blob_is_replaced() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let cache = cache(root.path(), "main");
        let _lock = cache.lock("old").expect("a lock");
        fs::write(cache.blob("old"), "old").expect("a blob");
        cache.link("old", COMMIT, "f").expect("a link");
        fs::remove_file(cache.blob("old")).expect("the blob goes");
        assert!(files_below(&cache.snapshot(COMMIT)).is_empty());
        fs::write(cache.blob("new"), "new").expect("a blob");
        let pointer = cache.link("new", COMMIT, "f").expect("a link");
        assert_eq!(fs::read_to_string(pointer).expect("the blob's content"), "new");
    }

    #[test]
    fn a_revision_stands_for_the_commit_that_was_remembered() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let branch = cache(root.path(), "refs/pr/1");
        assert_eq!(branch.commit(), None);
        branch.remember(COMMIT).expect("a reference");
        assert_eq!(branch.commit().as_deref(), Some(COMMIT));
        assert_eq!(cache(root.path(), COMMIT).commit().as_deref(), Some(COMMIT));
        assert!(!root.path().join("models--org--name/refs").join(COMMIT).exists());
    }

    #[test]
    fn names_that_leave_their_folder_are_seen() {
        for bad in ["", "/etc/passwd", "../x", "a/../../x", "./x", "a\\b"] {
            assert!(!is_inside(bad), "{bad:?}");
        }
        for good in ["config.json", "a/b.safetensors", "a..b"] {
            assert!(is_inside(good), "{good:?}");
        }
    }
}
