//! One file from the hub into the cache, going on where an earlier attempt stopped.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::DownloadObserver;
use super::cache::RepoCache;
use super::error::HubError;
use super::remote::{Fault, FileMeta, Remote, Retry, number, text};

const CHUNK_BYTES: usize = 1 << 16;

/// Makes sure that `file` of `commit` is in the cache; returns where.
///
/// # Errors
/// Whatever the hub refuses, a line that stays broken, content that does not match its hash, a full disk.
pub(super) fn download(
    remote: &Remote<'_>,
    cache: &RepoCache,
    commit: &str,
    file: &str,
    observer: &dyn DownloadObserver,
) -> Result<PathBuf, HubError> {
    let pointer = cache.snapshot(commit).join(file);
    if pointer.exists() {
        return Ok(pointer);
    }
    let meta = remote.meta(commit, file)?;
    let _lock = cache.lock(&meta.etag)?;
    let blob = cache.blob(&meta.etag);
    if !blob.exists() {
        let partial = cache.partial(&meta.etag);
        Transfer { remote, commit, file, meta: &meta, observer }.run(&partial)?;
        fs::rename(&partial, &blob).map_err(HubError::io(&blob))?;
    }
    cache.link(&meta.etag, commit, file)
}

/// One file on its way.
struct Transfer<'a> {
    remote: &'a Remote<'a>,
    commit: &'a str,
    file: &'a str,
    meta: &'a FileMeta,
    observer: &'a dyn DownloadObserver,
}

impl Transfer<'_> {
    /// Fills the part file, checks it, and leaves it synced to the disk.
    fn run(&self, path: &Path) -> Result<(), HubError> {
        let mut part = Part::open(path)?;
        if self.meta.bytes.is_some_and(|bytes| part.bytes > bytes) {
            part.restart()?;
        }
        self.begin(&part);
        self.complete(&mut part)?;
        // A part of an earlier attempt may be to blame; content that is fresh from the first byte is not.
        if part.mismatch(self.meta).is_some() {
            part.restart()?;
            self.begin(&part);
            self.complete(&mut part)?;
        }
        if let Some((expected, found)) = part.mismatch(self.meta) {
            part.restart()?;
            return Err(HubError::Corrupt { file: self.file.to_owned(), expected, found });
        }
        part.file.sync_all().map_err(HubError::io(path))?;
        self.observer.end();
        Ok(())
    }

    /// Fetches until the last byte is there or the line stays broken.
    fn complete(&self, part: &mut Part) -> Result<(), HubError> {
        let mut failures = 0;
        loop {
            let before = part.bytes;
            let Err(fault) = self.extend(part) else { return Ok(()) };
            failures = if part.bytes > before { 0 } else { failures + 1 };
            if fault.retry == Retry::Never || failures > self.remote.retries() {
                return Err(self.give_up(fault, part.bytes));
            }
            self.remote.pause(failures);
        }
    }

    fn begin(&self, part: &Part) {
        self.observer.begin(self.file, self.meta.bytes.unwrap_or(0));
        self.observer.advance(part.bytes);
    }

    fn give_up(&self, fault: Fault, received_bytes: u64) -> HubError {
        match fault.error {
            HubError::Unreachable { reason, .. } if received_bytes > 0 => {
                HubError::Interrupted { file: self.file.to_owned(), received_bytes, reason }
            }
            error => error,
        }
    }

    /// Asks for what is missing and appends it.
    fn extend(&self, part: &mut Part) -> Result<(), Fault> {
        if self.meta.bytes == Some(part.bytes) {
            return Ok(());
        }
        let response = self.remote.open(self.commit, self.file, part.bytes)?;
        match response.status().as_u16() {
            206 if range_start(text(&response, "content-range")) == Some(part.bytes) => {}
            // The server sends the whole file, another part of it, or has no such bytes: only the first is of
            // use now.
            status => {
                if part.bytes > 0 {
                    part.restart().map_err(never)?;
                    self.begin(part);
                }
                if status != 200 {
                    let found = format!("HTTP {status} to a request for a range");
                    let error =
                        HubError::Malformed { from: self.file.to_owned(), expected: "its bytes", found };
                    return Err(Fault { error, retry: Retry::Worthwhile });
                }
            }
        }
        let total = self.meta.bytes.or_else(|| Some(part.bytes + number(&response, "content-length")?));
        let mut reader = response.into_body().into_reader();
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let read = match reader.read(&mut chunk) {
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.broken(error)),
            };
            if read == 0 {
                break;
            }
            part.append(&chunk[..read]).map_err(never)?;
            self.observer.advance(read as u64);
        }
        match total {
            Some(total) if part.bytes < total => {
                Err(self.broken(format!("connection closed {} bytes early", total - part.bytes)))
            }
            _ => Ok(()),
        }
    }

    fn broken(&self, reason: impl ToString) -> Fault {
        Fault { error: self.remote.unreachable(reason), retry: Retry::Worthwhile }
    }
}

