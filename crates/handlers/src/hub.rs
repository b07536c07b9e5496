//! Finding a model: a local folder, or a repository of the Hugging Face hub fetched into the shared cache.
//!
//! [`Hub::resolve`] is the one way from what a user typed to a folder; whatever opens models takes it from
//! there. Files land in the cache of the Python package, in its layout, so neither fetches what the other
//! already has.

mod cache;
mod dataset;
mod download;
mod error;
mod name;
mod remote;
mod settings;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use hf_hub::{Repo, RepoType};

use cache::{RepoCache, is_commit, is_inside};
use download::download;
use name::{RepoName, is_path};
use remote::Remote;

pub use error::HubError;
pub use settings::{DEFAULT_ENDPOINT, HubSettings};

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const WEIGHTS: &str = "model.safetensors";
const WEIGHTS_INDEX: &str = "model.safetensors.index.json";
/// Files that are taken along where a repository has them.
const OPTIONAL: [&str; 6] = [
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "shrink.json",
];
const SAFETENSORS: &str = ".safetensors";
/// How files of weights end that are not safetensors.
const OTHER_WEIGHTS: [&str; 9] =
    [".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".npz"];

/// How much of a model a command needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// `config.json` alone: enough to describe a model and to compute its cache.
    ConfigOnly,
    /// Configuration, tokenizer and weights.
    Everything,
}

/// A model's folder on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFolder {
    /// The folder that holds `config.json` and whatever else was needed.
    pub path: PathBuf,
    /// The hub id, `org/name`; `None` for a local folder.
    pub id: Option<String>,
    /// The commit that the files are of; `None` for a local folder.
    pub revision: Option<String>,
}

/// Is told how downloads go; `()` listens to nothing.
///
/// Files come one after the other. A file that is already in the cache is not mentioned.
pub trait DownloadObserver: Sync {
    /// `file` of `bytes` in all (0 when the hub does not say) is being fetched, from its first byte.
    ///
    /// Called again for the same file when its first bytes turn out to be of no use.
    fn begin(&self, file: &str, bytes: u64);
    /// Further `bytes` of the file are on the disk; bytes that an earlier attempt left count as well.
    fn advance(&self, bytes: u64);
    /// The file is whole. Not called for a file that fails.
    fn end(&self);
}

impl DownloadObserver for () {
    fn begin(&self, _file: &str, _bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn end(&self) {}
}

/// The Hugging Face hub and the cache of its files.
#[derive(Debug, Clone)]
pub struct Hub {
    settings: HubSettings,
}

impl Hub {
    /// A hub reached with these settings; nothing is read or asked yet.
    pub fn new(settings: HubSettings) -> Self {
        Self { settings }
    }

    /// A hub reached as the process's environment says ([`HubSettings::from_env`]).
    pub fn from_env() -> Self {
        Self::new(HubSettings::from_env())
    }

    /// Finds `model`, a local folder or a hub id `org/name[@revision]`, and fetches what is needed of it.
    ///
    /// What exists on the disk is local, as is whatever starts with `.`, `/` or `~` or has more than one
    /// slash. A branch or tag is looked up at the hub each time, its files are fetched once; a full commit
    /// hash that is cached needs no network, and neither does anything cached when the hub is offline or
    /// unreachable.
    ///
    /// # Errors
    /// A folder, repository, revision or file that does not exist or is not for this user; weights that are
    /// not safetensors; a network that is off with nothing in the cache, or does not answer; content that
    /// arrives corrupt.
    pub fn resolve(
        &self,
        model: &str,
        need: Need,
        observer: &dyn DownloadObserver,
    ) -> Result<ModelFolder, HubError> {
        if is_path(model) {
            return local(Path::new(model), need);
        }
        let at = RepoName::parse(model)?;
        let access = Access::new(&self.settings, &at, RepoType::Model)?;
        let commit = access.fetch(
            |folder| missing(folder, need),
            |commit, names| access.fetch_model(commit, names, need, observer),
        )?;
        Ok(ModelFolder { path: access.cache.snapshot(&commit), id: Some(at.id), revision: Some(commit) })
    }

