//! Who takes part in a run beside the model that trains: its teacher, the matrices it came from.

use handlers::{MlaSection, Model};
use train::Originals;

use crate::args::TrainArgs;
use crate::error::UserError;
use crate::record::Record;
use crate::session::{Opened, Session, source_error};

/// Tokens by which two tokenizers are compared.
const COMPARED_TOKENS: usize = 10_000;

/// The donor's name: the teacher that was named, or what the folder's record says.
///
/// # Errors
/// When neither is there.
pub fn donor_name(args: &TrainArgs, opened: &Opened) -> Result<String, UserError> {
    let recorded = || recorded_donor(opened).ok_or_else(|| UserError::NoDonor { path: args.model.clone() });
    args.teacher.clone().map_or_else(recorded, Ok)
}

/// The donor, which has to read the text as the model does.
pub fn donor(session: &Session, args: &TrainArgs, opened: &Opened, tokens: &[u32]) -> anyhow::Result<Opened> {
    let name = donor_name(args, opened)?;
    let donor = session.open(&name)?;
    let theirs = session.tokens(&donor.model, &args.data, &args.text_field, Some(COMPARED_TOKENS))?;
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
