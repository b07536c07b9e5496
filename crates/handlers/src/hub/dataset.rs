//! Which files of a data set hold a split of a subset.
//!
//! The hub's layouts, by example: `wikitext-2-raw-v1/train-00000-of-00001.parquet`, `en/train/0000.parquet`,
//! `plain_text/my-train.parquet`, and without subsets `data/train-00000-of-00002.parquet` or `train.parquet`.

use std::collections::BTreeMap;

/// The parquet files of the split, sorted; none where there is no such subset or split.
pub(super) fn pick(names: &[String], subset: &str, split: &str) -> Vec<String> {
    let whole = matches!(subset, "" | "default");
    let inside = |name: &str| match name.strip_prefix(subset).and_then(|rest| rest.strip_prefix('/')) {
        Some(rest) if !subset.is_empty() => has_word(rest, split),
        _ if whole => has_word(name.strip_prefix("data/").unwrap_or(name), split) && !is_nested(name),
        _ => false,
    };
    let mut picked: Vec<String> =
        names.iter().filter(|name| name.ends_with(".parquet") && inside(name)).cloned().collect();
    picked.sort();
    picked
}

/// Whether the files are all there are of their split, as far as their names (`-00001-of-00004`) tell.
pub(super) fn is_complete(picked: &[String]) -> bool {
    let mut counts = BTreeMap::<String, (usize, usize)>::new();
    for name in picked {
        let stem = name.trim_end_matches(".parquet");
        if let Some((start, total)) = stem.rsplit_once("-of-") {
            let set = start.trim_end_matches(|c: char| c.is_ascii_digit());
            let entry = counts.entry(format!("{set}*{total}")).or_default();
            *entry = (entry.0 + 1, total.parse().unwrap_or(0));
        }
    }
    !picked.is_empty() && counts.values().all(|(here, total)| here == total)
}

/// Each folder that holds parquet files, with its first one, to show a user what there is.
pub(super) fn outline(names: &[String]) -> Vec<String> {
    let mut folders = BTreeMap::<&str, &String>::new();
    for name in names.iter().filter(|name| name.ends_with(".parquet")) {
        let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
        let first = folders.entry(folder).or_insert(name);
        *first = (*first).min(name);
    }
    folders.into_values().cloned().collect()
}

/// Whether `word` stands in `path` between characters that are neither letters nor digits.
fn has_word(path: &str, word: &str) -> bool {
    let joins = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    path.match_indices(word).any(|(at, _)| {
        !joins(path[..at].chars().next_back()) && !joins(path[at + word.len()..].chars().next())
    })
}

/// Whether a file lies deeper than the folder that a data set without subsets may have.
fn is_nested(name: &str) -> bool {
    name.strip_prefix("data/").unwrap_or(name).contains('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_subset_is_a_folder_and_a_split_a_word_of_the_name() {
        let names = names(&[
            "README.md",
            "wikitext-2-raw-v1/train-00001-of-00002.parquet",
            "wikitext-2-raw-v1/train-00000-of-00002.parquet",
            "wikitext-2-raw-v1/test-00000-of-00001.parquet",
            "wikitext-2-v1/train-00000-of-00001.parquet",
            "en/train/0000.parquet",
            "en/constrained-0.parquet",
        ]);
        assert_eq!(
            pick(&names, "wikitext-2-raw-v1", "train"),
            [
                "wikitext-2-raw-v1/train-00000-of-00002.parquet",
                "wikitext-2-raw-v1/train-00001-of-00002.parquet"
            ]
        );
        assert_eq!(pick(&names, "en", "train"), ["en/train/0000.parquet"]);
        assert!(pick(&names, "wikitext-2-raw-v1", "validation").is_empty());
        assert!(pick(&names, "wikitext", "train").is_empty());
        assert!(pick(&names, "", "train").is_empty(), "an unnamed subset must not mix the named ones");
    }

    #[test]
    fn a_data_set_without_subsets_keeps_its_splits_in_data_or_at_its_root() {
        let names = names(&["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"]);
        for subset in ["", "default"] {
            assert_eq!(pick(&names, subset, "train"), ["data/train-00000-of-00001.parquet"]);
        }
        assert!(pick(&names, "other", "train").is_empty(), "a misspelt subset must not pass silently");
        assert_eq!(pick(&["train.parquet".to_owned()], "", "train"), ["train.parquet"]);
    }

    #[test]
    fn a_split_with_a_shard_missing_is_incomplete() {
        let two = names(&["s/train-00000-of-00002.parquet", "s/train-00001-of-00002.parquet"]);
        assert!(is_complete(&two));
        assert!(!is_complete(&two[1..]));
        assert!(!is_complete(&[]));
        assert!(is_complete(&names(&["s/train.parquet"])));
    }

    #[test]
    fn an_outline_shows_one_file_of_each_folder() {
        let names = names(&["a/2.parquet", "a/1.parquet", "b/x.parquet", "README.md"]);
        assert_eq!(outline(&names), ["a/1.parquet", "b/x.parquet"]);
    }
}
