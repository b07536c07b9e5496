//! What begins and what ends a prompt.

use serde_json::{Value, json};
use tokenizers::PostProcessorWrapper;

use super::class::Class;
use super::files::{Files, switch};
use super::special::Specials;

/// Who says what stands around a prompt.
pub(super) enum Ends {
    /// `tokenizer.json`.
    File,
    /// These tokens, where there are such.
    Tokens {
        /// Before the prompt.
        begin: Option<String>,
        /// After it.
        end: Option<String>,
    },
    /// RoBERTa's `cls_token` and `sep_token`.
    Roberta {
        /// Before the prompt.
        begin: String,
        /// After it.
        end: String,
    },
}

impl Ends {
    /// As transformers 5 has it: beside a `tokenizer.json`, `add_bos_token` and `add_eos_token` do not count.
    pub(super) fn of(class: Class, files: &Files, specials: &Specials) -> Self {
        let named = |name: &str| specials.named(name).map(str::to_owned);
        if let (Class::Roberta, Some(begin), Some(end)) = (class, named("cls_token"), named("sep_token")) {
            return Self::Roberta { begin, end };
        }
        let has_file = files.tokenizer().is_some();
        let asked = |name: &str| !has_file && switch(files.settings(), name).unwrap_or(false);
        match class {
            Class::CodeLlama => return Self::Tokens { begin: named("bos_token"), end: None },
            Class::GptNeoX => {}
            _ if has_file => return Self::File,
            _ => {}
        }
        Self::Tokens {
            begin: named("bos_token").filter(|_| asked("add_bos_token")),
            end: named("eos_token").filter(|_| asked("add_eos_token")),
        }
    }

    /// Has the tokenizer put them.
    pub(super) fn put(&self, inner: &mut tokenizers::Tokenizer) -> tokenizers::Result<()> {
        let id = |text: &str| inner.token_to_id(text).unwrap_or_default();
        let processor = match self {
            Self::File => return Ok(()),
            Self::Tokens { begin: None, end: None } => {
                inner.with_post_processor(None::<PostProcessorWrapper>);
                return Ok(());
            }
            Self::Tokens { begin, end } => {
                let token = |text: &String| json!({ "SpecialToken": { "id": text, "type_id": 0 } });
                let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
                let single: Vec<Value> =
                    begin.iter().map(token).chain([text]).chain(end.iter().map(token)).collect();
                let described = |text: &String| {
                    (text.clone(), json!({ "id": text, "ids": [id(text)], "tokens": [text] }))
                };
                let tokens: serde_json::Map<_, _> = begin.iter().chain(end).map(described).collect();
                let pair = json!([{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }]);
                json!({ "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens })
            }
            Self::Roberta { begin, end } => json!({ "type": "RobertaProcessing", "cls": [begin, id(begin)],
                "sep": [end, id(end)], "trim_offsets": true, "add_prefix_space": false }),
        };
        inner.with_post_processor(Some(serde_json::from_value::<PostProcessorWrapper>(processor)?));
        Ok(())
    }
}

/// Gives a tokenizer the post-processor of `tokenizer.json`, and returns the ids that it puts around an empty text.
pub(super) fn of_file(
    inner: &mut tokenizers::Tokenizer,
    file: Option<&[u8]>,
) -> tokenizers::Result<Vec<u32>> {
    /// The one field that is read; the rest of the file is passed over.
    #[derive(serde::Deserialize)]
    struct File {
        post_processor: Option<PostProcessorWrapper>,
    }
    if let Some(bytes) = file.filter(|_| inner.get_post_processor().is_none()) {
        let file: File = serde_json::from_slice(bytes)?;
        inner.with_post_processor(file.post_processor);
    }
    Ok(inner.encode_fast("", true)?.get_ids().to_vec())
}