/// A trouble of this machine's disk, which no retry mends.
fn never(error: HubError) -> Fault {
    Fault { error, retry: Retry::Never }
}

/// A growing file and the hash of what it holds.
struct Part {
    path: PathBuf,
    file: File,
    bytes: u64,
    hash: Sha256,
}

impl Part {
    /// Takes up what an earlier attempt left.
    fn open(path: &Path) -> Result<Self, HubError> {
        let open = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = open.map_err(HubError::io(path))?;
        let mut hash = Sha256::new();
        let mut bytes = 0;
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let read = file.read(&mut chunk).map_err(HubError::io(path))?;
            if read == 0 {
                break;
            }
            hash.update(&chunk[..read]);
            bytes += read as u64;
        }
        Ok(Self { path: path.to_owned(), file, bytes, hash })
    }

    fn append(&mut self, chunk: &[u8]) -> Result<(), HubError> {
        self.file.write_all(chunk).map_err(HubError::io(&self.path))?;
        self.hash.update(chunk);
        self.bytes += chunk.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> Result<(), HubError> {
        self.file.set_len(0).map_err(HubError::io(&self.path))?;
        self.file.seek(SeekFrom::Start(0)).map_err(HubError::io(&self.path))?;
        self.hash = Sha256::new();
        self.bytes = 0;
        Ok(())
    }

    /// What was announced and what is here, where they differ.
    ///
    /// Only large files are announced with a SHA-256; the others are held to their size.
    fn mismatch(&self, meta: &FileMeta) -> Option<(String, String)> {
        if let Some(bytes) = meta.bytes.filter(|bytes| *bytes != self.bytes) {
            return Some((format!("{bytes} bytes"), format!("{} bytes", self.bytes)));
        }
        let is_sha256 = meta.etag.len() == 64 && meta.etag.bytes().all(|b| b.is_ascii_hexdigit());
        let found = is_sha256.then(|| hex(&self.hash.clone().finalize()))?;
        (!found.eq_ignore_ascii_case(&meta.etag)).then(|| (meta.etag.clone(), found))
    }
}

/// The first byte of a `content-range: bytes 5-9/10`.
fn range_start(header: Option<&str>) -> Option<u64> {
    header?.trim().strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA256_OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn meta(etag: &str, bytes: u64) -> FileMeta {
        FileMeta { etag: etag.to_owned(), bytes: Some(bytes) }
    }

    #[test]
    fn a_part_taken_up_again_hashes_like_one_written_at_once() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("part");
        Part::open(&path).and_then(|mut part| part.append(b"ab")).expect("a part");
        let mut part = Part::open(&path).expect("the part again");
        assert_eq!(part.bytes, 2);
        part.append(b"c").expect("the rest");
        assert_eq!(part.mismatch(&meta(SHA256_OF_ABC, 3)), None);
        assert_eq!(fs::read(&path).expect("the content"), b"abc");
    }

    #[test]
    fn a_wrong_size_and_a_wrong_hash_are_both_mismatches() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut part = Part::open(&folder.path().join("part")).expect("a part");
        part.append(b"abd").expect("three bytes");
        assert_eq!(part.mismatch(&meta("git-sha1", 4)), Some(("4 bytes".into(), "3 bytes".into())));
        assert_eq!(part.mismatch(&meta("git-sha1", 3)), None);
        assert!(part.mismatch(&meta(SHA256_OF_ABC, 3)).is_some());
    }

    #[test]
    fn a_content_range_says_where_its_bytes_start() {
        assert_eq!(range_start(Some("bytes 5-9/10")), Some(5));
        assert_eq!(range_start(Some("bytes */10")), None);
        assert_eq!(range_start(None), None);
    }
}
