//! Where transformers 4 gives other ids than transformers 5, whose ids shrink's are.

use std::fmt;

use serde_json::{Map, Value};
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper};

use super::Tokenizer;
use super::class::Class;
use super::files::{Files, switch};
use super::special::Specials;
use crate::error::Error;

/// Something about a folder's tokenizer that its user should know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenizerNote {
    /// Other tokens stand around a prompt.
    Ends {
        /// The tokens here, as in transformers 5.
        here: Vec<String>,
        /// Those of transformers 4.
        generation_4: Vec<String>,
    },
    /// Text is split by other rules.
    Splits {
        /// The class that splits it here, as in transformers 5.
        class: &'static str,
    },
    /// Transformers reads the folder with a class that has rules which shrink does not have.
    Unmodelled {
        /// What the folder names.
        class: String,
    },
}

impl TokenizerNote {
    /// Whether it concerns prompts alone: nothing stands around a corpus.
    pub fn is_of_prompts(&self) -> bool {
        matches!(self, Self::Ends { .. })
    }
}

impl fmt::Display for TokenizerNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tokens = |tokens: &[String]| match tokens {
            [] => "no token".to_owned(),
            some => some.join(" and "),
        };
        match self {
            Self::Ends { here, generation_4 } => write!(
                f,
                "prompts get {} put to them, as in transformers 5, where tokenizer.json counts and not `add_bos_token` and \
                 `add_eos_token` of tokenizer_config.json; transformers 4 puts {}",
                tokens(here),
                tokens(generation_4)
            ),
            Self::Splits { class: "TokenizersBackend" } => write!(
                f,
                "text is split by tokenizer.json alone, as in transformers 5; transformers 4 heeds `add_prefix_space` of \
                 tokenizer_config.json"
            ),
            Self::Splits { class } => write!(
                f,
                "text is split by the rules of {class}, as in transformers 5; transformers 4 takes those of tokenizer.json, \
                 and gives some texts other tokens"
            ),
            Self::Unmodelled { class } => write!(
                f,
                "tokenizer.json is read as it stands; transformers 5 has rules of its own for {class}, which may give some \
                 texts other tokens"
            ),
        }
    }
}

/// The notes on a tokenizer; `file_ends` are the ids that `tokenizer.json` itself puts around a prompt.
pub(super) fn find(
    tokenizer: &Tokenizer,
    class: Class,
    files: &Files,
    specials: &Specials,
    file_ends: &[u32],
) -> Result<Vec<TokenizerNote>, Error> {
    let mut notes = Vec::new();
    let Some(file) = files.tokenizer() else { return Ok(notes) };
    if class == Class::Unmodelled {
        let class = files.class().or(files.class_of_model()).unwrap_or(files.model_type()).to_owned();
        notes.push(TokenizerNote::Unmodelled { class });
    }
    let texts =
        |ids: &[u32]| ids.iter().filter_map(|&id| tokenizer.inner.id_to_token(id)).collect::<Vec<_>>();
    let here = texts(&tokenizer.run("", true)?);
    let generation_4 = ends_of_generation_4(files, specials).unwrap_or_else(|| texts(file_ends));
    if here != generation_4 {
        notes.push(TokenizerNote::Ends { here, generation_4 });
    }
    let unread = |source| Error::Json { path: files.path(), source };
    if splits(&tokenizer.inner).map_err(unread)? != splits_of_generation_4(file, files).map_err(unread)? {
        notes.push(TokenizerNote::Splits { class: class.name() });
    }
    Ok(notes)
}

