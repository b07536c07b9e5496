//! Which of transformers' tokenizer classes reads a folder (`AutoTokenizer.from_pretrained`, transformers 5.24).

use serde_json::Value;

use super::files::Files;

/// A tokenizer class, by what it makes of a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// `TokenizersBackend`: `tokenizer.json` as it stands. Also what transformers takes for classes that it does not know.
    Plain,
    /// `LlamaTokenizer`.
    Llama,
    /// `CodeLlamaTokenizer`.
    CodeLlama,
    /// `GemmaTokenizer`.
    Gemma,
    /// `GPT2Tokenizer`.
    Gpt2,
    /// `GPTNeoXTokenizer`.
    GptNeoX,
    /// `Qwen2Tokenizer`.
    Qwen2,
    /// `RobertaTokenizer`.
    Roberta,
    /// A class with rules of its own that shrink does not have: read as a plain one.
    Unmodelled,
}

/// Classes with rules of their own that a decoder's folder may name and shrink does not have.
const UNMODELLED: [&str; 9] = [
    "AlbertTokenizer",
    "BertTokenizer",
    "CohereTokenizer",
    "MBartTokenizer",
    "OpenAIGPTTokenizer",
    "Qwen3_5Tokenizer",
    "T5Tokenizer",
    "XGLMTokenizer",
    "XLMRobertaTokenizer",
];

/// Model types whose folders name a wrong class; the one registered for the type counts there.
const MISNAMED: [&str; 17] = [
    "arctic",
    "ernie4_5",
    "fuyu",
    "internlm2",
    "internlm3",
    "iquestcoder",
    "jamba",
    "minicpm3",
    "minimax_m2",
    "nemotron",
    "phi3",
    "phimoe",
    "qwen2",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_5_moe_text",
    "qwen4_exp",
];

impl Class {
    /// The class that transformers 5 reads a folder with.
    pub(super) fn of(files: &Files) -> Self {
        let registered = registered(files.model_type());
        let declared = files.class().or(files.class_of_model());
        let misnamed = MISNAMED.contains(&files.model_type());
        if let (Some(declared), false) = (declared.map(slow), has_own_code(files)) {
            // LLaMA's class would split at spaces what was split by bytes.
            if declared == "LlamaTokenizer" && !misnamed && is_byte_level(files) {
                return Self::Plain;
            }
            match registered {
                Some("TokenizersBackend") => return Self::Plain,
                Some(registered) if misnamed => return Self::named(registered),
                _ => return Self::named(declared),
            }
        }
        match files.class().or(files.class_of_model()).or(registered) {
            Some(name) => Self::named(slow(name)),
            None => Self::Plain,
        }
    }

    /// The class of a name without `Fast`.
    pub(super) fn named(name: &str) -> Self {
        match name {
            "LlamaTokenizer" => Self::Llama,
            "CodeLlamaTokenizer" => Self::CodeLlama,
            "GemmaTokenizer" => Self::Gemma,
            "GPT2Tokenizer" => Self::Gpt2,
            "GPTNeoXTokenizer" => Self::GptNeoX,
            "Qwen2Tokenizer" => Self::Qwen2,
            "RobertaTokenizer" => Self::Roberta,
            _ if UNMODELLED.contains(&name) => Self::Unmodelled,
            _ => Self::Plain,
        }
    }

    /// The class that transformers 4 reads a folder with: the one that the folder names, or the type's.
    pub(super) fn of_generation_4(files: &Files) -> Self {
        let of_type = || match files.model_type() {
            "llama" | "mistral" | "mixtral" | "phi3" => Some("LlamaTokenizer"),
            other => registered(other),
        };
        files
            .class()
            .or(files.class_of_model())
            .or_else(of_type)
            .map_or(Self::Plain, |name| Self::named(slow(name)))
    }

