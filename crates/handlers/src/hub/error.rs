//! What can go wrong between a model's name and its files.

use std::path::PathBuf;

/// Why a model or a data set could not be found or fetched.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The argument looks like a path, and there is nothing at it.
    #[error("model folder {path}: not found", path = .path.display())]
    FolderMissing {
        /// The path as it was given.
        path: PathBuf,
    },

    /// The argument is a file, and a model is a folder.
    #[error("model folder {path}: expected a folder, found a file", path = .path.display())]
    NotAFolder {
        /// The path as it was given.
        path: PathBuf,
    },

    /// The argument is neither a path nor a well-formed hub id.
    #[error("hub id {given:?}: expected org/name[@revision], found {reason}")]
    InvalidId {
        /// The argument as it was given.
        given: String,
        /// The first rule that it breaks.
        reason: &'static str,
    },

    /// The hub knows no such repository, or hides it from this user.
    #[error("{id}: no such repository on {endpoint}")]
    RepoNotFound {
        /// The repository asked for.
        id: String,
        /// The hub that was asked.
        endpoint: String,
    },

    /// The repository has no such branch, tag or commit.
    #[error("{id}: no revision {revision:?}")]
    RevisionNotFound {
        /// The repository asked for.
        id: String,
        /// The branch, tag or commit asked for.
        revision: String,
    },

    /// The repository lacks a file that is needed.
    #[error("{id}: no file {file} at revision {revision}")]
    FileNotFound {
        /// The repository asked for.
        id: String,
        /// The revision that was looked at.
        revision: String,
        /// The file that is not there.
        file: String,
    },

    /// The model has weights in other formats only.
    #[error("{model}: expected weights in model.safetensors or its shards, found {}", listed(.found))]
    NoSafetensors {
        /// The folder or repository.
        model: String,
        /// The weight files that are there.
        found: Vec<String>,
    },

    /// The model's configuration is not one to go on with.
    #[error(transparent)]
    NotAccepted(Box<crate::error::Error>),

    /// The model's weights are not plain floats.
    #[error("{id}: the weights are quantised ({scheme}), the first such is {key}")]
    Quantised {
        /// The repository asked for.
        id: String,
        /// The method.
        scheme: String,
        /// A tensor that shows it.
        key: String,
    },

    /// The data set has no parquet files of this subset and split.
    #[error("{id}: expected parquet files of subset {subset:?}, split {split:?}, found {}", listed(.found))]
    NoSplit {
        /// The data set asked for.
        id: String,
        /// The revision that was looked at.
        revision: Box<str>,
        /// The subset asked for.
        subset: Box<str>,
        /// The split asked for.
        split: Box<str>,
        /// The folders of the data set's parquet files, each with a file it holds.
        found: Box<[String]>,
    },

    /// The repository is public in name only: its licence must be accepted first.
    #[error("{id}: access is gated")]
    Gated {
        /// The repository asked for.
        id: String,
        /// The page on which access is granted.
        page: String,
        /// Whether a token was sent.
        with_token: bool,
    },

    /// The hub turned the token down, or wants one.
    #[error("{id}: access refused (HTTP {status})")]
    Unauthorised {
        /// The repository asked for.
        id: String,
        /// The HTTP status.
        status: u16,
        /// Whether a token was sent.
        with_token: bool,
    },

    /// The network is off and the cache lacks a file.
    #[error("{id}: offline, and {file} of revision {revision:?} is not in {cache}", cache = .cache.display())]
    NotCached {
        /// The repository asked for.
        id: String,
        /// The revision asked for.
        revision: String,
        /// The first needed file that the cache lacks.
        file: String,
        /// The cache that was searched.
        cache: PathBuf,
    },

    /// The hub could not be reached.
    #[error("{endpoint}: unreachable: {reason}")]
    Unreachable {
        /// The hub that was asked.
        endpoint: String,
        /// What the network said.
        reason: String,
    },

    /// A download broke off, and broke off again each time it was resumed.
    #[error("{file}: download broke off after {received_bytes} bytes: {reason}")]
    Interrupted {
        /// The file inside the repository.
        file: String,
        /// The bytes that are kept for the next attempt.
        received_bytes: u64,
        /// What the network said last.
        reason: String,
    },

    /// A whole file arrived, and it is not the file that the hub announced.
    #[error("{file}: download is corrupt: expected {expected}, found {found}")]
    Corrupt {
        /// The file inside the repository.
        file: String,
        /// The announced size or hash.
        expected: String,
        /// The size or hash that arrived.
        found: String,
    },

    /// The hub answered with something that the protocol does not allow.
    #[error("{from}: expected {expected}, found {found}")]
    Malformed {
        /// The address or file that holds it.
        from: String,
        /// What should be there.
        expected: &'static str,
        /// What is there.
        found: String,
    },

    /// The hub answered with an error of its own.
    #[error("{url}: refused (HTTP {status}): {message}")]
    Refused {
        /// The address asked for.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The hub's own words.
        message: String,
    },

    /// The cache could not be read or written.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// Somebody unknown wants to publish.
    #[error("{id}: publishing needs a token, and there is none")]
    NoToken {
        /// The repository.
        id: String,
    },

    /// The network is off by the environment.
    #[error("{id}: the network is off (HF_HUB_OFFLINE)")]
    Offline {
        /// The repository.
        id: String,
    },

    /// A file that is to be published cannot be read.
    #[error("cannot read {path}: {source}", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// There is no home folder to keep the cache in.
    #[error("no folder for the hub cache: expected HF_HOME or HOME to be set, found neither")]
    NoCacheFolder,
}

/// The branch on which the hub keeps its own conversion of a data set.
const PARQUET: &str = "refs/convert/parquet";

