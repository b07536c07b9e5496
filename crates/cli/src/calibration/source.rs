//! What a calibration source is by its name.

use std::path::{Path, PathBuf};

use handlers::hub::looks_like_path;

use super::builtin;
use crate::error::UserError;

/// Where text comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// A kind of the text that ships with shrink.
    Builtin(usize),
    /// The donor itself writes it: so many tokens, or its share of all windows.
    Sampled(Option<usize>),
    /// A file.
    File(PathBuf),
    /// A dataset on the hub.
    Dataset(String),
}

impl Named {
    /// What a name behind a flag stands for; `builtin` for all its kinds.
    ///
    /// # Errors
    /// A kind that is none, or a number of tokens that is none.
    pub fn parse(flag: &'static str, name: &str) -> Result<Vec<Self>, UserError> {
        let refused = |expected: String| UserError::Flag { flag, found: name.into(), expected };
        match name.split_once(':') {
            None if name == "builtin" => Ok((0..builtin::KINDS.len()).map(Self::Builtin).collect()),
            None if name == "self" => Ok(vec![Self::Sampled(None)]),
            Some(("builtin", kind)) => match builtin::KINDS.iter().position(|(known, _)| *known == kind) {
                Some(place) => Ok(vec![Self::Builtin(place)]),
                None => {
                    let known: Vec<_> =
                        builtin::KINDS.iter().map(|(known, _)| format!("builtin:{known}")).collect();
                    Err(refused(format!("builtin or one of {}", known.join(", "))))
                }
            },
            Some(("self", tokens)) => match tokens.parse() {
                Ok(tokens) if (1..=MOST_SAMPLED).contains(&tokens) => Ok(vec![Self::Sampled(Some(tokens))]),
                _ => Err(refused(format!("self, or self:TOKENS with 1 to {MOST_SAMPLED} tokens"))),
            },
            _ if is_file(name) => Ok(vec![Self::File(PathBuf::from(name))]),
            _ => Ok(vec![Self::Dataset(name.into())]),
        }
    }

    /// The kind of text, for people.
    pub fn kind(&self) -> String {
        match self {
            Self::Builtin(place) => format!("builtin:{}", builtin::KINDS[*place].0),
            Self::Sampled(_) => "self".into(),
            Self::File(path) => path
                .file_name()
                .map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned()),
            Self::Dataset(name) => name.clone(),
        }
    }
}

/// More tokens than this no model writes in a week.
const MOST_SAMPLED: usize = 1 << 30;

/// What starts or ends like a path, has more slashes than a hub id, or is a file that is there, is a file; all else is a
/// dataset. A folder is none, so that one named `wikitext` does not hide the dataset.
pub fn is_file(source: &str) -> bool {
    const EXTENSIONS: [&str; 9] = ["txt", "jsonl", "parquet", "csv", "json", "tsv", "md", "gz", "zip"];
    let path = Path::new(source);
    // A hub id may have a dot too (`org/data-v1.5`).
    let extension = path.extension().map(|end| end.to_string_lossy().to_lowercase());
    let is_reserved = ["builtin", "self"].contains(&source.split(':').next().unwrap_or_default());
    let looks_like_file = source.is_empty()
        || looks_like_path(source)
        || extension.is_some_and(|end| EXTENSIONS.contains(&end.as_str()))
        || path.is_file();
    looks_like_file && !is_reserved
}

/// The subset of a dataset of which the user named none; the hub calls the only one of a dataset `default`.
pub fn default_subset(name: &str) -> &'static str {
    match name.split('@').next() {
        Some("wikitext" | "Salesforce/wikitext") => "wikitext-2-raw-v1",
        _ => "default",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_files_are_told_apart() {
        for file in [
            "a.txt",
            "dir/b.jsonl",
            "./x",
            "../x",
            "/x",
            "~/x",
            "c.parquet",
            "d.CSV",
            "org/e.md",
            "a/b/c",
            "",
        ] {
            assert!(is_file(file), "{file}");
        }
        // The tests run in the crate's folder, where `src` is a folder and no text.
        for dataset in [
            "wikitext",
            "Salesforce/wikitext",
            "org/data-v1.5",
            "org/data-v1.5@main",
            "org/data-v1.5@refs/convert/parquet",
            "wikitext@refs/pr/1",
            "src",
            "self",
            "builtin",
        ] {
            assert!(!is_file(dataset), "{dataset}");
        }
        assert!(is_file("Cargo.toml"), "it is there");
    }

    #[test]
    fn the_models_own_text_and_the_builtin_kinds_have_names() {
        let parse = |name: &str| Named::parse("--calibration", name).map_err(|error| error.to_string());
        assert_eq!(parse("self"), Ok(vec![Named::Sampled(None)]));
        assert_eq!(parse("self:4096"), Ok(vec![Named::Sampled(Some(4096))]));
        assert_eq!(parse("builtin").map(|kinds| kinds.len()), Ok(builtin::KINDS.len()));
        assert_eq!(parse("builtin:code"), Ok(vec![Named::Builtin(1)]));
        for (name, what) in
            [("self:0", "self:TOKENS"), ("self:many", "self:TOKENS"), ("builtin:x", "builtin:prose")]
        {
            let error = parse(name).expect_err("no such source");
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn only_wikitext_has_a_subset_that_goes_without_saying() {
        for wikitext in ["wikitext", "Salesforce/wikitext", "Salesforce/wikitext@main"] {
            assert_eq!(default_subset(wikitext), "wikitext-2-raw-v1");
        }
        assert_eq!(default_subset("org/wikitext"), "default");
    }
}
