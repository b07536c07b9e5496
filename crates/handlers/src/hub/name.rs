//! What a user calls a model: a path, or a hub id with a revision.

use std::path::Path;

use super::cache::is_inside;
use super::error::HubError;

/// A hub id and the revision wanted of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RepoName {
    pub id: String,
    pub revision: String,
}

impl RepoName {
    /// Reads `name`, `org/name` or either with `@revision`, by the rules of the Python package.
    pub(super) fn parse(given: &str) -> Result<Self, HubError> {
        let (id, revision) = given.split_once('@').unwrap_or((given, "main"));
        let odd = |c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c));
        let edge = ['-', '.'];
        let reason = if id.is_empty() || id.split('/').any(str::is_empty) {
            "an empty name"
        } else if id.matches('/').count() > 1 {
            "more than one slash"
        } else if id.len() > 96 {
            "more than 96 characters"
        } else if id.split('/').any(|part| part.contains(odd)) {
            "a character other than letters, digits, '-', '_' and '.'"
        } else if id.split('/').any(|part| part.starts_with(edge) || part.ends_with(edge)) {
            "a name that starts or ends with '-' or '.'"
        } else if id.contains("--") || id.contains("..") {
            "'--' or '..'"
        } else if !is_inside(revision) || revision.contains(|c: char| c != '/' && c != '+' && odd(c)) {
            "a revision that is no branch, tag or commit"
        } else {
            return Ok(Self { id: id.to_owned(), revision: revision.to_owned() });
        };
        Err(HubError::InvalidId { given: given.to_owned(), reason })
    }
}

/// Whether a name is a path by its looks: it starts with `.`, `/` or `~`, or has more than one slash before its revision,
/// which may have slashes of its own (`org/name@refs/pr/1`).
pub fn looks_like_path(name: &str) -> bool {
    let id = name.split('@').next().unwrap_or(name);
    name.starts_with(['.', '/', '~']) || id.matches('/').count() > 1
}

/// Whether the user means a folder of this machine.
pub(super) fn is_path(model: &str) -> bool {
    looks_like_path(model) || Path::new(model).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_may_lack_the_owner_and_carry_a_revision() {
        let parse = |given: &str| RepoName::parse(given).map(|at| (at.id, at.revision)).expect("a valid id");
        assert_eq!(parse("gpt2"), ("gpt2".into(), "main".into()));
        assert_eq!(parse("Qwen/Qwen2.5-7B"), ("Qwen/Qwen2.5-7B".into(), "main".into()));
        assert_eq!(parse("o/n@refs/pr/1"), ("o/n".into(), "refs/pr/1".into()));
    }

    #[test]
    fn a_malformed_id_names_the_rule_that_it_breaks() {
        for (given, rule) in [
            ("", "empty"),
            ("org/", "empty"),
            ("a/b/c", "slash"),
            ("org/na me", "character"),
            ("org/-name", "starts"),
            ("org/na--me", "--"),
            ("org/name@", "revision"),
            ("org/name@../../x", "revision"),
            ("org/name@a?b", "revision"),
        ] {
            let error = RepoName::parse(given).expect_err(given).to_string();
            assert!(error.contains(rule), "{given:?}: {error}");
        }
        assert!(RepoName::parse(&"n".repeat(97)).is_err());
    }

    #[test]
    fn what_looks_like_a_path_is_one() {
        for path in ["./m", "/m", "~/m", "a/b/c", "..", "/"] {
            assert!(is_path(path), "{path}");
        }
        for id in ["gpt2", "org/name", "org/name@refs/pr/1"] {
            assert!(!is_path(id), "{id}");
        }
    }
}
