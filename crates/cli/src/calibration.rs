//! From calibration sources to windows of tokens, by kind of text.

pub mod builtin;
mod sampled;
mod source;
mod windows;

use handlers::Model;
use handlers::hub::Hub;
use mla_core::WeightSource;
use sha2::{Digest, Sha256};

use crate::args::CalibrationArgs;
use crate::corpus::{Documents, Source};
use crate::error::UserError;
use crate::footprint::Footprint;
use crate::kept::Store;
use crate::session::{Opened, Session};

pub use source::{Named, is_file};
pub use windows::{Counts, Parts, split};

/// Sources unless the user names others.
const DEFAULT: [&str; 2] = ["builtin", "self"];

/// Windows to choose plans by, and to report on: so many of each kind, and in all so many at least.
const SELECT: (usize, usize) = (1, 4);
const REPORT: (usize, usize) = (4, 16);

/// Fewer calibration tokens than this for each dimension of the residual stream leave directions undetermined.
const FEW_TOKENS_A_DIMENSION: usize = 10;

/// Tokens that are read for each that is wanted: windows are spread over them, and a text may begin unlike it goes on.
const READ_FOR_EACH: usize = 64;

/// A kind of text, and how many windows of it.
#[derive(Clone, Debug)]
pub struct Share {
    /// Where it comes from.
    pub named: Named,
    /// Its windows.
    pub counts: Counts,
}

/// What calibration text is made of.
#[derive(Clone, Debug)]
pub struct Mixture {
    /// What the user named, or what stands for it.
    pub source: String,
    /// Kinds of which there is a window at least.
    pub shares: Vec<Share>,
    /// Tokens a window.
    pub length: usize,
}

/// Windows of one kind of text.
#[derive(Clone, Debug)]
pub struct Kind {
    /// The kind's name: `builtin:code`, `self`, or that of a file.
    pub name: String,
    /// How many windows serve what.
    pub counts: Counts,
    /// SHA-256 of the text as far as it was read, of sampled text of its tokens, in hex.
    pub text_sha256: String,
}

/// Calibration windows and where they came from; kind by kind in each of the three.
#[derive(Clone, Debug)]
pub struct Calibration {
    /// Windows that factors are fitted to.
    pub fit: Vec<Vec<u32>>,
    /// Windows of the same texts, none of them among `fit`, that plans are chosen by.
    pub select: Vec<Vec<u32>>,
    /// Windows of neither, that the chosen one is measured on.
    pub report: Vec<Vec<u32>>,
    /// The kinds.
    pub kinds: Vec<Kind>,
    /// What the user named: files, `builtin`, `self`, or a dataset.
    pub source: String,
}

impl Mixture {
    /// What a command line asks for; `None` with `--no-calibration`. Without a word of the user's, what the donor writes itself is
    /// left out where the memory does not hold the whole model.
    ///
    /// # Errors
    /// When a source is none, or has no window.
    pub fn of(
        session: &Session,
        args: &CalibrationArgs,
        model: &Model,
        overcommit: bool,
    ) -> anyhow::Result<Option<Self>> {
        if args.no_calibration {
            return Ok(None);
        }
        let length = args.max_calibration_length.min(model.config().max_positions);
        let mut names: Vec<&str> = args.calibration.iter().map(String::as_str).collect();
        if names.is_empty() {
            names = DEFAULT.to_vec();
            if let Err(UserError::TooLarge { needed, available, .. }) =
                room_to_sample(session, model, length, overcommit)
            {
                session.ui.note(&format!(
                    "note: calibrating on the builtin text alone: for text that the model writes itself the whole of it would have to \
                     be in memory, {needed} where {available} are free"
                ));
                names.pop();
            }
        }
        let mixture = Self::new(&names, &args.calibration_shares, args.num_calibration_samples, length)?;
        if mixture.sampled_windows() > 0 {
            room_to_sample(session, model, length, overcommit)?;
        }
        Ok(Some(mixture))
    }