impl HubError {
    /// Whether the hub may answer otherwise another time or to another user, so that a copy in the cache is as good as can be
    /// had.
    pub(super) fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Gated { .. }
                | Self::Unauthorised { .. }
                | Self::Refused { .. }
                | Self::RepoNotFound { .. }
                | Self::Malformed { .. }
        )
    }

    /// The remedy, where there is one that the user can apply.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::FolderMissing { path } if path.starts_with("~") => {
                "a quoted ~ is not expanded: write the folder's full path".into()
            }
            Self::FolderMissing { .. } => {
                "check the path; a hub model is named org/name, without a leading . or /".into()
            }
            Self::NotAFolder { .. } => "pass the folder that holds config.json and model.safetensors".into(),
            Self::InvalidId { .. } => {
                "name a hub model like Qwen/Qwen2.5-7B or gpt2@main, or write a local folder as ./name".into()
            }
            Self::RepoNotFound { .. } => {
                "check the spelling; private repositories need HF_TOKEN, a local folder is written ./name"
                    .into()
            }
            Self::RevisionNotFound { .. } => {
                "a revision is a branch, a tag or a commit; without @revision, main is used".into()
            }
            Self::FileNotFound { file, .. } if file == "tokenizer.json" => {
                "save the tokenizer once with transformers (save_pretrained) and pass the local folder".into()
            }
            Self::FileNotFound { file, .. } if file.ends_with(".safetensors") => {
                "the repository lacks a part of its weights: look for a revision that has them all".into()
            }
            Self::FileNotFound { .. } => return None,
            Self::NoSafetensors { .. } => {
                "only safetensors weights are read: convert them once with transformers (save_pretrained), \
                 or look for a revision that has them"
                    .into()
            }
            Self::NotAccepted(error) => return error.hint(),
            Self::Quantised { .. } => crate::quantised::HINT.into(),
            Self::NoSplit { id, revision, found, .. } if found.is_empty() && &**revision != PARQUET => {
                format!(
                    "the data set has no parquet files; the hub keeps a conversion of most sets as {id}@{PARQUET}"
                )
            }
            Self::NoSplit { .. } => {
                "name a subset and a split that the data set has, or pass text files".into()
            }
            Self::Gated { page, with_token: false, .. } => {
                format!("accept the licence on {page}, then set HF_TOKEN to a token of that account")
            }
            Self::Gated { page, with_token: true, .. } => {
                format!("accept the licence on {page} with the account that HF_TOKEN belongs to")
            }
            Self::Unauthorised { with_token: false, .. } => {
                "set HF_TOKEN to a token that may read the repository".into()
            }
            Self::Unauthorised { with_token: true, .. } => {
                "the token was not accepted: check HF_TOKEN, or log in again with the hub's own tool".into()
            }
            Self::NoToken { .. } => {
                "set HF_TOKEN to a token that may write, or log in with the hub's own tool".into()
            }
            Self::Offline { .. } => "unset HF_HUB_OFFLINE".into(),
            Self::Unreadable { .. } => "check that the file is there and may be read".into(),
            Self::NotCached { .. } => {
                "run once with the network (unset HF_HUB_OFFLINE), or pass a local folder".into()
            }
            Self::Unreachable { .. } => {
                "check the network, HTTPS_PROXY and HF_ENDPOINT; cached models open without the network"
                    .into()
            }
            Self::Interrupted { .. } => "run the same command again: it goes on where it stopped".into(),
            Self::Corrupt { .. } => {
                "run the same command again; if it persists, a proxy or a mirror changes the file".into()
            }
            Self::Malformed { .. } => "check that HF_ENDPOINT names a hub or a mirror of one".into(),
            Self::Refused { status: 429, .. } => {
                "the hub limits anonymous requests: wait a few minutes, or set HF_TOKEN".into()
            }
            Self::Refused { .. } => "try again later".into(),
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                "free some space, or point HF_HOME at a larger disk".into()
            }
            Self::Io { .. } => "check that the folder can be written, or point HF_HOME elsewhere".into(),
            Self::NoCacheFolder => "set HF_HOME to a folder that can be written".into(),
        };
        Some(hint)
    }

    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

/// The first few of the names, as a message shows them.
fn listed(names: &[String]) -> String {
    const SHOWN: usize = 8;
    match names.len() {
        0 => "none".into(),
        len if len <= SHOWN => names.join(", "),
        len => format!("{}, … ({len} in all)", names[..SHOWN].join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_is_cut_and_counted() {
        let names: Vec<String> = (0..20).map(|i| format!("f{i}")).collect();
        assert_eq!(listed(&names), "f0, f1, f2, f3, f4, f5, f6, f7, … (20 in all)");
        assert_eq!(listed(&names[..2]), "f0, f1");
        assert_eq!(listed(&[]), "none");
    }

    #[test]
    fn weights_in_another_format_are_answered_with_the_word_safetensors() {
        let error = HubError::NoSafetensors { model: "o/n".into(), found: vec!["pytorch_model.bin".into()] };
        assert_eq!(
            error.to_string(),
            "o/n: expected weights in model.safetensors or its shards, found pytorch_model.bin"
        );
        assert!(error.hint().is_some_and(|hint| hint.contains("safetensors")));
    }

    #[test]
    fn a_gated_model_is_answered_with_its_page_and_the_name_of_the_variable() {
        let page = "https://huggingface.co/o/n".to_owned();
        let hint = HubError::Gated { id: "o/n".into(), page, with_token: false }.hint();
        assert!(hint.is_some_and(|hint| hint.contains("HF_TOKEN") && hint.contains("huggingface.co/o/n")));
    }
}
