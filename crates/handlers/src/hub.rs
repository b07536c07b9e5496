//! Finding a model: a local folder, or a repository of the Hugging Face hub fetched into the shared cache.
//!
//! [`Hub::resolve`] is the one way from what a user typed to a folder; whatever opens models takes it from
//! there. Files land in the cache of the Python package, in its layout, so neither fetches what the other
//! already has.

mod cache;
mod dataset;
mod download;
mod error;
mod files;
mod name;
mod push;
mod remote;
mod settings;

use std::path::{Path, PathBuf};

use hf_hub::{Repo, RepoType};

use cache::{RepoCache, is_commit, is_inside};
use download::download;
use files::{CONFIG, TOKENIZER, VOCABULARY, WEIGHTS, WEIGHTS_INDEX};
use name::{RepoName, is_path};
use remote::Remote;

use crate::checkpoint::numbered;
use crate::config_json::ConfigJson;
use crate::error::Error;
use crate::quantised;

pub use error::HubError;
pub use name::looks_like_path;
pub use push::{PushOptions, Pushed, UploadObserver};
pub use settings::{DEFAULT_ENDPOINT, HubSettings};

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
    /// The hub did not serve `id`, for this reason, and what the cache has of it, of this commit, is taken instead.
    fn served_from_cache(&self, _id: &str, _commit: &str, _reason: &HubError) {}
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
    /// hash that is cached needs no network, and neither does anything cached when the hub is offline. What
    /// is cached is also taken, and the observer told, when the hub cannot be reached, is busy, or does not
    /// let this user in; as `huggingface_hub` has it, only a revision that does not exist is final.
    ///
    /// Weights that `config.json` declares to be quantised are looked into before they are fetched.
    ///
    /// # Errors
    /// A folder, repository, revision or file that does not exist or is not for this user; weights that are
    /// not safetensors, or quantised; a network that is off with nothing in the cache, or does not answer; content that
    /// arrives corrupt.
    pub fn resolve(
        &self,
        model: &str,
        need: Need,
        observer: &dyn DownloadObserver,
    ) -> Result<ModelFolder, HubError> {
        self.find(model, need, &|_| Ok(()), observer)
    }

    /// As [`resolve`](Self::resolve) with everything that is needed, but nothing is fetched beside `config.json` unless `accept`
    /// takes the folder that it is then in. What is on this machine already is not shown to it.
    ///
    /// # Errors
    /// As for [`Hub::resolve`]; [`HubError::NotAccepted`] with the error that `accept` gave.
    pub fn resolve_if(
        &self,
        model: &str,
        accept: &dyn Fn(&Path) -> Result<(), Error>,
        observer: &dyn DownloadObserver,
    ) -> Result<ModelFolder, HubError> {
        self.find(model, Need::Everything, accept, observer)
    }

    fn find(
        &self,
        model: &str,
        need: Need,
        accept: &dyn Fn(&Path) -> Result<(), Error>,
        observer: &dyn DownloadObserver,
    ) -> Result<ModelFolder, HubError> {
        if is_path(model) {
            return files::local(Path::new(model), need);
        }
        let at = RepoName::parse(model)?;
        let access = Access::new(&self.settings, &at, RepoType::Model)?;
        let fetch = |commit: &str, names: &[String]| {
            access.fetch_config(commit, names, observer)?;
            if need == Need::Everything {
                accept(&access.cache.snapshot(commit))
                    .map_err(|error| HubError::NotAccepted(Box::new(error)))?;
                access.fetch_rest(commit, names, observer)?;
            }
            Ok(())
        };
        let commit = access.fetch(|folder| files::missing(folder, need), fetch, observer)?;
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
        let fetch = |commit: &str, names: &[String]| {
            let picked = pick(names);
            if picked.is_empty() {
                return Err(HubError::NoSplit {
                    id: at.id.clone(),
                    revision: at.revision.as_str().into(),
                    subset: subset.into(),
                    split: split.into(),
                    found: dataset::outline(names).into(),
                });
            }
            picked.iter().try_for_each(|file| access.fetch_file(commit, file, observer))
        };
        let commit = access.fetch(cached, fetch, observer)?;
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
    /// of its files. What is cached as a whole serves where the hub does not.
    fn fetch(
        &self,
        missing: impl Fn(&Path) -> Option<String>,
        fetch: impl FnOnce(&str, &[String]) -> Result<(), HubError>,
        observer: &dyn DownloadObserver,
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
        let whole = cached.filter(|_| lacks.is_none());
        // Who has it all need not wait for a busy hub.
        let info = self.remote.info(if whole.is_some() { 0 } else { self.remote.retries() });
        let fetched = info.and_then(|info| {
            let names: Vec<String> = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
            fetch(&info.sha, &names)?;
            self.cache.remember(&info.sha)?;
            Ok(info.sha)
        });
        match (fetched, whole) {
            (Err(error), Some(commit)) if error.may_pass() => {
                observer.served_from_cache(&self.at.id, &commit, &error);
                Ok(commit)
            }
            (fetched, _) => fetched,
        }
    }

    fn fetch_file(&self, commit: &str, file: &str, observer: &dyn DownloadObserver) -> Result<(), HubError> {
        if !is_inside(file) {
            let (from, found) = (self.at.id.clone(), file.to_owned());
            return Err(HubError::Malformed { from, expected: "a file inside the repository", found });
        }
        download(&self.remote, &self.cache, commit, file, observer).map(|_| ())
    }

    fn fetch_config(
        &self,
        commit: &str,
        names: &[String],
        observer: &dyn DownloadObserver,
    ) -> Result<(), HubError> {
        match names.iter().any(|name| name == CONFIG) {
            true => self.fetch_file(commit, CONFIG, observer),
            false => Err(self.absent(CONFIG)),
        }
    }

    /// Small files first, so that a model that cannot be used says so before its weights are fetched.
    fn fetch_rest(
        &self,
        commit: &str,
        names: &[String],
        observer: &dyn DownloadObserver,
    ) -> Result<(), HubError> {
        let has = |file: &str| names.iter().any(|name| name == file);
        let fetch = |file: &str| self.fetch_file(commit, file, observer);
        let snapshot = self.cache.snapshot(commit);
        // Where there is an index it comes first: it tells what the shards hold.
        let weights: Vec<String> = if has(WEIGHTS) {
            vec![WEIGHTS.to_owned()]
        } else if has(WEIGHTS_INDEX) {
            fetch(WEIGHTS_INDEX)?;
            files::shards(&snapshot.join(WEIGHTS_INDEX))?.into_iter().collect()
        } else {
            let set = numbered(names.iter().map(String::as_str).filter(|name| !name.contains('/')));
            let Some(set) = set else {
                let found = names.iter().filter(|name| files::is_weights(name)).cloned().collect();
                return Err(HubError::NoSafetensors { model: self.at.id.clone(), found });
            };
            set.missing.first().map_or(Ok(()), |shard| Err(self.absent(shard)))?;
            set.found
        };
        self.refuse_quantised(commit, &snapshot, &weights)?;
        if has(TOKENIZER) {
            fetch(TOKENIZER)?;
        } else if !VOCABULARY.iter().all(|file| has(file)) {
            return Err(self.absent(TOKENIZER));
        }
        files::companions(names).try_for_each(|file| fetch(file))?;
        weights.iter().try_for_each(|file| fetch(file))
    }

    fn absent(&self, file: &str) -> HubError {
        let (id, revision) = (self.at.id.clone(), self.at.revision.clone());
        HubError::FileNotFound { id, revision, file: file.to_owned() }
    }

    /// Refuses weights that are quantised before they are fetched, where `config.json` says so and the names of the tensors,
    /// from the index or from a file's first bytes, agree.
    fn refuse_quantised(&self, commit: &str, snapshot: &Path, weights: &[String]) -> Result<(), HubError> {
        let config = ConfigJson::read(&snapshot.join(CONFIG));
        let Some(scheme) = config.ok().as_ref().and_then(quantised::declared) else { return Ok(()) };
        let tensors = match (files::places(&snapshot.join(WEIGHTS_INDEX)), weights) {
            (Ok(places), _) => places.keys().cloned().collect(),
            (Err(_), [first, ..]) if !snapshot.join(first).exists() => {
                self.remote.tensor_names(commit, first).unwrap_or_default()
            }
            _ => Vec::new(),
        };
        match quantised::mark(tensors.iter().map(String::as_str)) {
            Some(key) => Err(HubError::Quantised { id: self.at.id.clone(), scheme, key: key.to_owned() }),
            None => Ok(()),
        }
    }
}