    /// Fetches the parquet files of a data set's split, in the order of their names.
    ///
    /// `repo` is `org/name[@revision]`; old single names such as `wikitext` lead where the hub redirects
    /// them. A data set without subsets has the subset `default`, which may also be written as an empty
    /// string.
    ///
    /// # Errors
    /// As for [`Hub::resolve`]; a subset or split that has no parquet files.
    pub fn dataset_files(
        &self,
        repo: &str,
        subset: &str,
        split: &str,
        observer: &dyn DownloadObserver,
    ) -> Result<Vec<PathBuf>, HubError> {
        let at = RepoName::parse(repo)?;
        let access = Access::new(&self.settings, &at, RepoType::Dataset)?;
        let pick = |names: &[String]| dataset::pick(names, subset, split);
        let cached = |folder: &Path| {
            let names = cache::files_below(folder);
            let picked = pick(&names);
            (!dataset::is_complete(&picked)).then(|| format!("the {split} split of {subset:?}"))
        };
        let commit = access.fetch(cached, |commit, names| {
            let picked = pick(names);
            if picked.is_empty() {
                let (id, subset, split) = (at.id.clone(), subset.to_owned(), split.to_owned());
                return Err(HubError::NoSplit { id, subset, split, found: dataset::outline(names) });
            }
            picked.iter().try_for_each(|file| access.fetch_file(commit, file, observer))
        })?;
        let folder = access.cache.snapshot(&commit);
        Ok(pick(&cache::files_below(&folder)).iter().map(|file| folder.join(file)).collect())
    }
}

/// One repository: its name, its part of the cache, and the line to the hub.
struct Access<'a> {
    at: &'a RepoName,
    offline: bool,
    cache: RepoCache,
    remote: Remote<'a>,
}

impl<'a> Access<'a> {
    fn new(settings: &'a HubSettings, at: &'a RepoName, kind: RepoType) -> Result<Self, HubError> {
        let repo = Repo::with_revision(at.id.clone(), kind, at.revision.clone());
        let root = settings.cache.as_ref().ok_or(HubError::NoCacheFolder)?;
        let cache = RepoCache::new(root, &repo);
        let remote = Remote::new(settings, repo, &at.id);
        Ok(Self { at, offline: settings.offline, cache, remote })
    }

    /// Brings a commit's files into the cache and returns the commit.
    ///
    /// `missing` names the first needed file that a cached folder lacks; `fetch` gets a commit and the names
    /// of its files.
    fn fetch(
        &self,
        missing: impl Fn(&Path) -> Option<String>,
        fetch: impl FnOnce(&str, &[String]) -> Result<(), HubError>,
    ) -> Result<String, HubError> {
        let cached = self.cache.commit();
        let lacks = missing(&self.cache.snapshot(cached.as_deref().unwrap_or("none")));
        if let (Some(commit), None) = (&cached, &lacks)
            && (self.offline || is_commit(&self.at.revision))
        {
            return Ok(commit.clone());
        }
        if self.offline {
            return Err(HubError::NotCached {
                id: self.at.id.clone(),
                revision: self.at.revision.clone(),
                file: lacks.unwrap_or_default(),
                cache: self.cache.root().to_owned(),
            });
        }
        let info = match (self.remote.info(), cached, lacks) {
            (Ok(info), ..) => info,
            // A cached copy serves when the hub cannot be asked for a newer one.
            (Err(HubError::Unreachable { .. }), Some(commit), None) => return Ok(commit),
            (Err(error), ..) => return Err(error),
        };
        let names: Vec<String> = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        fetch(&info.sha, &names)?;
        self.cache.remember(&info.sha)?;
        Ok(info.sha)
    }

    fn fetch_file(&self, commit: &str, file: &str, observer: &dyn DownloadObserver) -> Result<(), HubError> {
        if !is_inside(file) {
            let (from, found) = (self.at.id.clone(), file.to_owned());
            return Err(HubError::Malformed { from, expected: "a file inside the repository", found });
        }
        download(&self.remote, &self.cache, commit, file, observer).map(|_| ())
    }

