//! The command line, parsed low; values are checked against the model where they are used.

mod exporting;
mod factorising;
mod ranges;
mod running;
mod tasks;
mod training;

pub use exporting::{ExportArgs, Format, ImportArgs, PushArgs};
pub use factorising::{
    CalibrationArgs, KeepArgs, Latents, Layout, Method, MethodArgs, Objective, Ranks, StatisticsArgs,
};
pub use running::{
    BenchArgs, CacheArgs, CacheDtype, EvalArgs, GenerateArgs, GuardArgs, MemoryArgs, WeightArgs, WeightDtype,
};
pub use tasks::{Task, TaskArgs};
pub use training::{Loss, Schedule, SettingArgs, TrainArgs};

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Gives an open LLM a smaller KV cache: Multi-Head Latent Attention in place of its own.
#[derive(Debug, Parser)]
#[command(name = "shrink", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Examples:
  shrink demo
  shrink inspect HuggingFaceTB/SmolLM2-135M
  shrink convert ./smollm2 -o ./smollm2-2x --compression-ratio 2 --calibration corpus.txt
  shrink eval ./smollm2-2x --data heldout.txt --against ./smollm2
  shrink generate ./smollm2-2x --prompt 'The capital of France is'

A <MODEL> is a folder in Hugging Face's layout or a hub id, org/name[@revision]. HF_HOME, HF_TOKEN, HF_ENDPOINT and
HF_HUB_OFFLINE are honoured.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What holds for every command.
    #[command(flatten)]
    pub global: Global,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Where to compute: auto, cpu, wgpu, wgpu:N, cuda or cuda:N; shrink devices lists what is there
    #[arg(long, global = true, env = "SHRINK_DEVICE", default_value = "cpu", value_name = "DEVICE")]
    pub device: String,
    /// Threads of the processor to use; by default all, or RAYON_NUM_THREADS
    #[arg(long, global = true, value_name = "N", value_parser = ranges::threads())]
    pub threads: Option<usize>,
    /// Print one JSON object instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Show no progress and no notes
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Compress the bundled model and show what comes of it: no network, no model of your own
    Demo(DemoArgs),
    /// Say what a model is, what its cache costs and what each ratio would give
    Inspect(InspectArgs),
    /// Replace a model's attention by latent attention and write the result
    Convert(ConvertArgs),
    /// Compare methods, metrics and ranks on a model without writing anything
    Compare(CompareArgs),
    /// Train the latent matrices of a converted model, and nothing else
    Train(TrainArgs),
    /// Hand a converted model to other programs: transformers, vLLM, llama.cpp
    Export(ExportArgs),
    /// Bring a folder that another program tuned back into shrink's form
    Import(ImportArgs),
    /// Publish a folder on the Hugging Face hub
    Push(PushArgs),
    /// Measure perplexity, and the distance to a donor
    Eval(EvalArgs),
    /// Continue a prompt from the (latent) cache
    Generate(GenerateArgs),
    /// Tabulate cache sizes from a configuration alone
    Memory(MemoryArgs),
    /// Time prefill and decoding at given contexts
    Bench(BenchArgs),
    /// List the backends and devices that --device can name
    Devices,
    /// Verify a converted folder: tensors, shapes, finite weights, orthonormal W_up, recorded ranks
    Check(CheckArgs),
}

/// `shrink demo`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  shrink demo --max-new-tokens 100")]
pub struct DemoArgs {
    /// New tokens of the sample text
    #[arg(long, default_value_t = 60, value_name = "N", value_parser = ranges::any_count())]
    pub max_new_tokens: usize,
}

/// `shrink inspect`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  shrink inspect Qwen/Qwen2.5-7B --compression-ratio 2,4,8")]
pub struct InspectArgs {
    /// A model folder, a config.json or a hub id
    pub model: String,
    /// Ratios to tabulate
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "2,4,8,16",
        value_name = "RATIO,…",
        allow_negative_numbers = true, value_parser = ranges::ratio())]
    pub compression_ratio: Vec<f64>,
}