    fn new(names: &[&str], shares: &[f64], windows: usize, length: usize) -> Result<Self, UserError> {
        let sources =
            names.iter().map(|name| Named::parse("--calibration", name)).collect::<Result<Vec<_>, _>>()?;
        if !shares.is_empty() && shares.len() != sources.len() {
            return Err(UserError::Flag {
                flag: "--calibration-shares",
                found: format!("{} shares", shares.len()),
                expected: format!("one for each source, {}", sources.len()),
            });
        }
        let counted = |source: &[Named]| match source {
            [Named::Sampled(Some(tokens))] => Some(tokens.div_ceil(length)),
            _ => None,
        };
        let share = |(place, source): (usize, &Vec<Named>)| match counted(source) {
            Some(_) => 0.0,
            None => shares.get(place).copied().unwrap_or(1.0),
        };
        let weights: Vec<f64> = sources.iter().enumerate().map(share).collect();
        let mut shared = match weights.iter().sum::<f64>() > 0.0 {
            true => windows::apportion(windows, &weights),
            false => vec![0; sources.len()],
        };
        for (count, source) in shared.iter_mut().zip(&sources) {
            *count = counted(source).unwrap_or(*count);
        }
        if let Some(empty) = shared.iter().position(|&count| count == 0) {
            return Err(UserError::EmptyShare { name: names[empty].into(), windows });
        }
        let fits: Vec<(Named, usize)> = sources
            .into_iter()
            .zip(&shared)
            .flat_map(|(kinds, &count)| {
                let each = windows::apportion(count, &vec![1.0; kinds.len()]);
                kinds.into_iter().zip(each).filter(|(_, count)| *count > 0)
            })
            .collect();
        let aside = |(each, least): (usize, usize)| each.max(least.div_ceil(fits.len()));
        // Of few windows few are measured on.
        let all: usize = fits.iter().map(|(_, count)| count).sum();
        let bounded = |count: usize, of: usize| count.min((all / (of * fits.len())).max(1));
        let (select, report) = (bounded(aside(SELECT), 8), bounded(aside(REPORT), 4));
        let counts = |fit| Counts { fit, select, report };
        let shares =
            fits.iter().map(|(named, fit)| Share { named: named.clone(), counts: counts(*fit) }).collect();
        Ok(Self { source: names.join(", "), shares, length })
    }

    /// Windows in all, by what they serve.
    pub fn counts(&self) -> Counts {
        let none = Counts { fit: 0, select: 0, report: 0 };
        self.shares.iter().fold(none, |sum, share| Counts {
            fit: sum.fit + share.counts.fit,
            select: sum.select + share.counts.select,
            report: sum.report + share.counts.report,
        })
    }

    /// Windows that the donor writes.
    pub fn sampled_windows(&self) -> usize {
        let sampled = self.shares.iter().filter(|share| matches!(share.named, Named::Sampled(_)));
        sampled.map(|share| share.counts.all()).sum()
    }

    /// Reads, tokenises and cuts the texts, and has the donor write its own.
    ///
    /// # Errors
    /// When a text cannot be had, is shorter than one window, or has a token that the model does not know; when what the donor
    /// writes is no text.
    pub fn load(
        &self,
        session: &Session,
        args: &CalibrationArgs,
        donor: &Opened,
        store: &Store,
        seed: u64,
    ) -> anyhow::Result<Calibration> {
        let model = &donor.model;
        let mut all = Calibration {
            fit: Vec::new(),
            select: Vec::new(),
            report: Vec::new(),
            kinds: Vec::new(),
            source: self.source.clone(),
        };
        for share in &self.shares {
            let (tokens, text_sha256) = match share.named {
                Named::Sampled(_) => self.sampled(share, session, donor, store, seed)?,
                _ => self.read(share, session, args, model)?,
            };
            let vocab_size = model.config().vocab_size;
            if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocab_size) {
                return Err(UserError::CalibrationToken { token, vocab_size }.into());
            }
            let parts = split(&tokens, self.length, share.counts);
            if parts.fit.is_empty() {
                return Err(UserError::CalibrationTooShort {
                    name: share.named.kind(),
                    tokens: tokens.len(),
                    length: self.length,
                }
                .into());
            }
            if parts.fit.len() < share.counts.fit {
                session.ui.note(&format!(
                    "note: {} gives {} windows of {} tokens, fewer than the {} asked for",
                    share.named.kind(),
                    parts.fit.len(),
                    self.length,
                    share.counts.fit
                ));
            }
            all.add(share.named.kind(), parts, text_sha256);
        }
        let (d_model, tokens) = (model.config().d_model, all.fit.iter().map(Vec::len).sum::<usize>());
        let few = FEW_TOKENS_A_DIMENSION * d_model;
        if tokens < few {
            session.ui.note(&format!(
                "note: {tokens} calibration tokens are few for d_model {d_model}; {few} or more tell the directions apart better"
            ));
        }
        Ok(all)
    }

    /// The tokens that the donor writes, and what they are known by.
    fn sampled(
        &self,
        share: &Share,
        session: &Session,
        donor: &Opened,
        store: &Store,
        seed: u64,
    ) -> anyhow::Result<(Vec<u32>, String)> {
        let tokens = written_by(session, donor, store, share.counts.all() * self.length, self.length, seed)?;
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        Ok((tokens, hex(&Sha256::digest(&bytes))))
    }

    /// The tokens of a text that is there, and what they are known by.
    fn read(
        &self,
        share: &Share,
        session: &Session,
        args: &CalibrationArgs,
        model: &Model,
    ) -> anyhow::Result<(Vec<u32>, String)> {
        let sources = match &share.named {
            Named::Sampled(_) => Vec::new(),
            Named::Builtin(kind) => vec![Source::Text(builtin::KINDS[*kind].1)],
            Named::File(path) => vec![Source::File(path.clone())],
            Named::Dataset(name) => dataset(session, name, args)?,
        };
        let wanted = share.counts.fit.saturating_mul(self.length).saturating_mul(READ_FOR_EACH);
        let documents = Documents::of(sources, &args.text_field)?;
        let text = session.tokens_of(model, documents, Some(wanted))?;
        Ok((text.ids, hex(&text.text_sha256)))
    }
}