    /// Small files first, so that a model that cannot be used says so before its weights are fetched.
    fn fetch_model(
        &self,
        commit: &str,
        names: &[String],
        need: Need,
        observer: &dyn DownloadObserver,
    ) -> Result<(), HubError> {
        let has = |file: &str| names.iter().any(|name| name == file);
        let fetch = |file: &str| self.fetch_file(commit, file, observer);
        let require = |file: &str| {
            let (id, revision) = (self.at.id.clone(), self.at.revision.clone());
            if has(file) {
                fetch(file)
            } else {
                Err(HubError::FileNotFound { id, revision, file: file.to_owned() })
            }
        };
        require(CONFIG)?;
        if need == Need::ConfigOnly {
            return Ok(());
        }
        if !has(WEIGHTS) && !has(WEIGHTS_INDEX) {
            let found = names.iter().filter(|name| is_weights(name)).cloned().collect();
            return Err(HubError::NoSafetensors { model: self.at.id.clone(), found });
        }
        require(TOKENIZER)?;
        OPTIONAL.into_iter().filter(|file| has(file)).try_for_each(fetch)?;
        if has(WEIGHTS) {
            return fetch(WEIGHTS);
        }
        fetch(WEIGHTS_INDEX)?;
        shards(&self.cache.snapshot(commit).join(WEIGHTS_INDEX))?.iter().try_for_each(|shard| fetch(shard))
    }
}

fn local(path: &Path, need: Need) -> Result<ModelFolder, HubError> {
    if !path.exists() {
        return Err(HubError::FolderMissing { path: path.to_owned() });
    }
    if !path.is_dir() {
        return Err(HubError::NotAFolder { path: path.to_owned() });
    }
    if need == Need::Everything {
        let entries = fs::read_dir(path).map_err(HubError::io(path))?;
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        if names.iter().any(|name| is_weights(name)) && !names.iter().any(|name| name.ends_with(SAFETENSORS))
        {
            names.retain(|name| is_weights(name));
            return Err(HubError::NoSafetensors { model: path.display().to_string(), found: names });
        }
    }
    Ok(ModelFolder { path: path.to_owned(), id: None, revision: None })
}

/// Whether a file holds weights, in whatever format.
fn is_weights(name: &str) -> bool {
    let is_other = OTHER_WEIGHTS.iter().any(|end| name.ends_with(end)) && name != "training_args.bin";
    is_other || name.ends_with(SAFETENSORS)
}

/// The first file that a cached folder lacks.
fn missing(folder: &Path, need: Need) -> Option<String> {
    let lacks = |file: &str| !folder.join(file).exists();
    if lacks(CONFIG) {
        return Some(CONFIG.to_owned());
    }
    match need {
        Need::ConfigOnly => None,
        Need::Everything if lacks(TOKENIZER) => Some(TOKENIZER.to_owned()),
        Need::Everything if !lacks(WEIGHTS) => None,
        Need::Everything => match shards(&folder.join(WEIGHTS_INDEX)) {
            Ok(shards) => shards.into_iter().find(|shard| lacks(shard)),
            Err(_) => Some(WEIGHTS.to_owned()),
        },
    }
}

/// The files that an index spreads the weights over, in order.
fn shards(index: &Path) -> Result<BTreeSet<String>, HubError> {
    let malformed = |found: String| {
        let expected = "a JSON object with a weight_map from tensors to files";
        HubError::Malformed { from: index.display().to_string(), expected, found }
    };
    let bytes = fs::read(index).map_err(HubError::io(index))?;
    let json: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
    let map = json.get("weight_map").and_then(|map| map.as_object());
    let map = map.filter(|map| !map.is_empty()).ok_or_else(|| malformed("no tensor".to_owned()))?;
    map.values()
        .map(|file| match file.as_str().filter(|file| is_inside(file)) {
            Some(file) => Ok(file.to_owned()),
            None => Err(malformed(file.to_string())),
        })
        .collect()
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
}