    /// Its name in transformers.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain | Self::Unmodelled => "TokenizersBackend",
            Self::Llama => "LlamaTokenizer",
            Self::CodeLlama => "CodeLlamaTokenizer",
            Self::Gemma => "GemmaTokenizer",
            Self::Gpt2 => "GPT2Tokenizer",
            Self::GptNeoX => "GPTNeoXTokenizer",
            Self::Qwen2 => "Qwen2Tokenizer",
            Self::Roberta => "RobertaTokenizer",
        }
    }

    /// Whether it is made from `vocab.json` and `merges.txt` where there is no `tokenizer.json`.
    pub(super) fn reads_vocabulary_and_merges(self) -> bool {
        matches!(self, Self::Gpt2 | Self::GptNeoX | Self::Qwen2 | Self::Roberta)
    }

    /// The named tokens that it has where no file names them.
    pub(super) fn tokens(self) -> &'static [(&'static str, &'static str)] {
        const END: &str = "<|endoftext|>";
        match self {
            Self::Plain | Self::Unmodelled => &[],
            Self::Llama => &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")],
            Self::CodeLlama => &[
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("unk_token", "<unk>"),
                ("prefix_token", "▁<PRE>"),
                ("middle_token", "▁<MID>"),
                ("suffix_token", "▁<SUF>"),
                ("eot_token", "▁<EOT>"),
                ("fill_token", "<FILL_ME>"),
            ],
            Self::Gemma => &[
                ("bos_token", "<bos>"),
                ("eos_token", "<eos>"),
                ("unk_token", "<unk>"),
                ("pad_token", "<pad>"),
                ("mask_token", "<mask>"),
            ],
            Self::Gpt2 => &[("bos_token", END), ("eos_token", END), ("unk_token", END)],
            Self::GptNeoX => {
                &[("bos_token", END), ("eos_token", END), ("unk_token", END), ("pad_token", "<|padding|>")]
            }
            Self::Qwen2 => &[("eos_token", END), ("unk_token", END), ("pad_token", END)],
            Self::Roberta => &[
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("unk_token", "<unk>"),
                ("sep_token", "</s>"),
                ("pad_token", "<pad>"),
                ("cls_token", "<s>"),
                ("mask_token", "<mask>"),
            ],
        }
    }
}

/// The class that transformers registers for a model type. Not every type that it knows is here, but every decoder's.
fn registered(model_type: &str) -> Option<&'static str> {
    Some(match model_type {
        "codegen" | "dbrx" | "gpt2" | "gpt_neo" | "gptj" | "jais2" | "opt" | "phi" | "starcoder2" => {
            "GPT2Tokenizer"
        }
        "falcon_mamba" | "gpt_neox" | "mamba" | "mamba2" | "mpt" | "olmo" | "olmoe" | "rwkv" | "xlstm" => {
            "GPTNeoXTokenizer"
        }
        "qwen2" | "qwen2_moe" | "qwen2_vl" | "qwen2_5_vl" | "qwen3" | "qwen3_moe" | "qwen3_next"
        | "qwen3_vl" => "Qwen2Tokenizer",
        "qwen3_5" | "qwen3_5_moe" | "qwen3_5_moe_text" | "qwen3_5_text" | "qwen4_exp" => "Qwen3_5Tokenizer",
        "gemma" | "gemma2" | "gemma3" | "gemma3_text" | "gemma3n" | "gemma3n_text" | "recurrent_gemma" => {
            "GemmaTokenizer"
        }
        "cohere" | "cohere2" => "CohereTokenizer",
        "code_llama" => "CodeLlamaTokenizer",
        "flex_olmo" | "glm" | "glm4" | "glm4_moe" | "gpt_bigcode" | "granite" | "granitemoe"
        | "granitemoehybrid" | "granitemoeshared" | "kimi_linear" | "ministral" | "ministral3"
        | "mistral" | "mistral3" | "mixtral" | "olmo2" | "olmo3" | "olmo_hybrid" | "persimmon"
        | "stablelm" => "TokenizersBackend",
        other if MISNAMED.contains(&other) => "TokenizersBackend",
        _ => return None,
    })
}

fn slow(name: &str) -> &str {
    name.strip_suffix("Fast").unwrap_or(name)
}

/// Whether the folder brings a tokenizer of its own code, which shrink does not run.
fn has_own_code(files: &Files) -> bool {
    match files.settings().get("auto_map") {
        Some(Value::Object(map)) => map.contains_key("AutoTokenizer"),
        Some(Value::Array(_)) => true,
        _ => false,
    }
}

fn is_byte_level(files: &Files) -> bool {
    const MARK: &[u8] = b"\"ByteLevel\"";
    files.tokenizer().is_some_and(|bytes| bytes.windows(MARK.len()).any(|window| window == MARK))
}