/// `shrink convert`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  shrink convert meta-llama/Llama-2-7b-hf -o llama-4x
  shrink convert ./model -o out --compression-ratio 2 --calibration corpus.txt more.jsonl
  shrink convert ./model -o out --calibration org/corpus --calibration-split validation --text-field body
  shrink convert ./model -o out --method cascade --cascade-window 3 --ranks global
  shrink convert ./model -o out --d-latent 128 --no-calibration --dtype bf16
  shrink convert ./model -o out --target 6.4x --calibration corpus.txt
  shrink convert ./model -o out --max-ppl-increase 5% --calibration corpus.txt
  shrink convert ./model -o out --dry-run")]
pub struct ConvertArgs {
    /// The donor: a model folder or hub id
    pub model: String,
    /// Folder to write
    #[arg(long, short, value_name = "OUT")]
    pub output: PathBuf,
    /// The donor's cache over the new one's: d_latent = d_kv / RATIO
    #[arg(
        long,
        short = 'r',
        alias = "ratio",
        default_value_t = 4.0,
        value_name = "RATIO",
        allow_negative_numbers = true, value_parser = ranges::ratio())]
    pub compression_ratio: f64,
    /// Latent width of K and of V (of `joint`: of both together), in place of a ratio
    #[arg(long, value_name = "N", conflicts_with = "compression_ratio", allow_negative_numbers = true, value_parser = ranges::count())]
    pub d_latent: Option<usize>,
    /// The donor's cache in bf16 over the new one's, in bytes: rank and bits are chosen together, by measurement
    #[arg(
        long,
        value_name = "RATIO",
        value_parser = ranges::bytes_ratio(),
        conflicts_with_all = ["compression_ratio", "d_latent", "no_calibration", "sequential"],
        allow_negative_numbers = true
    )]
    pub target: Option<f64>,
    /// The smallest cache whose perplexity rises by no more than this, foretold by the KL on held-back text: 5%
    #[arg(
        long,
        value_name = "SHARE",
        value_parser = ranges::share(),
        conflicts_with_all = ["target", "compression_ratio", "d_latent", "no_calibration", "sequential"],
        allow_negative_numbers = true
    )]
    pub max_ppl_increase: Option<f64>,
    /// How to factorise
    #[command(flatten)]
    pub method: MethodArgs,
    /// Text to calibrate on
    #[command(flatten)]
    pub calibration: CalibrationArgs,
    /// Fixes every draw: the same seed gives the same bytes
    #[arg(long, default_value_t = 0, value_name = "SEED")]
    pub seed: u64,
    /// GiB of activations and statistics kept in memory; the rest goes to a temporary file beside OUT
    #[arg(long, default_value_t = 1.0, value_name = "GIB", allow_negative_numbers = true, value_parser = ranges::gib())]
    pub scratch_memory: f64,
    /// Say what the conversion would take (time, memory, disk), and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Convert even if memory or disk look too small for it
    #[arg(long, conflicts_with = "dry_run")]
    pub overcommit: bool,
    /// Fit decoders again on what the compressed layers before them produce; kept if the KL on held-back text falls
    #[arg(long, conflicts_with = "no_calibration")]
    pub sequential: bool,
    /// What the cache of the result keeps its numbers as, unless told otherwise at run time [default: f32]
    #[arg(long, value_enum, value_name = "DTYPE")]
    pub cache_dtype: Option<CacheDtype>,
    /// Store the original W_k and W_v too, as a reconstruction loss needs them
    #[arg(long)]
    pub store_original_weights: bool,
    /// Type of every stored tensor [default: the donor's, and f32 for the latent factors]
    #[arg(long, value_enum, value_name = "DTYPE")]
    pub dtype: Option<StoreDtype>,
    /// Replace OUT if it exists
    #[arg(long)]
    pub force: bool,
}

/// `shrink compare`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  shrink compare ./model --data heldout.txt --calibration corpus.txt
  shrink compare ./model --data heldout.txt --calibration corpus.txt -r 2 --method cascade --cascade-window 1,3,7,15
  shrink compare ./model --data heldout.txt --no-calibration --method separate,joint --objective mse,attention")]