impl Calibration {
    /// Text of one kind.
    pub fn of_one(name: &str, parts: Parts) -> Self {
        let (fit, select, report, kinds) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut one = Self { fit, select, report, kinds, source: name.into() };
        one.add(name.into(), parts, String::new());
        one
    }

    fn add(&mut self, name: String, parts: Parts, text_sha256: String) {
        let counts = Counts { fit: parts.fit.len(), select: parts.select.len(), report: parts.report.len() };
        self.fit.extend(parts.fit);
        self.select.extend(parts.select);
        self.report.extend(parts.report);
        self.kinds.push(Kind { name, counts, text_sha256 });
    }

    /// What all texts are known by: the digest of the one, or of all digests.
    pub fn text_sha256(&self) -> String {
        match self.kinds.as_slice() {
            [one] => one.text_sha256.clone(),
            kinds => {
                hex(&Sha256::digest(kinds.iter().map(|kind| kind.text_sha256.as_str()).collect::<String>()))
            }
        }
    }

    /// The windows, as calibration wants them.
    pub fn text(&self) -> calib::Text<'_> {
        calib::Text { fit: &self.fit, select: &self.select, report: &self.report }
    }
}

/// Text that a model writes, or wrote before: `count` tokens in documents of `length` at most.
///
/// # Errors
/// When it cannot be loaded, its chat template fails, or what it writes is no text.
pub fn written_by(
    session: &Session,
    model: &Opened,
    store: &Store,
    count: usize,
    length: usize,
    seed: u64,
) -> anyhow::Result<Vec<u32>> {
    let write = || sampled::sample(session, &model.model, count, length, seed);
    store.sampled(session, model, (count, length, seed), write)
}

/// Sampling runs the whole model.
fn room_to_sample(
    session: &Session,
    model: &Model,
    length: usize,
    overcommit: bool,
) -> Result<(), UserError> {
    let footprint = Footprint::of(model).cached(model.config(), sampled::BATCH, length);
    footprint.check(session, "sampling calibration text", overcommit)
}

fn dataset(session: &Session, name: &str, args: &CalibrationArgs) -> anyhow::Result<Vec<Source>> {
    session.ui.note(&format!("calibration text: the dataset {name} (--calibration FILE takes your own)"));
    let subset = args.calibration_subset.as_deref().unwrap_or_else(|| source::default_subset(name));
    let files = Hub::from_env().dataset_files(name, subset, &args.calibration_split, &session.ui.downloads());
    let files = files
        .map_err(|source| UserError::CalibrationDataset { dataset: name.into(), source: Box::new(source) })?;
    Ok(files.into_iter().map(Source::File).collect())
}

/// Bytes as lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(names: &[&str], shares: &[f64], windows: usize) -> Result<Vec<usize>, String> {
        let mixture = Mixture::new(names, shares, windows, 512).map_err(|error| error.to_string())?;
        Ok(mixture.shares.iter().map(|share| share.counts.fit).collect())
    }

    #[test]
    fn every_source_has_its_share_and_builtin_kinds_divide_theirs() {
        assert_eq!(windows(&["a.txt", "self"], &[], 128), Ok(vec![64, 64]));
        assert_eq!(windows(&["a.txt", "self"], &[3.0, 1.0], 128), Ok(vec![96, 32]));
        assert_eq!(windows(&["builtin", "self"], &[], 128), Ok(vec![10, 9, 9, 9, 9, 9, 9, 64]));
        assert_eq!(windows(&["a.txt", "self:1000"], &[], 128), Ok(vec![128, 2]));
        assert_eq!(windows(&["builtin"], &[], 3), Ok(vec![1, 1, 1]));
    }

    #[test]
    fn a_source_without_a_window_is_refused_and_so_is_a_share_too_few() {
        let empty = windows(&["a.txt", "b.txt"], &[1000.0, 1.0], 8).expect_err("nothing is left for b");
        assert!(empty.contains("b.txt"), "{empty}");
        let shares = windows(&["a.txt", "b.txt"], &[1.0], 8).expect_err("one share of two");
        assert!(shares.contains("--calibration-shares"), "{shares}");
    }

    #[test]
    fn kinds_are_measured_on_evenly_and_few_windows_seldom() {
        let counts =
            |names: &[&str], windows| Mixture::new(names, &[], windows, 512).expect("a mixture").counts();
        assert_eq!(counts(&["a.txt"], 128), Counts { fit: 128, select: 4, report: 16 });
        assert_eq!(counts(&["builtin", "self"], 128), Counts { fit: 128, select: 8, report: 32 });
        assert_eq!(counts(&["a.txt"], 3), Counts { fit: 3, select: 1, report: 1 });
    }
}
