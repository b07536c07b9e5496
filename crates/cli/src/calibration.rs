//! From a calibration source to equally long windows of tokens.

use std::path::{Path, PathBuf};

use handlers::hub::Hub;
use handlers::{Model, Tokenizer};
use sha2::{Digest, Sha256};

use crate::args::CalibrationArgs;
use crate::corpus;
use crate::error::UserError;
use crate::session::Session;

/// The text that ships with shrink: public-domain prose and speeches.
pub const BUILTIN: &str = include_str!("../../../goldens/demo/calibration.txt");

/// Calibration windows and where they came from.
#[derive(Clone, Debug)]
pub struct Calibration {
    /// Equally long windows.
    pub windows: Vec<Vec<u32>>,
    /// What the user named: files, `builtin`, or a dataset.
    pub source: String,
    /// SHA-256 of the text, in hex.
    pub text_sha256: String,
}

/// Reads, tokenises and cuts the calibration text; `None` with `--no-calibration`.
///
/// # Errors
/// When the text cannot be had or is shorter than one window.
pub fn load(session: &Session, args: &CalibrationArgs, model: &Model) -> anyhow::Result<Option<Calibration>> {
    if args.no_calibration {
        return Ok(None);
    }
    check(args)?;
    let text = text(session, args)?;
    let tokens = Tokenizer::open(model.folder())?.encode(&text)?;
    let length = args.max_calibration_length.min(mla_core::WeightSource::config(model).max_positions);
    let windows = spread(&tokens, length, args.num_calibration_samples);
    if windows.is_empty() {
        return Err(UserError::CalibrationTooShort { tokens: tokens.len(), length }.into());
    }
    if windows.len() < args.num_calibration_samples {
        session.ui.note(&format!(
            "note: the text gives {} windows of {length} tokens, fewer than the {} asked for",
            windows.len(),
            args.num_calibration_samples
        ));
    }
    let text_sha256 = hex(&Sha256::digest(text.as_bytes()));
    Ok(Some(Calibration { windows, source: args.calibration.join(", "), text_sha256 }))
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

fn check(args: &CalibrationArgs) -> Result<(), UserError> {
    let flag = |flag, found: usize, expected: &str| UserError::Flag {
        flag,
        found: found.to_string(),
        expected: expected.into(),
    };
    if args.num_calibration_samples == 0 {
        return Err(flag("--num-calibration-samples", 0, "at least 1"));
    }
    if args.max_calibration_length < 2 {
        return Err(flag("--max-calibration-length", args.max_calibration_length, "at least 2"));
    }
    Ok(())
}

fn text(session: &Session, args: &CalibrationArgs) -> anyhow::Result<String> {
    let mut documents = Vec::new();
    for source in &args.calibration {
        if source == "builtin" {
            documents.push(BUILTIN.to_owned());
        } else if is_file(source) {
            documents.extend(corpus::read(&[PathBuf::from(source)], &args.text_field)?);
        } else {
            let files = dataset(session, source, &args.calibration_subset)?;
            documents.extend(corpus::read(&files, &args.text_field)?);
        }
    }
    Ok(documents.join("\n\n"))
}

/// A name with an extension we read, or something that is there, is a file; all else is a dataset.
fn is_file(source: &str) -> bool {
    let path = Path::new(source);
    let known =
        path.extension().is_some_and(|end| ["txt", "jsonl", "parquet"].iter().any(|known| end == *known));
    known || path.exists() || source.starts_with(['.', '/', '~']) || source.is_empty()
}

fn dataset(session: &Session, name: &str, subset: &str) -> anyhow::Result<Vec<PathBuf>> {
    let files = Hub::from_env().dataset_files(name, subset, "train", &session.ui.downloads());
    let unreachable = |e: handlers::hub::HubError| UserError::CalibrationUnreachable {
        dataset: name.into(),
        reason: e.to_string(),
    };
    Ok(files.map_err(unreachable)?)
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
    fn names_and_files_are_told_apart() {
        for file in ["a.txt", "dir/b.jsonl", "./x", "/x", "c.parquet"] {
            assert!(is_file(file), "{file}");
        }
        for dataset in ["wikitext", "Salesforce/wikitext"] {
            assert!(!is_file(dataset), "{dataset}");
        }
    }
}
