//! How a failure reaches the user: what went wrong, what to do, and an exit code.

use handlers::hub::HubError;
use mla_core::generate::GenerateError;

/// A failure that is the user's to mend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserError {
    /// A value that no model could take.
    #[error("{flag} is {found}, expected {expected}")]
    Flag {
        /// The flag.
        flag: &'static str,
        /// What it was.
        found: String,
        /// What it may be.
        expected: String,
    },
    /// A task that the machine has no room for.
    #[error("{task} needs {needed} of {what}, and {available} are free")]
    TooLarge {
        /// The conversion, the evaluation, …
        task: &'static str,
        /// Memory or disk.
        what: &'static str,
        /// What it would take.
        needed: String,
        /// What there is.
        available: String,
    },
    /// An option of another method.
    #[error("{flag} belongs to the method {belongs_to}, not to {found}")]
    MethodFlag {
        /// The option.
        flag: &'static str,
        /// The method that has it.
        belongs_to: &'static str,
        /// The methods asked for.
        found: String,
    },
    /// An option of another task.
    #[error("{flag} belongs to the task {belongs_to}, not to {found}")]
    TaskFlag {
        /// The option.
        flag: &'static str,
        /// The tasks that have it.
        belongs_to: String,
        /// The task asked for.
        found: &'static str,
    },
    /// A tokenizer that does not give digits back.
    #[error("the tokenizer reads the digits 0123456789 as {read:?}")]
    NoDigits {
        /// What it makes of them.
        read: String,
    },
    /// Too few words for as many lines.
    #[error(
        "the text has {words} different words of four to eight small letters, and the task takes {needed}"
    )]
    FewWords {
        /// Words of the text.
        words: usize,
        /// Lines asked for.
        needed: usize,
    },
    /// An option of the objective `fisher`.
    #[error("{flag} belongs to the objective fisher, which is not asked for")]
    ObjectiveFlag {
        /// The option.
        flag: &'static str,
    },
    /// Calibration text shorter than one window.
    #[error("the calibration text {name} has {tokens} tokens, fewer than one window of {length}")]
    CalibrationTooShort {
        /// Its name.
        name: String,
        /// Tokens of the text.
        tokens: usize,
        /// Tokens a window.
        length: usize,
    },
    /// A source of the calibration text of which no window is read.
    #[error("the calibration source {name} has no share of {windows} windows")]
    EmptyShare {
        /// Its name.
        name: String,
        /// Windows of all sources.
        windows: usize,
    },
    /// A model that ends every document that it is to write at once.
    #[error("the model writes no text to calibrate on: {tokens} tokens in {documents} documents")]
    SampledNothing {
        /// Documents that it wrote.
        documents: usize,
        /// Their tokens.
        tokens: usize,
    },
    /// A model that writes one token for ever.
    #[error(
        "the model writes no text to calibrate on: {documents} of {of} documents repeat one token, the first {token}"
    )]
    SampledOneToken {
        /// The token of the first of them.
        token: u32,
        /// Such documents.
        documents: usize,
        /// All documents.
        of: usize,
    },
    /// A token of the calibration text that the model has no embedding for.
    #[error("the calibration text has token {token}, outside the model's vocabulary of {vocab_size}")]
    CalibrationToken {
        /// The offending id.
        token: u32,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// A calibration dataset that could not be had.
    #[error("cannot get the calibration dataset {dataset}")]
    CalibrationDataset {
        /// The dataset.
        dataset: String,
        /// Why.
        source: Box<HubError>,
    },
    /// A backend that is not compiled in, or a device that is not there.
    #[error("device {device}: {reason}")]
    Device {
        /// What was asked for.
        device: String,
        /// Why it cannot be had.
        reason: String,
        /// What to do.
        hint: String,
    },
    /// The device has no memory left.
    #[error("the device is out of memory")]
    DeviceMemory,
    /// A cache in numbers that the device has not.
    #[error("this device does not compute in {float}, which this model's cache takes in {dtype}")]
    CacheOnDevice {
        /// What was asked for, or is the folder's own.
        dtype: &'static str,
        /// What keys and values, or latents that are not quantised, then are.
        float: &'static str,
    },
    /// Integers for a cache that has no latents.
    #[error("{dtype} is for latents, and this model caches keys and values")]
    NoLatents {
        /// The type.
        dtype: &'static str,
    },
    /// A folder to publish that shrink did not write.
    #[error("{} has no shrink.json with the list of its files", path.display())]
    NotOurs {
        /// The folder.
        path: std::path::PathBuf,
    },
    /// A name in `shrink.json` that is no plain file of its folder.
    #[error("shrink.json lists {name}, which is no file of the folder")]
    NotOfTheFolder {
        /// The name.
        name: String,
    },
    /// A tensor of a tuned folder that the model has no place for.
    #[error("{key} has no place in the model that was converted")]
    NotOfTheModel {
        /// Its name.
        key: String,
    },
    /// A folder without a record of its spectra.
    #[error("{} has no shrink.json with the spectra of its layers", path.display())]
    NoSpectra {
        /// The folder.
        path: std::path::PathBuf,
    },
    /// A folder that is a donor where a converted one is needed.
    #[error("{path} is not a converted model: its config.json has no `mla` section")]
    NotConverted {
        /// The folder.
        path: String,
    },
    /// A teacher that reads text in another way.
    #[error("the teacher {teacher} has another tokenizer: token {place} of the text differs")]
    OtherTokenizer {
        /// The teacher.
        teacher: String,
        /// The first token that differs.
        place: usize,
    },
    /// A file of settings that is none.
    #[error("{path} is no file of settings: {reason}")]
    Settings {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A run folder that holds another run's beginning.
    #[error("{path} holds a run already")]
    RunExists {
        /// The folder.
        path: String,
    },
    /// A run folder that another process works in.
    #[error("another process is training in {path}")]
    RunBusy {
        /// The folder.
        path: String,
    },
    /// A run folder that would be replaced with the model it makes.
    #[error("the run's folder {run_dir} lies in {output}, which is written when the run is over")]
    RunInOutput {
        /// The run's folder.
        run_dir: String,
        /// OUT.
        output: String,
    },
    /// A run that cannot go on, and where it was last well.
    #[error("{error}; the last snapshot before it is {}", snapshot.display())]
    Diverged {
        /// What happened.
        error: train::TrainError,
        /// The last whole snapshot.
        snapshot: std::path::PathBuf,
    },
    /// A converted folder that does not say what it came from.
    #[error("{path} names no donor that could be the teacher")]
    NoDonor {
        /// The folder.
        path: String,
    },
    /// A converted folder without the donor's `W_k` and `W_v`.
    #[error("{path} does not store the original W_k and W_v, which the loss reconstruction needs")]
    NoOriginals {
        /// The folder.
        path: String,
    },
    /// A check that failed.
    #[error("{failures} of {checks} checks failed")]
    CheckFailed {
        /// Checks that failed.
        failures: usize,
        /// Checks made.
        checks: usize,
    },
    /// Standard input or output failed.
    #[error("cannot {action}: {source}")]
    Stdio {
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl UserError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            UserError::Flag { .. } => "shrink help <COMMAND> lists every option with its default".into(),
            UserError::TooLarge { task, what, .. } => match (*task, *what) {
                ("the conversion", "memory") => {
                    "lower --scratch-memory or --max-calibration-length; --dry-run shows what each takes, --overcommit tries \
                     all the same"
                }
                ("the conversion", _) => {
                    "name an OUT on a larger disk, or take --cascade-window 1 or --method separate"
                }
                ("the comparison", _) => {
                    "compare fewer methods and ratios at a time, or lower --num-calibration-samples or \
                     --max-calibration-length; --overcommit tries all the same"
                }
                _ => {
                    "take shorter or fewer sequences (--max-length, --batch-size), a smaller model, or a machine with more \
                     memory; --overcommit tries all the same"
                }
            }
            .into(),
            UserError::MethodFlag { flag, belongs_to, .. } => {
                format!("take --method {belongs_to}, or leave {flag} out")
            }
            UserError::TaskFlag { flag, .. } => format!("leave {flag} out; shrink help eval says what belongs to which task"),
            UserError::NoDigits { .. } => "--task copy and --task agreement need no digits".into(),
            UserError::FewWords { .. } => "give more text (--data), or take fewer --pairs".into(),
            UserError::ObjectiveFlag { flag } => {
                format!("take --objective fisher and calibration text, or leave {flag} out")
            }
            UserError::CalibrationTooShort { .. } => {
                "give more text (--calibration FILE), or shorten --max-calibration-length".into()
            }
            UserError::EmptyShare { .. } => {
                "raise --num-calibration-samples or its share (--calibration-shares), or leave it out".into()
            }
            UserError::SampledNothing { .. } | UserError::SampledOneToken { .. } => {
                "is it a whole, trained model? --calibration builtin, or FILE, takes text that is there".into()
            }
            UserError::CalibrationToken { .. } => {
                "the tokenizer does not belong to this model: take tokenizer.json from the model's own folder"
                    .into()
            }
            UserError::CalibrationDataset { source, .. } => return Some(dataset_hint(source)),
            UserError::Device { hint, .. } => hint.clone(),
            UserError::DeviceMemory => {
                "take a smaller --batch-size, a shorter context, --cache-dtype f16 or int4, a smaller latent cache, or --device cpu"
                    .into()
            }
            UserError::CacheOnDevice { .. } => "--cache-dtype f32 runs everywhere; --device cpu has every type".into(),
            UserError::NotOurs { .. } => "only what shrink wrote is published: convert, train, import or export first".into(),
            UserError::NotOfTheFolder { .. } => "put the file back, or write the folder anew".into(),
            UserError::NotOfTheModel { .. } => {
                "an adapter (LoRA) is merged into the model before it is saved: merge_and_unload()".into()
            }
            UserError::NoSpectra { .. } => "convert the donor again at the ratio you want".into(),
            UserError::NoLatents { .. } => {
                "take f16 or bf16; or shrink convert --compression-ratio 1, which has latents as wide as keys and values".into()
            }
            UserError::NotConverted { .. } => "shrink convert MODEL -o OUT makes one".into(),
            UserError::OtherTokenizer { .. } => "take the donor as the teacher".into(),
            UserError::Settings { .. } => "shrink train writes a whole one into the run folder: settings.toml".into(),
            UserError::RunExists { .. } => "go on with it by --resume, or name another --run-dir".into(),
            UserError::RunBusy { .. } => "wait for it, or name another --run-dir".into(),
            UserError::RunInOutput { .. } => "name a --run-dir beside OUT".into(),
            UserError::Diverged { error, .. } => return error.hint(),
            UserError::NoDonor { .. } => "name the donor with --teacher".into(),
            UserError::NoOriginals { .. } => {
                "convert with --store-original-weights, or name the donor with --teacher".into()
            }
            UserError::CheckFailed { .. } => "convert the donor again, or download the folder again".into(),
            UserError::Stdio { source, .. } if source.kind() == std::io::ErrorKind::InvalidData => {
                "the text must be UTF-8: iconv -f LATIN1 -t UTF-8 converts it".into()
            }
            UserError::Stdio { .. } => "check what stdin and stdout are connected to".into(),
        })
    }
}

