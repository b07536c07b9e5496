//! Shards that tell by their names how many they are: `model-00002-of-00005.safetensors`.
//!
//! Such a set needs no index: vLLM and llama.cpp read it too.

use std::collections::{BTreeMap, BTreeSet};

/// No checkpoint has more shards; a larger number in a name is not believed.
const MAX_SHARDS: usize = 100_000;
const STEM: &str = "model";

/// The shards of one set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Numbered {
    /// Those that are there, in order.
    pub found: Vec<String>,
    /// Those that the others' names tell of, in order.
    pub missing: Vec<String>,
}

/// The set of shards among some file names; none where there is no set, or no telling which of several is meant.
///
/// A whole set goes before one that lacks shards, and `model-…` before any other.
pub(crate) fn numbered<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<Numbered> {
    let mut sets = BTreeMap::<(&str, &str), BTreeSet<usize>>::new();
    for name in names {
        if let Some((stem, number, total)) = parse(name) {
            sets.entry((stem, total)).or_default().insert(number);
        }
    }
    let mut sets: Vec<(bool, Numbered)> = sets
        .into_iter()
        .map(|((stem, total), numbers)| {
            let name = |&number: &usize| {
                format!("{stem}-{number:0width$}-of-{total}.safetensors", width = total.len())
            };
            let all: Vec<usize> = (1..=total.parse().unwrap_or(0)).collect();
            let (found, missing): (Vec<_>, Vec<_>) = all.iter().partition(|&number| numbers.contains(number));
            let named = |numbers: Vec<usize>| numbers.iter().map(name).collect();
            (stem == STEM, Numbered { found: named(found), missing: named(missing) })
        })
        .collect();
    for narrow in [|(_, set): &(bool, Numbered)| set.missing.is_empty(), |(ours, _): &(bool, Numbered)| *ours]
    {
        if sets.iter().any(narrow) {
            sets.retain(narrow);
        }
    }
    match sets.len() {
        1 => sets.pop().map(|(_, set)| set),
        _ => None,
    }
}

/// `(model, 2, 00005)` of `model-00002-of-00005.safetensors`.
fn parse(name: &str) -> Option<(&str, usize, &str)> {
    let (start, total) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (stem, number) = start.rsplit_once('-')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let last: usize = Some(total).filter(|total| is_number(total))?.parse().ok()?;
    let place =
        Some(number).filter(|number| is_number(number) && number.len() == total.len())?.parse().ok()?;
    ((1..=last).contains(&place) && last <= MAX_SHARDS).then_some((stem, place, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(numbers: &[usize], total: usize) -> Vec<String> {
        numbers.iter().map(|number| format!("model-{number:05}-of-{total:05}.safetensors")).collect()
    }

    fn set(names: &[String]) -> Option<Numbered> {
        numbered(names.iter().map(String::as_str))
    }

    #[test]
    fn a_set_is_whole_or_tells_what_it_lacks() {
        let whole = set(&names(&[2, 1, 3], 3)).expect("a set");
        assert_eq!((whole.found, whole.missing.len()), (names(&[1, 2, 3], 3), 0));
        let part = set(&names(&[2], 3)).expect("a set");
        assert_eq!((part.found, part.missing), (names(&[2], 3), names(&[1, 3], 3)));
    }

    #[test]
    fn a_whole_set_goes_before_the_rest_of_another() {
        let both = [names(&[1, 2], 2), names(&[1], 4)].concat();
        assert_eq!(set(&both).expect("the whole one").found, names(&[1, 2], 2));
        let two = [names(&[1], 1), names(&[1, 2], 2)].concat();
        assert_eq!(set(&two), None, "either could be meant");
        let other = ["other-1-of-1.safetensors".to_owned(), names(&[1], 1)[0].clone()];
        assert_eq!(set(&other).expect("the usual name").found, names(&[1], 1));
    }

    #[test]
    fn names_that_make_no_sense_are_no_shards() {
        for name in [
            "model.safetensors",
            "model-00003-of-00002.safetensors",
            "model-00000-of-00002.safetensors",
            "model-1-of-00002.safetensors",
            "model-00001-of-00002.bin",
            "model-1-of-9.txt",
            "model-000000000001-of-999999999999.safetensors",
            "model--of-.safetensors",
        ] {
            assert_eq!(numbered([name]), None, "{name}");
        }
    }
}
