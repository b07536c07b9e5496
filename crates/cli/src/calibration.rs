//! From a calibration source to equally long windows of tokens.

use std::path::{Path, PathBuf};

use handlers::Model;
use handlers::hub::{Hub, looks_like_path};
use mla_core::WeightSource;

use crate::args::CalibrationArgs;
use crate::corpus::{Documents, Source};
use crate::error::UserError;
use crate::session::Session;

/// The text that ships with shrink: public-domain prose and speeches.
pub const BUILTIN: &str = include_str!("../../../goldens/demo/calibration.txt");

/// Windows that are held back at most.
const HELD_BACK_WINDOWS: usize = 4;

/// Fewer calibration tokens than this for each dimension of the residual stream leave directions undetermined.
const FEW_TOKENS_A_DIMENSION: usize = 10;

/// Tokens that are read for each that is wanted: windows are spread over them, and a text may begin unlike it goes on.
const READ_FOR_EACH: usize = 64;

/// Calibration windows and where they came from.
#[derive(Clone, Debug)]
pub struct Calibration {
    /// Equally long windows that factors are fitted to.
    pub windows: Vec<Vec<u32>>,
    /// As long ones of the same text, none of them among `windows`, that candidates are measured on.
    pub held_back: Vec<Vec<u32>>,
    /// What the user named: files, `builtin`, or a dataset.
    pub source: String,
    /// SHA-256 of the text as far as it was read, in hex.
    pub text_sha256: String,
}

/// Reads, tokenises and cuts the calibration text; `None` with `--no-calibration`.
///
/// # Errors
/// When the text cannot be had, is shorter than one window, or has a token that the model does not know.
pub fn load(session: &Session, args: &CalibrationArgs, model: &Model) -> anyhow::Result<Option<Calibration>> {
    if args.no_calibration {
        return Ok(None);
    }
    let config = model.config();
    let length = args.max_calibration_length.min(config.max_positions);
    let wanted = args.num_calibration_samples.saturating_mul(length).saturating_mul(READ_FOR_EACH);
    let documents = Documents::of(sources(session, args)?, &args.text_field)?;
    let text = session.tokens_of(model, documents, Some(wanted))?;
    let tokens = text.ids;
    if let Some(&token) = tokens.iter().find(|&&token| token as usize >= config.vocab_size) {
        return Err(UserError::CalibrationToken { token, vocab_size: config.vocab_size }.into());
    }
    let (windows, held_back) = split(&tokens, length, args.num_calibration_samples);
    if windows.is_empty() {
        return Err(UserError::CalibrationTooShort { tokens: tokens.len(), length }.into());
    }
    let few = FEW_TOKENS_A_DIMENSION * config.d_model;
    if windows.len() * length < few {
        session.ui.note(&format!(
            "note: {} calibration tokens are few for d_model {}; {few} or more tell the directions apart better",
            windows.len() * length,
            config.d_model
        ));
    }
    if windows.len() < args.num_calibration_samples {
        session.ui.note(&format!(
            "note: the text gives {} windows of {length} tokens, fewer than the {} asked for",
            windows.len(),
            args.num_calibration_samples
        ));
    }
    let text_sha256 = hex(&text.text_sha256);
    Ok(Some(Calibration { windows, held_back, source: args.calibration.join(", "), text_sha256 }))
}

/// How many windows are held back beside `windows` that are fitted to.
pub fn held_back(windows: usize) -> usize {
    HELD_BACK_WINDOWS.min((windows / 8).max(1))
}

/// Windows to fit to, and some to measure on: windows that lie between those, or where the text has none to spare, a
/// few of them.
pub fn split(tokens: &[u32], length: usize, count: usize) -> (Vec<Vec<u32>>, Vec<Vec<u32>>) {
    let fitted = spread(tokens, length, count);
    let all = tokens.len() / length.max(1);
    let aside = held_back(fitted.len());
    if all >= fitted.len() + aside {
        let used: std::collections::BTreeSet<usize> =
            (0..fitted.len()).map(|i| i * all / fitted.len()).collect();
        let spare: Vec<usize> = (0..all).filter(|window| !used.contains(window)).collect();
        let pick = |i: usize| spare[(2 * i + 1) * spare.len() / (2 * aside)];
        let window = |place: usize| tokens[place * length..(place + 1) * length].to_vec();
        return (fitted, (0..aside).map(|i| window(pick(i))).collect());
    }
    // Every eighth, from the middle of each eight; a single window cannot be split.
    let windows = fitted.len();
    let is_aside = |i: usize| windows > 1 && i % 8 == 4.min(windows - 1) && i / 8 < HELD_BACK_WINDOWS;
    let (aside, kept): (Vec<_>, Vec<_>) = fitted.into_iter().enumerate().partition(|(i, _)| is_aside(*i));
    let only = |windows: Vec<(usize, Vec<u32>)>| windows.into_iter().map(|(_, window)| window).collect();
    (only(kept), only(aside))
}