/// What went wrong and why, on one line. A message that ends with its own cause does not say it again.
pub fn message(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if message.is_empty() {
            message = cause;
        } else if !message.ends_with(&cause) {
            message += &format!(": {cause}");
        }
    }
    message.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

/// The hint of whichever library's error is at the root of `error`.
pub fn hint(error: &anyhow::Error) -> Option<String> {
    let mut hints = error.chain().filter_map(|cause| {
        if let Some(e) = cause.downcast_ref::<handlers::Error>() {
            e.hint()
        } else if let Some(e) = cause.downcast_ref::<handlers::hub::HubError>() {
            e.hint()
        } else if let Some(e) = cause.downcast_ref::<calib::Error>() {
            calib_hint(e)
        } else if let Some(e) = cause.downcast_ref::<train::eval::EvalError>() {
            e.hint()
        } else if let Some(e) = cause.downcast_ref::<train::TrainError>() {
            e.hint()
        } else if let Some(e) = cause.downcast_ref::<train::SnapshotError>() {
            e.hint()
        } else if let Some(e) = cause.downcast_ref::<crate::corpus::CorpusError>() {
            e.hint()
        } else if let Some(e) = cause.downcast_ref::<GenerateError>() {
            generate_hint(e)
        } else {
            cause.downcast_ref::<UserError>().and_then(UserError::hint)
        }
    });
    hints.next()
}

