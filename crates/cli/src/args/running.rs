//! Commands that run a model, or count what running it takes.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{StoreDtype, TaskArgs, ranges};

/// How a model is cached.
#[derive(Clone, Copy, Debug, Args)]
pub struct CacheArgs {
    /// What the cache keeps its numbers as; the integers are of latents [default: the folder's, else f32]
    #[arg(long, value_enum, value_name = "DTYPE")]
    pub cache_dtype: Option<CacheDtype>,
    /// Cut the latents of a converted folder short, to a larger ratio than it was converted at (separate, joint and deepseek)
    #[arg(long, short = 'r', alias = "ratio", value_name = "RATIO", allow_negative_numbers = true, value_parser = ranges::ratio())]
    pub compression_ratio: Option<f64>,
}

/// How a model's weights are held.
#[derive(Clone, Copy, Debug, Args)]
pub struct WeightArgs {
    /// Type in which large matrices are held: as they are stored, or widened to f32 at once, which takes twice the memory of 16-bit ones
    /// and gives the same numbers [default: stored on the CPU, f32 elsewhere]
    #[arg(long, value_enum, value_name = "DTYPE")]
    pub weight_dtype: Option<WeightDtype>,
}

/// What a weight is held as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WeightDtype {
    /// As it is in the file.
    Stored,
    /// As it is computed with.
    F32,
}

/// What a machine without room for it refuses.
#[derive(Clone, Copy, Debug, Args)]
pub struct GuardArgs {
    /// Go on even if memory looks too small for it
    #[arg(long)]
    pub overcommit: bool,
}

/// What a cached number is kept as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CacheDtype {
    /// As it is computed.
    F32,
    /// 16-bit floats up to 65504.
    F16,
    /// 16-bit floats with f32's range.
    Bf16,
    /// 8 bits, and a scale and an offset a group of 32.
    Int8,
    /// 4 bits, and a scale and an offset a group of 32.
    Int4,
    /// 3 bits, and a scale and an offset a group of 32.
    Int3,
}

impl CacheDtype {
    /// The type as the decoder knows it.
    pub fn dtype(self) -> mla_core::CacheDtype {
        match self {
            CacheDtype::F32 => mla_core::CacheDtype::F32,
            CacheDtype::F16 => mla_core::CacheDtype::F16,
            CacheDtype::Bf16 => mla_core::CacheDtype::Bf16,
            CacheDtype::Int8 => mla_core::CacheDtype::Int8,
            CacheDtype::Int4 => mla_core::CacheDtype::Int4,
            CacheDtype::Int3 => mla_core::CacheDtype::Int3,
        }
    }
}

/// `shrink eval`.
#[derive(Debug, Args)]
#[command(
    after_help = "Without --stride the file is tokenised once and cut into consecutive windows that do not \
overlap; each scores all its tokens but the first (docs/evaluation.md). With --task something else is measured, on text that \
ships with shrink unless --data names another.

Examples:
  shrink eval ./out --data heldout.txt --windows 40
  shrink eval ./out --data heldout.txt --against ./donor --json
  shrink eval ./out --data heldout.txt --windows 4 --through-cache
  shrink eval ./out --data heldout.txt --cache-dtype int4 --against ./donor
  shrink eval ./out --data book.txt --max-length 8192 --by-position --against ./donor
  shrink eval ./out --task needle --lengths 1024,4096 --trials 10 --against ./donor
  shrink eval ./out --task copy --against ./donor
  shrink eval ./out --task retrieval --pairs 8,32,128
  shrink eval ./out --task agreement --data heldout.txt --against ./donor --max-new-tokens 128"
)]
pub struct EvalArgs {
    /// A model folder or hub id
    pub model: String,
    /// Text to score, or that a task takes text from (.txt, .jsonl, .parquet)
    #[arg(long, required_unless_present = "task", num_args = 1.., value_name = "FILE")]
    pub data: Vec<PathBuf>,
    /// Tokens a window
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = ranges::window())]
    pub max_length: usize,
    /// Windows at most, from the start [default: all]
    #[arg(long, value_name = "N", value_parser = ranges::count())]
    pub windows: Option<usize>,
    /// Slide the window by N tokens and score only new ones
    #[arg(long, value_name = "N", value_parser = ranges::count())]
    pub stride: Option<usize>,
    /// Also measure KL and top-1 agreement to this model (its donor)
    #[arg(long, value_name = "MODEL")]
    pub against: Option<String>,
    /// Score token by token through the cache, as generation runs
    #[arg(long)]
    pub through_cache: bool,
    /// Also tell the loss by position in the window: 1 to 63, to 127, to 255, …
    #[arg(long)]
    pub by_position: bool,
    /// Field that holds the text of a .jsonl or .parquet row
    #[arg(long, default_value = crate::corpus::DEFAULT_FIELD, value_name = "FIELD")]
    pub text_field: String,
    /// How it is cached
    #[command(flatten)]
    pub cache: CacheArgs,
    /// How it is held
    #[command(flatten)]
    pub weights: WeightArgs,
    /// What is refused
    #[command(flatten)]
    pub guard: GuardArgs,
    /// What is measured in place of perplexity
    #[command(flatten)]
    pub task: TaskArgs,
}

