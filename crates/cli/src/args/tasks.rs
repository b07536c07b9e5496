//! What `shrink eval --task` asks of a model.

use clap::{Args, ValueEnum};

use super::ranges;

/// What is measured in place of perplexity.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Tasks")]
pub struct TaskArgs {
    /// In place of perplexity: find a hidden pass key, copy, look up a value, or go on as the donor does
    #[arg(
        long,
        value_enum,
        value_name = "TASK",
        conflicts_with_all = ["stride", "through_cache", "max_length", "windows", "by_position"]
    )]
    pub task: Option<Task>,
    /// needle, copy, agreement: tokens of context [default: 512, doubled up to the model's context or 8192; agreement: 512]
    #[arg(long, value_delimiter = ',', value_name = "N,…", requires = "task", value_parser = ranges::count())]
    pub lengths: Vec<usize>,
    /// needle: where in the text the key stands, 0 to 1 [default: 0.1,0.3,0.5,0.7,0.9]
    #[arg(long, value_delimiter = ',', value_name = "SHARE,…", requires = "task", value_parser = ranges::depth())]
    pub depths: Vec<f64>,
    /// retrieval: lines to look up in [default: 4, doubled up to 64 as far as the context goes]
    #[arg(long, value_delimiter = ',', value_name = "N,…", requires = "task", value_parser = ranges::lines())]
    pub pairs: Vec<usize>,
    /// Prompts of each kind [default: needle 4 a length and depth, copy 4, retrieval 32, agreement 16]
    #[arg(long, value_name = "N", requires = "task", value_parser = ranges::draws())]
    pub trials: Option<usize>,
    /// agreement: tokens of a continuation [default: 64]
    #[arg(long, value_name = "N", requires = "task", value_parser = ranges::count())]
    pub max_new_tokens: Option<usize>,
    /// Fixes every draw [default: 0]
    #[arg(long, value_name = "SEED", requires = "task")]
    pub seed: Option<u64>,
}

/// The tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Task {
    /// A pass key hidden in text, asked for at the end.
    Needle,
    /// Random tokens, and the same again.
    Copy,
    /// Lines of keys and values, and one key asked again.
    Retrieval,
    /// Greedy continuations beside the donor's; needs --against and --data.
    Agreement,
}

impl Task {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Task::Needle => "needle",
            Task::Copy => "copy",
            Task::Retrieval => "retrieval",
            Task::Agreement => "agreement",
        }
    }
}