/// Classes of transformers 4 that put their own tokens around a prompt; `None` for those that do as `tokenizer.json` says.
fn ends_of_generation_4(files: &Files, specials: &Specials) -> Option<Vec<String>> {
    let class = Class::of_generation_4(files);
    let begins = match class {
        Class::Llama | Class::CodeLlama | Class::Gemma => true,
        Class::GptNeoX => false,
        _ => return None,
    };
    let asked = |name: &str, default: bool| switch(files.settings(), name).unwrap_or(default);
    let ends = [("bos_token", asked("add_bos_token", begins)), ("eos_token", asked("add_eos_token", false))];
    // The class there may be another than here, and bring its own names.
    let of_class = |name: &str| {
        let silent = !files.settings().contains_key(name);
        class.tokens().iter().find(|(known, _)| silent && *known == name).map(|(_, text)| *text)
    };
    let named = |name: &str| specials.named(name).or(of_class(name)).map(str::to_owned);
    Some(ends.into_iter().filter(|(_, puts)| *puts).filter_map(|(name, _)| named(name)).collect())
}

/// What decides how a text without special tokens is split, in a form that can be compared.
type Splits = [Value; 3];

fn splits(inner: &tokenizers::Tokenizer) -> Result<Splits, serde_json::Error> {
    let model = serde_json::to_value(ModelFlags::of(inner))?;
    Ok([
        serde_json::to_value(inner.get_normalizer())?,
        without_offsets(serde_json::to_value(inner.get_pre_tokenizer())?),
        model,
    ])
}

/// `tokenizer.json`'s own rules; a class of transformers 4 changes one switch in them.
fn splits_of_generation_4(file: &[u8], files: &Files) -> Result<Splits, serde_json::Error> {
    /// The fields that are read; the vocabulary is passed over.
    #[derive(serde::Deserialize)]
    struct File {
        normalizer: Option<NormalizerWrapper>,
        pre_tokenizer: Option<PreTokenizerWrapper>,
        model: ModelFlags,
    }
    let file: File = serde_json::from_slice(file)?;
    let mut pre_tokenizer = without_offsets(serde_json::to_value(file.pre_tokenizer)?);
    // LLaMA's class hands on a null where nothing is said, and so changes nothing.
    let silent = files.settings().get("add_prefix_space").is_none();
    let keeps = matches!(Class::of_generation_4(files), Class::Llama | Class::CodeLlama | Class::Gemma);
    let asked = match silent {
        true => Some(false).filter(|_| !keeps),
        false => switch(files.settings(), "add_prefix_space"),
    };
    if let (Some(asked), Some(prefix_space)) = (asked, pre_tokenizer.get_mut("add_prefix_space")) {
        *prefix_space = asked.into();
    }
    Ok([serde_json::to_value(file.normalizer)?, pre_tokenizer, serde_json::to_value(file.model)?])
}

/// What of a model changes ids beside vocabulary and merges.
#[derive(serde::Deserialize, serde::Serialize)]
struct ModelFlags {
    #[serde(rename = "type", default = "ModelFlags::bpe")]
    kind: String,
    #[serde(default)]
    ignore_merges: bool,
    #[serde(default)]
    byte_fallback: bool,
}

impl ModelFlags {
    fn of(inner: &tokenizers::Tokenizer) -> Self {
        use tokenizers::ModelWrapper::{BPE, Unigram, WordLevel, WordPiece};
        let (kind, ignore_merges, byte_fallback) = match inner.get_model() {
            BPE(bpe) => ("BPE", bpe.ignore_merges, bpe.byte_fallback),
            Unigram(unigram) => ("Unigram", false, unigram.byte_fallback()),
            WordLevel(_) => ("WordLevel", false, false),
            WordPiece(_) => ("WordPiece", false, false),
        };
        Self { kind: kind.into(), ignore_merges, byte_fallback }
    }

    fn bpe() -> String {
        "BPE".into()
    }
}

/// Without the fields that concern offsets in the text alone.
fn without_offsets(mut value: Value) -> Value {
    fn strip(fields: &mut Map<String, Value>) {
        fields.remove("trim_offsets");
        for value in fields.values_mut() {
            match value {
                Value::Object(fields) => strip(fields),
                Value::Array(values) => values.iter_mut().filter_map(Value::as_object_mut).for_each(strip),
                _ => {}
            }
        }
    }
    if let Some(fields) = value.as_object_mut() {
        strip(fields);
    }
    value
}