/// Without the hub there are other texts; all else about a dataset the hub knows best.
fn dataset_hint(error: &HubError) -> String {
    let other = "use --calibration FILE with text of your own, --calibration builtin for the public-domain text that \
                 ships with shrink, or --no-calibration";
    match error {
        HubError::Unreachable { .. } | HubError::NotCached { .. } => other.into(),
        known => known.hint().unwrap_or_else(|| other.into()),
    }
}

fn generate_hint(error: &GenerateError) -> Option<String> {
    let hint = match error {
        GenerateError::EmptyPrompt { .. } => "give every --prompt some text",
        GenerateError::PromptTooLong { .. } => "shorten the prompt: shrink inspect tells a model's context",
        GenerateError::UnknownToken { .. } => "the tokenizer does not belong to this model",
        GenerateError::NotFinite { .. } => {
            "the weights overflow or are damaged; shrink check names the tensor"
        }
        GenerateError::Cache(_) => return None,
    };
    Some(hint.into())
}

/// `calib` passes a weight source's error through untouched, so the folder's own hint is still in there.
fn calib_hint(error: &calib::Error) -> Option<String> {
    match error {
        calib::Error::Source(source) => {
            source.downcast_ref::<handlers::Error>().and_then(handlers::Error::hint)
        }
        other => other.hint(),
    }
}