/// `count` windows spread evenly over all consecutive windows of `length` tokens; all of them if there are fewer.
pub fn spread(tokens: &[u32], length: usize, count: usize) -> Vec<Vec<u32>> {
    let all: Vec<&[u32]> = tokens.chunks_exact(length.max(1)).collect();
    let count = count.min(all.len());
    (0..count).map(|i| all[i * all.len() / count].to_vec()).collect()
}

/// Bytes as lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sources(session: &Session, args: &CalibrationArgs) -> anyhow::Result<Vec<Source>> {
    let mut sources = Vec::new();
    for source in &args.calibration {
        if source == "builtin" {
            sources.push(Source::Text(BUILTIN));
        } else if is_file(source) {
            sources.push(Source::File(PathBuf::from(source)));
        } else {
            sources.extend(dataset(session, source, args)?.into_iter().map(Source::File));
        }
    }
    Ok(sources)
}

/// What starts or ends like a path, has more slashes than a hub id, or is a file that is there, is a file; all else is a
/// dataset. A folder is none, so that one named `wikitext` does not hide the default.
pub fn is_file(source: &str) -> bool {
    const EXTENSIONS: [&str; 9] = ["txt", "jsonl", "parquet", "csv", "json", "tsv", "md", "gz", "zip"];
    let path = Path::new(source);
    // A hub id may have a dot too (`org/data-v1.5`).
    let extension = path.extension().map(|end| end.to_string_lossy().to_lowercase());
    source.is_empty()
        || looks_like_path(source)
        || extension.is_some_and(|end| EXTENSIONS.contains(&end.as_str()))
        || path.is_file()
}

fn dataset(session: &Session, name: &str, args: &CalibrationArgs) -> anyhow::Result<Vec<PathBuf>> {
    session.ui.note(&format!("calibration text: the dataset {name} (--calibration FILE takes your own)"));
    let subset = args.calibration_subset.as_deref().unwrap_or_else(|| default_subset(name));
    let files = Hub::from_env().dataset_files(name, subset, &args.calibration_split, &session.ui.downloads());
    Ok(files
        .map_err(|source| UserError::CalibrationDataset { dataset: name.into(), source: Box::new(source) })?)
}

/// The subset of a dataset of which the user named none; the hub calls the only one of a dataset `default`.
fn default_subset(name: &str) -> &'static str {
    match name.split('@').next() {
        Some("wikitext" | "Salesforce/wikitext") => "wikitext-2-raw-v1",
        _ => "default",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_spread_evenly_and_never_short() {
        let tokens: Vec<u32> = (0..103).collect();
        let windows = spread(&tokens, 10, 3);
        assert_eq!(windows.iter().map(|w| w[0]).collect::<Vec<_>>(), [0, 30, 60]);
        assert_eq!(spread(&tokens, 10, 99).len(), 10);
        assert!(spread(&tokens[..9], 10, 3).is_empty());
    }

    #[test]
    fn held_back_windows_are_not_among_the_fitted() {
        let tokens: Vec<u32> = (0..1000).collect();
        for (length, count, fitted, aside) in
            [(10, 32, 32, 4), (10, 100, 96, 4), (10, 97, 93, 4), (100, 10, 9, 1), (500, 2, 1, 1)]
        {
            let (windows, held_back) = split(&tokens, length, count);
            assert_eq!((windows.len(), held_back.len()), (fitted, aside), "{length} {count}");
            assert!(held_back.iter().all(|window| !windows.contains(window)), "{length} {count}");
        }
        assert_eq!(split(&tokens, 600, 5).1, [[0; 0]; 0]);
    }

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
        ] {
            assert!(!is_file(dataset), "{dataset}");
        }
        assert!(is_file("Cargo.toml"), "it is there");
    }

    #[test]
    fn only_wikitext_has_a_subset_that_goes_without_saying() {
        for wikitext in ["wikitext", "Salesforce/wikitext", "Salesforce/wikitext@main"] {
            assert_eq!(default_subset(wikitext), "wikitext-2-raw-v1");
        }
        assert_eq!(default_subset("org/wikitext"), "default");
    }
}
