//! How a converted model is handed to other programs.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{StoreDtype, ranges};

/// `shrink export`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  shrink convert ./smollm2 -o smollm2-2x -r 2 --method deepseek --layout deepseek --calibration corpus.txt
  shrink export smollm2-2x -o smollm2-2x-hf --format deepseek
  shrink export smollm2-2x -o smollm2-2x-mla --format deepseek --pad-rank 512
  shrink export smollm2-2x -o smollm2-2x-gguf --format gguf
  shrink export llama-joint-4x -o llama-joint-dense --format dense

deepseek  DeepseekV3ForCausalLM, which transformers, vLLM and SGLang run with their own kernels and the latent in their cache.
          For models converted with --method deepseek --layout deepseek whose family has RMSNorm, a SiLU MLP and no biases,
          windows, norms of queries and keys, bounds or scaled RoPE.
gguf      The same model in one file, model.gguf, for llama.cpp and what is built on it: Ollama, LM Studio. For byte-level BPE
          and SentencePiece tokenizers that llama.cpp knows.
dense     The donor's own architecture with the conversion's W_k and W_v: it runs wherever the donor does, with the conversion's
          loss and the donor's cache. For separate, joint, xkv and decoupled_rope.")]
pub struct ExportArgs {
    /// A converted folder or hub id
    pub model: String,
    /// Folder to write
    #[arg(long, short, value_name = "OUT")]
    pub output: PathBuf,
    /// What to write
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub format: Format,
    /// Type of every stored tensor [default: bf16 for deepseek and gguf, the folder's for dense]
    #[arg(long, value_enum, value_name = "DTYPE")]
    pub dtype: Option<StoreDtype>,
    /// deepseek, gguf: pad the latent with zeros to a rank that a kernel wants, 512 for most
    #[arg(long, value_name = "RANK", value_parser = ranges::rank())]
    pub pad_rank: Option<usize>,
    /// Replace OUT if it exists
    #[arg(long)]
    pub force: bool,
}

/// What other programs read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// `DeepseekV3ForCausalLM`.
    Deepseek,
    /// The donor's own architecture.
    Dense,
    /// One GGUF file, `deepseek2`, for llama.cpp.
    Gguf,
}

impl Format {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Format::Deepseek => "deepseek",
            Format::Dense => "dense",
            Format::Gguf => "gguf",
        }
    }
}

/// `shrink import`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  shrink import tuned -o smollm2-tuned          # tuned/ is a converted folder that transformers' Trainer trained and saved
  shrink export smollm2-ds -o smollm2-hf --format deepseek --dtype f32
  …                                             the same Trainer, saved to tuned/
  shrink import tuned -o smollm2-ds-tuned

Every weight may have been trained. W_up is brought back to orthonormal columns by a QR factorisation, which changes nothing else. Of a
folder of DeepSeek's layout, what each head's queries, keys and values have of their own is kept: the graph has as many K and V heads
as query heads, and the ratio is to a cache of those. An adapter (LoRA) is merged before it is saved.")]
pub struct ImportArgs {
    /// Folder that another program tuned: a converted one as transformers saves it, or one of DeepSeek's layout that shrink exported
    pub folder: PathBuf,
    /// Folder to write
    #[arg(long, short, value_name = "OUT")]
    pub output: PathBuf,
    /// Replace OUT if it exists
    #[arg(long)]
    pub force: bool,
}

/// `shrink push`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  shrink push out me/smollm2-4x
  shrink push out me/smollm2-4x@tuned --message \"After 200 steps\"
  shrink push out me/smollm2-4x --public

The repository is made if it is not there, private unless --public says otherwise. Content that the hub has already is not sent again, so
that a push that broke off goes on where it was. Nothing is to be seen before all of it is there. HF_TOKEN is a token that may write;
HF_ENDPOINT names another hub. The card (README.md) names the base model and its licence.")]
pub struct PushArgs {
    /// Folder that shrink wrote
    pub folder: PathBuf,
    /// Repository: org/name, or org/name@branch
    #[arg(value_name = "ORG/NAME")]
    pub repository: String,
    /// Let everybody see a repository that is made
    #[arg(long)]
    pub public: bool,
    /// First line of the commit
    #[arg(long, value_name = "TEXT", default_value = "Upload from shrink")]
    pub message: String,
}