/// `shrink generate`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  shrink generate ./out --prompt 'Once upon a time'
  shrink generate ./out --prompt 'One' --prompt 'Two' --temperature 0.7 --top-p 0.9 --seed 7
  shrink generate ./out --prompt - < prompt.txt")]
pub struct GenerateArgs {
    /// A model folder or hub id
    pub model: String,
    /// Text to continue; `-` reads it from stdin; repeat it for a batch
    #[arg(long, short, required = true, value_name = "TEXT")]
    pub prompt: Vec<String>,
    /// New tokens a prompt at most
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = ranges::any_count())]
    pub max_new_tokens: usize,
    /// Divides the logits; 0 takes the most likely token
    #[arg(long, default_value_t = 0.0, value_name = "T", allow_negative_numbers = true, value_parser = ranges::temperature())]
    pub temperature: f64,
    /// Keep the smallest set of tokens whose probabilities reach P; needs a temperature [default: 1]
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = ranges::probability())]
    pub top_p: Option<f64>,
    /// Keep the K most likely tokens; needs a temperature [default: all]
    #[arg(long, value_name = "K", value_parser = ranges::count())]
    pub top_k: Option<usize>,
    /// Fixes every draw; needs a temperature [default: 0]
    #[arg(long, value_name = "SEED")]
    pub seed: Option<u64>,
    /// How it is cached
    #[command(flatten)]
    pub cache: CacheArgs,
    /// How it is held
    #[command(flatten)]
    pub weights: WeightArgs,
    /// What is refused
    #[command(flatten)]
    pub guard: GuardArgs,
}

/// `shrink memory`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  shrink memory ./out
  shrink memory ./llama-2-7b/config.json --compression-ratio 16 --sequence-lengths 512,2048,4096,8192
  shrink memory ./llama-2-7b/config.json --compression-ratio 2 --cache-dtype int4")]
pub struct MemoryArgs {
    /// A model folder, a config.json or a hub id
    pub model: String,
    /// Tokens a sequence
    #[arg(long, value_delimiter = ',', default_value = "512,1024,2048,4096", value_name = "N,…", value_parser = ranges::count())]
    pub sequence_lengths: Vec<usize>,
    /// Sequences at a time
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = ranges::count())]
    pub batch_size: usize,
    /// For a donor: show the cache at this ratio too
    #[arg(long, short = 'r', alias = "ratio", value_name = "RATIO", allow_negative_numbers = true, value_parser = ranges::ratio())]
    pub compression_ratio: Option<f64>,
    /// Type of a number of the standard cache
    #[arg(long, value_enum, default_value_t = StoreDtype::F16, value_name = "DTYPE")]
    pub dtype: StoreDtype,
    /// What the model's own cache keeps its numbers as [default: the folder's, else as --dtype says]
    #[arg(long, value_enum, value_name = "DTYPE")]
    pub cache_dtype: Option<CacheDtype>,
}

/// `shrink bench`.
#[derive(Debug, Args)]
#[command(
    after_help = "A decoding step is timed after the cache was filled with random numbers, --repeat times, and the \
median printed. Prefill is timed on random tokens, 512 a pass, as `shrink generate` takes them.

Examples:
  shrink bench ./out --context 128,4096 --batch-size 1,8
  shrink bench ./out --context 0 --prefill 512 --json"
)]
pub struct BenchArgs {
    /// A model folder or hub id
    pub model: String,
    /// Tokens in the cache before a decoding step [default: 128,1024, as far as the model's context goes]
    #[arg(long, value_delimiter = ',', value_name = "N,…", value_parser = ranges::any_count())]
    pub context: Option<Vec<usize>>,
    /// Sequences at a time
    #[arg(long, value_delimiter = ',', default_value = "1", value_name = "N,…", value_parser = ranges::count())]
    pub batch_size: Vec<usize>,
    /// Time prompts of so many tokens too
    #[arg(long, value_delimiter = ',', value_name = "N,…", value_parser = ranges::count())]
    pub prefill: Vec<usize>,
    /// Measurements behind a median
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = ranges::count())]
    pub repeat: usize,
    /// How it is cached
    #[command(flatten)]
    pub cache: CacheArgs,
    /// How it is held
    #[command(flatten)]
    pub weights: WeightArgs,
    /// What is refused
    #[command(flatten)]
    pub guard: GuardArgs,
}
