//! Who takes part in a run beside the model that trains: its teacher, the matrices it came from.

use std::path::PathBuf;

use handlers::{MlaSection, Model};
use mla_core::WeightSource;
use train::Originals;

use crate::args::TrainArgs;
use crate::calibration::{Named, builtin, written_by};
use crate::corpus::{Documents, Source};
use crate::error::UserError;
use crate::kept::Store;
use crate::record::Record;
use crate::session::{Opened, Session, source_error};

/// Tokens by which two tokenizers are compared.
const COMPARED_TOKENS: usize = 10_000;
/// Tokens that a donor writes where the number of steps is not known, and of each document at most.
const WRITTEN_TOKENS: usize = 1 << 16;
const WRITTEN_LENGTH: usize = 512;

/// The donor's name: the teacher that was named, or what the folder's record says.
///
/// # Errors
/// When neither is there.
pub fn donor_name(args: &TrainArgs, opened: &Opened) -> Result<String, UserError> {
    let recorded = || recorded_donor(opened).ok_or_else(|| UserError::NoDonor { path: args.model.clone() });
    args.teacher.clone().map_or_else(recorded, Ok)
}

/// The text to train on: files as one text, then what ships with shrink, then what the donor writes.
///
/// # Errors
/// When a text cannot be read, or the donor is not there or writes none.
pub fn text(
    session: &Session,
    args: &TrainArgs,
    opened: &Opened,
    settings: &train::Settings,
) -> anyhow::Result<Vec<u32>> {
    let mut sources: Vec<Source> = files(args).map(Source::File).collect();
    let mut written = 0;
    for named in named(args)? {
        match named {
            Named::Builtin(kind) => sources.push(Source::Text(builtin::KINDS[kind].1)),
            Named::Sampled(tokens) => written += tokens.unwrap_or_else(|| all_steps(settings)),
            Named::File(_) | Named::Dataset(_) => {}
        }
    }
    let mut ids = Vec::new();
    if !sources.is_empty() {
        let documents = Documents::of(sources, &args.text_field)?;
        ids = session.tokens_of(&opened.model, documents, None)?.ids;
    }
    if written > 0 {
        let donor = session.open(&donor_name(args, opened)?)?;
        let length = WRITTEN_LENGTH.min(donor.model.config().max_positions);
        let store = Store::new(args.keep);
        ids.extend(written_by(session, &donor, &store, written, length, settings.seed)?);
    }
    Ok(ids)
}

/// The files among what is trained on. What is neither the model's own text nor the builtin one is a file, there or not.
pub fn files(args: &TrainArgs) -> impl Iterator<Item = PathBuf> {
    let is_file = |name: &&String| !["self", "builtin"].contains(&name.split(':').next().unwrap_or_default());
    args.data.iter().filter(is_file).map(PathBuf::from)
}

fn named(args: &TrainArgs) -> Result<Vec<Named>, UserError> {
    let parsed: Result<Vec<_>, _> = args.data.iter().map(|name| Named::parse("--data", name)).collect();
    Ok(parsed?.concat())
}

/// Tokens of all steps, so that none is seen twice.
fn all_steps(settings: &train::Settings) -> usize {
    let a_step = settings.batch_size * settings.gradient_accumulation_steps * settings.max_length;
    settings.max_steps.map_or(WRITTEN_TOKENS, |steps| steps.saturating_mul(a_step).min(4 * WRITTEN_TOKENS))
}

/// The donor, which has to read the text as the model does.
pub fn donor(session: &Session, args: &TrainArgs, opened: &Opened, tokens: &[u32]) -> anyhow::Result<Opened> {
    let name = donor_name(args, opened)?;
    let donor = session.open(&name)?;
    let files: Vec<PathBuf> = files(args).collect();
    if files.is_empty() {
        return Ok(donor);
    }
    let theirs = session.tokens(&donor.model, &files, &args.text_field, Some(COMPARED_TOKENS))?;
    let compared = COMPARED_TOKENS.min(tokens.len().max(theirs.len()));
    match (0..compared).find(|&place| tokens.get(place) != theirs.get(place)) {
        Some(place) => Err(UserError::OtherTokenizer { teacher: name, place }.into()),
        None => Ok(donor),
    }
}

/// The donor that `shrink.json` names.
pub fn recorded_donor(opened: &Opened) -> Option<String> {
    Some(Record::read(opened.model.folder()).ok()??.donor?.name)
}

/// The original `W_k` and `W_v`: of the folder, or of the teacher that was named.
pub fn originals(
    session: &Session,
    opened: &Opened,
    donor: Option<&Opened>,
    section: &MlaSection,
) -> anyhow::Result<Originals> {
    let source: &Model = match (section.store_original_weights, donor) {
        (true, _) => &opened.model,
        (false, Some(donor)) => &donor.model,
        (false, None) => {
            return Err(UserError::NoOriginals { path: opened.model.folder().display().to_string() }.into());
        }
    };
    let latent: Vec<bool> = section.layers.iter().map(Option::is_some).collect();
    Originals::load(source, &latent, &session.device).map_err(source_error)
}
