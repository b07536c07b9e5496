//! Publishing a folder: a repository, its large files by Git LFS, and one commit that names them all.
//!
//! The exchange is that of `huggingface_hub`: the repository is created, the hub says of each file whether it is kept by git or by
//! LFS (`preupload`), the content of the latter goes to where the LFS batch says, in parts where it is large, and one commit makes the
//! files appear together. Content that the hub has already, by its SHA-256, is not sent again: a push that broke off goes on where it
//! was. Nothing that others see changes before the commit.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hf_hub::{Repo, RepoType};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use ureq::http::Response;
use ureq::{Body, SendBody};

use super::Hub;
use super::error::HubError;
use super::name::RepoName;
use super::remote::{Fault, Remote, malformed, text};

/// Bytes of a file's start by which the hub tells texts from binaries.
const SAMPLE: usize = 512;
const LFS: &str = "application/vnd.git-lfs+json";
const JSON: &str = "application/json";
const LINES: &str = "application/x-ndjson";

/// How a folder is published.
#[derive(Clone, Debug)]
pub struct PushOptions {
    /// Whether everybody may see a repository that is created; one that is there stays as it is.
    pub public: bool,
    /// The commit's first line.
    pub message: String,
}

/// What was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The page of the repository.
    pub url: String,
    /// The commit.
    pub commit: String,
    /// Files of the commit.
    pub files: usize,
    /// Bytes that were sent, and bytes that the hub had already.
    pub sent: u64,
    /// See `sent`.
    pub known: u64,
}

/// Is told how uploads go.
pub trait UploadObserver {
    /// `file` of `bytes` is being hashed, and then sent.
    fn begin(&self, file: &str, bytes: u64);
    /// Further bytes of it are at the hub, or were there.
    fn advance(&self, bytes: u64);
}

/// A file to publish.
struct Item {
    name: String,
    path: PathBuf,
    bytes: u64,
    /// SHA-256, in hex.
    hash: String,
    /// In base64.
    sample: String,
    by_lfs: bool,
}