pub struct CompareArgs {
    /// The donor: a model folder or hub id
    pub model: String,
    /// Texts to measure on, each for itself (.txt, .jsonl, .parquet)
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    pub data: Vec<PathBuf>,
    /// Ratios to compare at
    #[arg(
        long,
        short = 'r',
        alias = "ratio",
        value_delimiter = ',',
        default_value = "2,4",
        value_name = "RATIO,…",
        allow_negative_numbers = true, value_parser = ranges::ratio())]
    pub compression_ratio: Vec<f64>,
    /// Methods to compare [default: separate,joint, and with calibration text cascade]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "METHOD,…")]
    pub method: Vec<Method>,
    /// Objectives to compare [default: fisher with calibration text, else mse]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "OBJECTIVE,…")]
    pub objective: Vec<Objective>,
    /// Rank allocations to compare [default: uniform,global with calibration text, else uniform]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "RANKS,…")]
    pub ranks: Vec<Ranks>,
    /// cascade: windows to compare [default: 7]
    #[arg(long, value_delimiter = ',', value_name = "LAYERS,…", value_parser = ranges::any_count())]
    pub cascade_window: Vec<usize>,
    /// cascade: together, apart, or both [default: together]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "HOW,…")]
    pub cascade_latents: Vec<Latents>,
    /// cascade: rounds of refinement to compare [default: 4]
    #[arg(long, value_delimiter = ',', value_name = "N,…", value_parser = ranges::rounds())]
    pub cascade_rounds: Vec<usize>,
    /// xkv: group sizes to compare [default: 4]
    #[arg(long, value_delimiter = ',', value_name = "LAYERS,…", value_parser = ranges::count())]
    pub cross_layer_group_size: Vec<usize>,
    /// decoupled_rope: kept dimensions to compare [default: 64]; deepseek: numbers of the shared key [default: a third of what
    /// the ratio leaves, at most 64]
    #[arg(long, value_delimiter = ',', value_name = "N,…", value_parser = ranges::count())]
    pub d_rope: Vec<usize>,
    /// deepseek: layouts to compare [default: free]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LAYOUT,…")]
    pub layout: Vec<Layout>,
    /// Types of cached numbers to compare [default: f32]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "DTYPE,…")]
    pub cache_dtype: Vec<CacheDtype>,
    /// How statistics are gathered
    #[command(flatten)]
    pub statistics: StatisticsArgs,
    /// Text to calibrate on
    #[command(flatten)]
    pub calibration: CalibrationArgs,
    /// Fixes every draw
    #[arg(long, default_value_t = 0, value_name = "SEED")]
    pub seed: u64,
    /// GiB of activations and statistics kept in memory; the rest goes to a temporary file
    #[arg(long, default_value_t = 1.0, value_name = "GIB", allow_negative_numbers = true, value_parser = ranges::gib())]
    pub scratch_memory: f64,
    /// Fit decoders again on what the compressed layers before them produce
    #[arg(long, conflicts_with = "no_calibration")]
    pub sequential: bool,
    /// Also measure the KL to the donor on held-back calibration text, as auto does
    #[arg(long)]
    pub measure_kl: bool,
    /// Tokens a window of the texts
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = ranges::window())]
    pub max_length: usize,
    /// Windows of each text, from its start
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = ranges::count())]
    pub windows: usize,
    /// What is refused
    #[command(flatten)]
    pub guard: GuardArgs,
}

/// Types a folder can be stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StoreDtype {
    /// 32-bit floats.
    F32,
    /// 16-bit floats with f32's range.
    Bf16,
    /// 16-bit floats up to 65504.
    F16,
}

impl StoreDtype {
    /// The type as the checkpoint layer knows it.
    pub fn dtype(self) -> handlers::Dtype {
        match self {
            StoreDtype::F32 => handlers::Dtype::F32,
            StoreDtype::Bf16 => handlers::Dtype::Bf16,
            StoreDtype::F16 => handlers::Dtype::F16,
        }
    }
}

/// `shrink check`.
#[derive(Debug, Args)]
#[command(
    after_help = "Checked: every tensor is there, in the shape that config.json implies; every number is finite; \
the columns of every W_up are orthonormal to the precision of their type; the latent widths are those that shrink.json \
records, where the folder has one. Reported, not checked: bytes and the cache's ratio.

Example:
  shrink check ./out"
)]
pub struct CheckArgs {
    /// A folder written by shrink
    pub model: String,
}
