//! Where the hub is, where its files are kept, and who asks.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The hub that everybody uses.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// How to reach the hub, read from the variables that the Python `huggingface_hub` honours.
///
/// The cache has the layout of the Python package and is shared with it: what one of them fetched, the other
/// finds.
#[derive(Clone)]
pub struct HubSettings {
    /// Address of the hub, without a trailing slash (`HF_ENDPOINT`; default [`DEFAULT_ENDPOINT`]).
    pub endpoint: String,
    /// Folder of the `models--org--name` folders (`HF_HUB_CACHE`; default `$HF_HOME/hub`).
    ///
    /// `None` when no variable names a home; an error only once the hub is needed.
    pub cache: Option<PathBuf>,
    /// Who asks (`HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`; default the content of `$HF_HOME/token`).
    pub token: Option<String>,
    /// Never touch the network (`HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE`; default `false`).
    pub offline: bool,
    /// How often an exchange that makes no progress is tried again (default 5).
    pub retries: u32,
    /// Pause before the first retry; it doubles with each further one (default 0.5 s).
    pub retry_pause: Duration,
}

impl HubSettings {
    /// Reads the process's environment.
    pub fn from_env() -> Self {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    /// Reads the variables through `var`; an empty value counts as unset.
    ///
    /// Touches the disk once, for the token file.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Self {
        let var =
            |name: &str| var(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let user_home = var("HOME").or_else(|| var("USERPROFILE")).map(PathBuf::from);
        let folder = |name: &str| var(name).map(|value| expand_tilde(&value, user_home.as_deref()));

        let home = folder("HF_HOME")
            .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(user_home.as_ref()?.join(".cache").join("huggingface")));
        let cache = folder("HF_HUB_CACHE")
            .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| Some(home.as_ref()?.join("hub")));
        let token_file = folder("HF_TOKEN_PATH").or_else(|| Some(home.as_ref()?.join("token")));

        Self {
            endpoint: var("HF_ENDPOINT")
                .map_or_else(|| DEFAULT_ENDPOINT.to_owned(), |value| value.trim_end_matches('/').to_owned()),
            cache,
            token: var("HF_TOKEN")
                .or_else(|| var("HUGGING_FACE_HUB_TOKEN"))
                .or_else(|| read_token(&token_file?)),
            offline: var("HF_HUB_OFFLINE")
                .or_else(|| var("TRANSFORMERS_OFFLINE"))
                .is_some_and(|v| is_true(&v)),
            retries: 5,
            retry_pause: Duration::from_millis(500),
        }
    }
}

/// Hides the token, so that no log ever shows it.
impl fmt::Debug for HubSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubSettings")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("offline", &self.offline)
            .field("retries", &self.retries)
            .field("retry_pause", &self.retry_pause)
            .finish()
    }
}

/// The values that `huggingface_hub` takes for yes.
fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
}

fn expand_tilde(value: &str, user_home: Option<&Path>) -> PathBuf {
    match (value.strip_prefix('~'), user_home) {
        (Some(""), Some(home)) => home.to_owned(),
        (Some(rest), Some(home)) if rest.starts_with('/') => home.join(&rest[1..]),
        _ => PathBuf::from(value),
    }
}

/// The token file's content; a file that cannot be read is as good as none.
fn read_token(path: &Path) -> Option<String> {
    let token = std::fs::read_to_string(path).ok()?;
    Some(token.trim().to_owned()).filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(vars: &[(&str, &str)]) -> HubSettings {
        HubSettings::from_vars(|name| {
            vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn without_variables_the_cache_lies_in_the_users_home() {
        let settings = from(&[("HOME", "/home/u")]);
        assert_eq!(settings.endpoint, DEFAULT_ENDPOINT);
        assert_eq!(settings.cache.as_deref(), Some(Path::new("/home/u/.cache/huggingface/hub")));
        assert_eq!(settings.token, None);
        assert!(!settings.offline);
    }

    #[test]
    fn hf_home_moves_the_cache_and_hf_hub_cache_overrides_it() {
        let home = ("HF_HOME", "~/hf");
        assert_eq!(from(&[("HOME", "/u"), home]).cache.as_deref(), Some(Path::new("/u/hf/hub")));
        assert_eq!(from(&[home, ("HF_HUB_CACHE", "/c")]).cache.as_deref(), Some(Path::new("/c")));
        assert_eq!(
            from(&[("HOME", "/u"), ("XDG_CACHE_HOME", "/x")]).cache.as_deref(),
            Some(Path::new("/x/huggingface/hub"))
        );
        assert_eq!(from(&[]).cache, None);
    }

    #[test]
    fn the_variable_beats_the_older_variable_beats_the_token_file() {
        let home = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(home.path().join("token"), "hf_file\n").expect("a token file");
        let home = ("HF_HOME", home.path().to_str().expect("a UTF-8 path"));
        let (new, old) = (("HF_TOKEN", " hf_new\n"), ("HUGGING_FACE_HUB_TOKEN", "hf_old"));
        assert_eq!(from(&[home, old, new]).token.as_deref(), Some("hf_new"));
        assert_eq!(from(&[home, old]).token.as_deref(), Some("hf_old"));
        assert_eq!(from(&[home, ("HF_TOKEN", "")]).token.as_deref(), Some("hf_file"));
    }

    #[test]
    fn offline_takes_the_same_words_as_the_python_package() {
        for yes in ["1", "true", "YES", "On"] {
            assert!(from(&[("HF_HUB_OFFLINE", yes)]).offline, "{yes}");
        }
        for no in ["0", "false", "", "maybe"] {
            assert!(!from(&[("HF_HUB_OFFLINE", no)]).offline, "{no}");
        }
    }

    #[test]
    fn an_endpoint_loses_its_trailing_slash() {
        assert_eq!(from(&[("HF_ENDPOINT", "http://mirror/")]).endpoint, "http://mirror");
    }

    #[test]
    fn debug_output_hides_the_token() {
        let shown = format!("{:?}", from(&[("HF_TOKEN", "hf_secret")]));
        assert!(!shown.contains("secret"), "{shown}");
    }
}