#[derive(Deserialize)]
struct Preupload {
    files: Vec<Mode>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mode {
    path: String,
    upload_mode: String,
    #[serde(default)]
    should_ignore: bool,
}

#[derive(Deserialize)]
struct Batch {
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    oid: String,
    #[serde(default)]
    actions: Option<Actions>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Actions {
    upload: Option<Action>,
    verify: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: String,
    #[serde(default)]
    header: serde_json::Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Committed {
    commit_oid: String,
}

impl Hub {
    /// Publishes files, under a name each, as the newest commit of `id`, `org/name` or with `@branch`.
    ///
    /// # Errors
    /// When the id is none, there is no token, the network is off, a file cannot be read, or the hub refuses; what it said is told.
    pub fn push(
        &self,
        files: &[(String, PathBuf)],
        id: &str,
        options: &PushOptions,
        observer: &dyn UploadObserver,
    ) -> Result<Pushed, HubError> {
        let RepoName { id, revision } = RepoName::parse(id)?;
        if self.settings.offline {
            return Err(HubError::Offline { id });
        }
        if self.settings.token.is_none() {
            return Err(HubError::NoToken { id });
        }
        let repo = Repo::with_revision(id.clone(), RepoType::Model, revision.clone());
        let remote = Remote::new(&self.settings, repo, &id);
        let mut items = Vec::with_capacity(files.len());
        for (name, path) in files {
            items.push(Item::read(name, path, observer)?);
        }
        remote.create(&id, options.public)?;
        remote.choose(&id, &revision, &mut items)?;
        let (mut sent, mut known) = (0, 0);
        for item in items.iter().filter(|item| item.by_lfs) {
            observer.begin(&item.name, item.bytes);
            match remote.upload(&id, item, observer)? {
                true => sent += item.bytes,
                false => {
                    known += item.bytes;
                    observer.advance(item.bytes);
                }
            }
        }
        let commit = remote.commit(&id, &revision, &items, &options.message)?;
        let plain = items.iter().filter(|item| !item.by_lfs).map(|item| item.bytes);
        sent += plain.sum::<u64>();
        let url = format!("{}/{id}", self.settings.endpoint);
        Ok(Pushed { url, commit, files: items.len(), sent, known })
    }
}

impl Item {
    fn read(name: &str, path: &Path, observer: &dyn UploadObserver) -> Result<Self, HubError> {
        let unreadable = |source| HubError::Unreadable { path: path.into(), source };
        let mut file = File::open(path).map_err(unreadable)?;
        let bytes = file.metadata().map_err(unreadable)?.len();
        observer.begin(name, bytes);
        let (mut digest, mut sample, mut buffer) = (Sha256::new(), Vec::new(), vec![0; 1 << 20]);
        loop {
            let count = file.read(&mut buffer).map_err(unreadable)?;
            if count == 0 {
                break;
            }
            digest.update(&buffer[..count]);
            sample.extend_from_slice(&buffer[..count.min(SAMPLE - sample.len())]);
        }
        let hash = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let sample = BASE64.encode(sample);
        Ok(Self { name: name.to_owned(), path: path.to_owned(), bytes, hash, sample, by_lfs: true })
    }
}

impl Remote<'_> {
    /// Makes the repository, unless it is there.
    fn create(&self, id: &str, public: bool) -> Result<(), HubError> {
        let url = format!("{}/api/repos/create", self.endpoint());
        let (organisation, name) = match id.split_once('/') {
            Some((organisation, name)) => (Some(organisation), name),
            None => (None, id),
        };
        let body = json!({ "name": name, "organization": organisation, "type": "model", "private": !public });
        match self.post(&url, JSON, body.to_string().as_bytes(), true) {
            Err(HubError::Refused { status: 409, .. }) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Asks which files git keeps itself.
    fn choose(&self, id: &str, revision: &str, items: &mut Vec<Item>) -> Result<(), HubError> {
        let url = format!("{}/api/models/{id}/preupload/{}", self.endpoint(), revision.replace('/', "%2F"));
        let files: Vec<Value> = items
            .iter()
            .map(|item| json!({ "path": item.name, "sample": item.sample, "size": item.bytes }))
            .collect();
        let answer: Preupload =
            self.asked(&url, JSON, &json!({ "files": files }), "a way for each file to be uploaded")?;
        for item in items.iter_mut() {
            let mode = answer.files.iter().find(|mode| mode.path == item.name);
            item.by_lfs = mode.is_none_or(|mode| mode.upload_mode == "lfs");
        }
        let ignored = |name: &str| answer.files.iter().any(|mode| mode.path == name && mode.should_ignore);
        items.retain(|item| !ignored(&item.name));
        Ok(())
    }

    /// Sends a file's content, unless the hub has it; whether it was sent.
    fn upload(&self, id: &str, item: &Item, observer: &dyn UploadObserver) -> Result<bool, HubError> {
        let url = format!("{}/{id}.git/info/lfs/objects/batch", self.endpoint());
        let body = json!({
            "operation": "upload",
            "transfers": ["basic", "multipart"],
            "hash_algo": "sha256",
            "objects": [{ "oid": item.hash, "size": item.bytes }],
        });
        let answer: Batch = self.asked(&url, LFS, &body, "where a file is to go")?;
        let object = answer.objects.into_iter().find(|object| object.oid == item.hash);
        let object = object.ok_or_else(|| malformed(&url, "the file that was asked about", "none").error)?;
        if let Some(error) = object.error {
            return Err(HubError::Refused { url, status: 200, message: error.to_string() });
        }
        let Some(Actions { upload: Some(upload), verify }) = object.actions else { return Ok(false) };
        let chunk = upload.header.get("chunk_size").and_then(|size| match size {
            Value::String(size) => size.parse().ok(),
            size => size.as_u64(),
        });
        match chunk {
            None => {
                self.put(&upload.href, &upload.header, item, 0..item.bytes)?;
                observer.advance(item.bytes);
            }
            Some(chunk) => self.parts(&upload, chunk, item, observer)?,
        }
        if let Some(verify) = verify {
            let body = json!({ "oid": item.hash, "size": item.bytes });
            // It is the hub's own: the token goes along if it is.
            let own = verify.href.starts_with(&format!("{}/", self.endpoint()));
            self.post(&verify.href, LFS, body.to_string().as_bytes(), own)?;
        }
        Ok(true)
    }

    /// Sends a file in parts and says that they are all.
    fn parts(
        &self,
        upload: &Action,
        chunk: u64,
        item: &Item,
        observer: &dyn UploadObserver,
    ) -> Result<(), HubError> {
        let count = item.bytes.div_ceil(chunk.max(1));
        let mut parts = Vec::new();
        for part in 1..=count {
            // Numbered from 1, with zeros before or without.
            let of_part = |(key, value): (&String, &Value)| {
                (key.parse() == Ok(part)).then(|| value.as_str().map(str::to_owned)).flatten()
            };
            let href = upload.header.iter().find_map(of_part);
            let href = href.ok_or_else(|| malformed(&upload.href, "an address for each part", part).error)?;
            let range = (part - 1) * chunk..(part * chunk).min(item.bytes);
            let bytes = range.end - range.start;
            let etag = self.put(&href, &serde_json::Map::new(), item, range)?;
            let etag = etag.ok_or_else(|| malformed(&href, "an etag of the part", "none").error)?;
            parts.push(json!({ "partNumber": part, "etag": etag }));
            observer.advance(bytes);
        }
        let body = json!({ "oid": item.hash, "parts": parts });
        let own = upload.href.starts_with(&format!("{}/", self.endpoint()));
        self.post(&upload.href, LFS, body.to_string().as_bytes(), own).map(drop)
    }

    /// Puts bytes of a file where the hub said, with the headers that it gave and no token; the etag of what is there then.
    fn put(
        &self,
        href: &str,
        headers: &serde_json::Map<String, Value>,
        item: &Item,
        range: std::ops::Range<u64>,
    ) -> Result<Option<String>, HubError> {
        let unreadable = |source| HubError::Unreadable { path: item.path.clone(), source };
        self.persist(self.retries(), || {
            let fault = |source| Fault::never(unreadable(source));
            let mut file = File::open(&item.path).map_err(fault)?;
            file.seek(SeekFrom::Start(range.start)).map_err(fault)?;
            let bytes = range.end - range.start;
            let mut request = self.put_request(href).header("content-length", bytes.to_string());
            for (name, value) in headers {
                if let Some(value) = value.as_str() {
                    request = request.header(name.as_str(), value);
                }
            }
            let mut content = file.take(bytes);
            let response = request.send(SendBody::from_reader(&mut content));
            let response = self.answered(response, href, None)?;
            Ok(text(&response, "etag").map(str::to_owned))
        })
    }

    /// Makes all files appear together; the commit.
    fn commit(&self, id: &str, revision: &str, items: &[Item], message: &str) -> Result<String, HubError> {
        let url = format!("{}/api/models/{id}/commit/{}", self.endpoint(), revision.replace('/', "%2F"));
        let mut lines = vec![json!({ "key": "header", "value": { "summary": message, "description": "" } })];
        for item in items {
            let value = match item.by_lfs {
                true => json!({ "path": item.name, "algo": "sha256", "oid": item.hash, "size": item.bytes }),
                false => {
                    let unreadable = |source| HubError::Unreadable { path: item.path.clone(), source };
                    let content = std::fs::read(&item.path).map_err(unreadable)?;
                    json!({ "path": item.name, "content": BASE64.encode(content), "encoding": "base64" })
                }
            };
            lines.push(json!({ "key": if item.by_lfs { "lfsFile" } else { "file" }, "value": value }));
        }
        let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let answer = self.post(&url, LINES, body.as_bytes(), true)?;
        let committed: Committed = parsed(&url, answer, "a commit")?;
        Ok(committed.commit_oid)
    }

    fn asked<T: for<'a> Deserialize<'a>>(
        &self,
        url: &str,
        kind: &str,
        body: &Value,
        expected: &'static str,
    ) -> Result<T, HubError> {
        parsed(url, self.post(url, kind, body.to_string().as_bytes(), true)?, expected)
    }

    /// Posts a body and reads the answer; the token goes to the hub itself only.
    fn post(&self, url: &str, kind: &str, body: &[u8], own: bool) -> Result<Vec<u8>, HubError> {
        self.persist(self.retries(), || {
            let request =
                self.post_request(url, own).header("content-type", kind).header("accept", kind_of(kind));
            let mut response: Response<Body> = self.answered(request.send(body), url, None)?;
            response.body_mut().read_to_vec().map_err(|error| self.network_fault(error))
        })
    }
}

/// What is asked for in answer to a body of some kind.
fn kind_of(kind: &str) -> &str {
    if kind == LINES { JSON } else { kind }
}

fn parsed<T: for<'a> Deserialize<'a>>(
    url: &str,
    answer: Vec<u8>,
    expected: &'static str,
) -> Result<T, HubError> {
    serde_json::from_slice(&answer).map_err(|error| malformed(url, expected, error).error)
}
