//! Everything that can be wrong with a model folder.

use std::path::PathBuf;

use thiserror::Error as ThisError;

use crate::detect::Unsuited;

/// A model folder that cannot be read or written, with what was expected and found. The remedy is in [`Error::hint`].
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum Error {
    /// A model that a layout cannot say.
    #[error("the model cannot be written as {format}: {reason}")]
    Export {
        /// The layout.
        format: &'static str,
        /// Why, and what works.
        reason: String,
    },
    /// A folder that cannot be brought into our form.
    #[error("{} cannot be imported: {reason}", path.display())]
    Import {
        /// The folder.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A file could not be read, written or renamed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried: `read`, `write`, `create`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A JSON file that is none.
    #[error("{} is not valid JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where it breaks.
        source: serde_json::Error,
    },
    /// A field of `config.json` is absent.
    #[error("{}: the field `{field}` is missing", path.display())]
    MissingField {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
    },
    /// A field of `config.json` has a value the model cannot have.
    #[error("{}: `{field}` is {found}, expected {expected}", path.display())]
    BadField {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Sizes that are no model's, each by itself or multiplied.
    #[error("{}: the sizes give {what} of {found}, expected 1 to {most}", path.display())]
    Sizes {
        /// The file.
        path: PathBuf,
        /// What they give.
        what: &'static str,
        /// How much of it.
        found: u128,
        /// How much there may be.
        most: u128,
    },
    /// A `model_type` no handler knows.
    #[error("{}: model type `{found}` is unknown", path.display())]
    UnknownModelType {
        /// The file.
        path: PathBuf,
        /// The type found.
        found: String,
        /// The types known.
        known: Vec<String>,
    },
    /// The model was born with latent attention.
    #[error(
        "{}: `{model_type}` already uses Multi-Head Latent Attention{}",
        path.display(),
        kv_lora_rank.map_or(String::new(), |rank| format!(" (kv_lora_rank {rank})"))
    )]
    NativeMla {
        /// The file.
        path: PathBuf,
        /// The model type.
        model_type: String,
        /// Its latent width, where the configuration says it.
        kv_lora_rank: Option<u64>,
    },
    /// A model that has no cache to shrink in every layer.
    #[error("{}: `{model_type}` {kind}", path.display())]
    Unsuited {
        /// The file.
        path: PathBuf,
        /// The model type.
        model_type: String,
        /// Why.
        kind: Unsuited,
    },
    /// A model of another graph than its `model_type` says.
    #[error("{}: `model_type` is {model_type}, but `{field}` is {found}: another graph", path.display())]
    CustomCode {
        /// The file.
        path: PathBuf,
        /// The type it calls itself.
        model_type: String,
        /// The field that says otherwise.
        field: String,
        /// Its value.
        found: String,
    },
    /// Three lines that Git LFS would replace by the file.
    #[error("{}: a Git LFS pointer, not the file", path.display())]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// Weights that are not stored as plain floats, but by a method of quantisation.
    #[error("{}: the weights are quantised ({scheme}), the first such is {key}", path.display())]
    Quantised {
        /// The folder.
        path: PathBuf,
        /// The method.
        scheme: String,
        /// A tensor that shows it.
        key: String,
    },
    /// A folder without safetensors weights.
    #[error("{} has no model.safetensors and no model.safetensors.index.json", path.display())]
    NoWeights {
        /// The folder.
        path: PathBuf,
        /// Weight files of another format that are there.
        others: Vec<String>,
    },
    /// A safetensors file whose header or offsets are wrong.
    #[error("{} is not a valid safetensors file: {reason}", path.display())]
    BadSafetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Numbered shards without an index, and not all of them.
    #[error(
        "{} has no model.safetensors.index.json, and of {} numbered shards {} are missing, the first is {}",
        path.display(),
        found.len() + missing.len(),
        missing.len(),
        missing[0]
    )]
    IncompleteShards {
        /// The folder.
        path: PathBuf,
        /// The shards that are there.
        found: Vec<String>,
        /// The missing ones.
        missing: Vec<String>,
    },
    /// A tensor in several shards.
    #[error("{}: {key} is in {}, and no index says which copy counts", path.display(), shards.join(" and in "))]
    TwoCopies {
        /// The folder.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The shards that have it.
        shards: Vec<String>,
    },
    /// The index names shards that are not there.
    #[error("{} names {} shard(s) that are missing, the first is {}", path.display(), missing.len(), missing[0])]
    MissingShards {
        /// The index.
        path: PathBuf,
        /// The missing files.
        missing: Vec<String>,
    },
    /// The index names no tensor, or a file outside the folder.
    #[error("{}: {reason}", path.display())]
    BadIndex {
        /// The index.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Tensors the architecture needs are absent.
    #[error("{}: {} tensor(s) missing, the first is {}", path.display(), keys.len(), keys[0])]
    MissingTensors {
        /// The folder.
        path: PathBuf,
        /// Their keys.
        keys: Vec<String>,
    },
    /// Tensors the architecture needs hold nothing.
    #[error("{}: {} tensor(s) are empty, the first is {}", path.display(), keys.len(), keys[0])]
    EmptyTensors {
        /// The folder.
        path: PathBuf,
        /// Their keys.
        keys: Vec<String>,
    },
    /// A tensor has another shape than `config.json` implies.
    #[error("{}: {key} has shape {found:?}, config.json implies {expected:?}", path.display())]
    Shape {
        /// The folder.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The shape the configuration implies.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor is stored in a type that is no plain float.
    #[error("{}: {key} is stored as {found}, expected F32, F16 or BF16", path.display())]
    UnsupportedDtype {
        /// The folder.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The type in the file.
        found: String,
    },
    /// A weight is NaN or infinite.
    #[error("{}: {key} holds {value} at element {index}", path.display())]
    NotFinite {
        /// The folder.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Flat index of the first such element.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A weight does not fit the type it should be written in.
    #[error("{key} holds {value}, which overflows {dtype}")]
    Overflow {
        /// The tensor.
        key: String,
        /// The value.
        value: f32,
        /// The type asked for.
        dtype: &'static str,
    },
    /// A factor could not be fetched from where it was kept.
    #[error("cannot fetch the factor for {slot}: {source}")]
    Factor {
        /// What it is in the graph.
        slot: String,
        /// The reason.
        source: mla_core::SourceError,
    },
    /// A chat template that is none, or refuses a conversation.
    #[error("the chat template {} fails: {reason}", path.display())]
    ChatTemplate {
        /// The file that holds it.
        path: PathBuf,
        /// What it says.
        reason: String,
    },
    /// The tokenizer cannot be loaded or refuses a text.
    #[error("tokenizer {}: {reason}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// The tokenizer's reason.
        reason: String,
    },
    /// A folder without a tokenizer that shrink reads.
    #[error("{} has no tokenizer.json{}", path.display(), besides(.found))]
    NoTokenizer {
        /// The folder.
        path: PathBuf,
        /// Files of other tokenizers that are there.
        found: Vec<String>,
    },
    /// The output folder exists.
    #[error("{} already exists", path.display())]
    OutputExists {
        /// The folder.
        path: PathBuf,
    },
    /// A place that is no place for an output folder.
    #[error("{} {reason}", path.display())]
    OutputRefused {
        /// The place.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A link in the donor's folder to a file that is not the model's.
    #[error("{} leads out of the model's folder, to {}", path.display(), target.display())]
    LinkOutside {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// The hub, or the name given for a model.
    #[error(transparent)]
    Hub(#[from] crate::hub::HubError),
}

impl Error {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::Export { .. } => "shrink help export says what each format takes".into(),
            Error::Import { .. } => "shrink import takes what shrink export --format deepseek wrote, tuned by transformers".into(),
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                "free some space or choose another output folder; nothing was left behind".into()
            }
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                "check the permissions of the folder".into()
            }
            Error::Io { action, .. } if !["read", "open"].contains(action) => {
                "check the place of the output folder, and the disk it is on".into()
            }
            Error::Io { .. } | Error::Json { .. } => {
                "check that the folder is a complete Hugging Face model folder".into()
            }
            Error::MissingField { .. } | Error::BadField { .. } | Error::Sizes { .. } => {
                "compare config.json with the original on the hub".into()
            }
            Error::UnknownModelType { known, .. } => format!(
                "known types: {}; docs/adding-a-model.md shows how to add one in a single file",
                known.join(", ")
            ),
            Error::NativeMla { .. } => {
                "its cache is compressed by design: there are no full keys and values to replace; what shrink export wrote, \
                 tuned or not, shrink import brings back"
                    .into()
            }
            Error::NoWeights { others, .. } if others.is_empty() => {
                "the folder should hold config.json, tokenizer.json and model.safetensors (or shards with their index)"
                    .into()
            }
            Error::NoWeights { others, .. } if others.iter().any(|name| name == "adapter_model.safetensors") => {
                "this is an adapter: merge it into its base model (peft's merge_and_unload) and save that".into()
            }
            Error::NoWeights { others, .. } if others.iter().all(|name| name.ends_with(".safetensors")) => format!(
                "found {}: a whole model is named model.safetensors, shards model-00001-of-0000N.safetensors",
                others.join(", ")
            ),
            Error::NoWeights { others, .. } => format!(
                "found {}: convert it to safetensors first, e.g. with transformers' save_pretrained",
                others.join(", ")
            ),
            Error::BadSafetensors { .. } => "the file is damaged or cut short: download it again".into(),
            Error::Unsuited { kind, .. } => kind.hint().into(),
            Error::CustomCode { .. } => {
                "its code is its own, and its cache another than the type's; look for the model under a type of transformers' own"
                    .into()
            }
            Error::LfsPointer { .. } => {
                "run `git lfs pull` in the folder it was cloned to, or download the file itself".into()
            }
            Error::Quantised { .. } => crate::quantised::HINT.into(),
            Error::EmptyTensors { .. } => {
                "DeepSpeed ZeRO-3 saves so where the parts of its processes are not gathered: save again with \
                 stage3_gather_16bit_weights_on_model_save, or run zero_to_fp32.py on the checkpoint"
                    .into()
            }
            Error::TwoCopies { .. } => {
                "fetch model.safetensors.index.json too, or remove the shard that does not belong to the model".into()
            }
            Error::LinkOutside { .. } => "put the file itself in the place of the link, or remove the link".into(),
            Error::MissingShards { .. } | Error::IncompleteShards { .. } => "download the missing shards into the same folder".into(),
            Error::BadIndex { .. } => "download model.safetensors.index.json and its shards again".into(),
            Error::MissingTensors { .. } => {
                "config.json and the weights do not belong together, a shard is not the one that the index means, or the file \
                 is of another architecture"
                    .into()
            }
            Error::Shape { .. } => {
                "config.json and the weights do not belong together, or the file is of another architecture".into()
            }
            Error::UnsupportedDtype { .. } => "use the unquantised checkpoint (bf16, f16 or f32)".into(),
            Error::NotFinite { .. } => {
                "the weights are damaged, or were saved in f16 and overflowed: use the bf16 or f32 original".into()
            }
            Error::Overflow { .. } => "use --dtype bf16, which has f32's range".into(),
            Error::Factor { .. } => "check the disk that holds temporary files, and convert again".into(),
            Error::ChatTemplate { .. } => {
                "give text of your own (--calibration FILE), or copy the template from the original again".into()
            }
            Error::Tokenizer { .. } => "the file is damaged or of another kind: copy it from the original again".into(),
            Error::NoTokenizer { found, .. } if found.is_empty() => {
                "copy tokenizer.json and tokenizer_config.json from the model's original into the folder".into()
            }
            Error::NoTokenizer { path, .. } => format!(
                "transformers writes one (it wants sentencepiece, protobuf and tiktoken too): python -c \"from \
                 transformers import AutoTokenizer; \
                 AutoTokenizer.from_pretrained('{0}').save_pretrained('{0}')\"",
                path.display()
            ),
            Error::OutputRefused { .. } => {
                "name a new folder for the output; --force replaces only what shrink wrote, and nothing that the command needs"
                    .into()
            }
            Error::OutputExists { .. } => "choose another folder or pass --force to replace it".into(),
            Error::Hub(error) => return error.hint(),
        };
        Some(hint)
    }
}

fn besides(found: &[String]) -> String {
    if found.is_empty() { String::new() } else { format!(", only {}", found.join(", ")) }
}
