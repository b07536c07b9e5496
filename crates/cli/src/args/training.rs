//! The command line of `shrink train`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{GuardArgs, KeepArgs, ranges};

/// `shrink train`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  shrink train ./llama-4x -o ./llama-4x-tuned --data corpus.txt
  shrink train ./llama-4x -o ./llama-4x-tuned --data corpus.txt --loss kl --euclidean-lr 1e-4 --max-steps 200
  shrink train ./llama-4x -o ./llama-4x-tuned --data self --loss kl --max-steps 100 --find-rates
  shrink train ./llama-4x -o ./llama-4x-tuned --data corpus.txt --loss reconstruction --validation heldout.txt
  shrink train ./llama-4x -o ./llama-4x-tuned --data corpus.txt --config settings.toml --resume")]
pub struct TrainArgs {
    /// The converted model: a folder that shrink convert wrote
    pub model: String,
    /// Folder to write
    #[arg(long, short, value_name = "OUT")]
    pub output: PathBuf,
    /// Text to train on: files (.txt, .jsonl, .parquet), `builtin` or one kind of it, and `self` or self:TOKENS, which the donor
    /// writes
    #[arg(long, required = true, num_args = 1.., value_name = "SOURCE")]
    pub data: Vec<String>,
    /// Text to measure perplexity on, before and at every snapshot: OUT is then the best snapshot, not the last
    #[arg(long, num_args = 1.., value_name = "FILE")]
    pub validation: Vec<PathBuf>,
    /// Windows of that text, from its start
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = ranges::count())]
    pub validation_windows: usize,
    /// Who is imitated: a model folder or hub id [default: the donor that shrink.json names]
    #[arg(long, value_name = "MODEL")]
    pub teacher: Option<String>,
    /// Settings in TOML; flags stand before them
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder of the run: settings, log and snapshots [default: OUT.run]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Search the learning rates first, by short runs of so many steps from the same start [steps: 10]
    #[arg(long, value_name = "STEPS", num_args = 0..=1, require_equals = true, default_missing_value = "10", value_parser = ranges::trial_steps())]
    pub find_rates: Option<usize>,
    /// Go on from the run's last snapshot, as if nothing had happened
    #[arg(long)]
    pub resume: bool,
    /// Replace OUT if it exists
    #[arg(long)]
    pub force: bool,
    /// What is refused
    #[command(flatten)]
    pub guard: GuardArgs,
    /// Field that holds the text of a .jsonl or .parquet row
    #[arg(long, default_value = crate::corpus::DEFAULT_FIELD, value_name = "FIELD")]
    pub text_field: String,
    /// What is kept of text that a model wrote
    #[command(flatten)]
    pub keep: KeepArgs,
    /// The settings
    #[command(flatten)]
    pub settings: SettingArgs,
}

/// Settings of a run, by flag.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Settings")]
pub struct SettingArgs {
    /// What is minimised [default: distillation]
    #[arg(long, value_enum, value_name = "LOSS")]
    pub loss: Option<Loss>,
    /// Learning rate of W_down and of cascade's cross terms, by AdamW [default: 1e-3; cascade 3e-5; deepseek 2e-4]
    #[arg(long, value_name = "RATE", allow_negative_numbers = true, value_parser = ranges::rate("euclidean_lr"))]
    pub euclidean_lr: Option<f64>,
    /// Learning rate of W_up, by Riemannian Adam [default: 3e-3; cascade 3e-4; deepseek 2e-3]
    #[arg(long, value_name = "RATE", allow_negative_numbers = true, value_parser = ranges::rate("riemannian_lr"))]
    pub riemannian_lr: Option<f64>,
    /// How often the text is gone through [default: 3]
    #[arg(long, value_name = "N", value_parser = ranges::setting("num_epochs"))]
    pub num_epochs: Option<usize>,
    /// Steps at most [default: as many as the epochs have]
    #[arg(long, value_name = "N", value_parser = ranges::setting("max_steps"))]
    pub max_steps: Option<usize>,
    /// Windows a pass [default: 4]
    #[arg(long, value_name = "N", value_parser = ranges::setting("batch_size"))]
    pub batch_size: Option<usize>,
    /// Tokens a window [default: 512]
    #[arg(long, value_name = "N", value_parser = ranges::setting("max_length"))]
    pub max_length: Option<usize>,
    /// Passes that make a step, by the mean over all their tokens [default: 1]
    #[arg(long, value_name = "N", value_parser = ranges::setting("gradient_accumulation_steps"))]
    pub gradient_accumulation_steps: Option<usize>,
    /// Longer gradients are shortened to this; 0 for no bound [default: 1]
    #[arg(long, value_name = "NORM", allow_negative_numbers = true, value_parser = ranges::rate("max_grad_norm"))]
    pub max_grad_norm: Option<f64>,
    /// Decay of what AdamW moves [default: 0.01]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, value_parser = ranges::rate("weight_decay"))]
    pub weight_decay: Option<f64>,
    /// Steps in which the rates rise [default: 0]
    #[arg(long, value_name = "N", value_parser = ranges::setting("warmup_steps"))]
    pub warmup_steps: Option<usize>,
    /// How the rates fall [default: cosine]
    #[arg(long, value_enum, value_name = "SHAPE")]
    pub schedule: Option<Schedule>,
    /// distillation: by what logits are divided [default: 2]
    #[arg(long, value_name = "T", allow_negative_numbers = true, value_parser = ranges::rate("temperature"))]
    pub temperature: Option<f64>,
    /// distillation: the teacher's share [default: 0.9]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, value_parser = ranges::rate("distillation_alpha"))]
    pub distillation_alpha: Option<f64>,
    /// reconstruction: its share [default: 0.3]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, value_parser = ranges::rate("reconstruction_alpha"))]
    pub reconstruction_alpha: Option<f64>,
    /// Steps between two lines of the log [default: 10]
    #[arg(long, value_name = "N", value_parser = ranges::setting("logging_steps"))]
    pub logging_steps: Option<usize>,
    /// Steps between two snapshots [default: 100]
    #[arg(long, value_name = "N", value_parser = ranges::setting("save_steps"))]
    pub save_steps: Option<usize>,
    /// Snapshots that are kept [default: 2]
    #[arg(long, value_name = "N", value_parser = ranges::setting("save_total_limit"))]
    pub save_total_limit: Option<usize>,
    /// Stop after so many validations without a better perplexity [default: never]
    #[arg(long, value_name = "N", value_parser = ranges::setting("early_stopping_patience"))]
    pub early_stopping_patience: Option<usize>,
    /// Steps between two measurements of how orthonormal W_up is [default: 100]
    #[arg(long, value_name = "N", value_parser = ranges::setting("check_orthonormality_steps"))]
    pub check_orthonormality_steps: Option<usize>,
    /// Fixes the order of the windows [default: 0]
    #[arg(long, value_name = "SEED")]
    pub seed: Option<u64>,
}

/// Losses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Loss {
    /// The next token.
    Lm,
    /// The teacher's distribution.
    Kl,
    /// The teacher's distribution at a temperature, and the next token.
    Distillation,
    /// K and V of the original matrices, and the next token.
    Reconstruction,
}

/// How learning rates fall.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Schedule {
    /// Not at all.
    Constant,
    /// In a straight line.
    Linear,
    /// Half a cosine.
    Cosine,
}
