//! How a model is factorised, and what is measured for it.

use clap::{Args, ValueEnum};

use super::ranges;

/// Where calibration text comes from.
#[derive(Clone, Debug, Args)]
pub struct CalibrationArgs {
    /// Text files (.txt, .jsonl, .parquet), hub datasets, `builtin` (or one kind of it, builtin:code), and `self` or self:TOKENS,
    /// which the model writes itself [default: builtin self]
    #[arg(long, num_args = 1.., value_name = "SOURCE", conflicts_with = "no_calibration")]
    pub calibration: Vec<String>,
    /// Share of the windows that each source has, one number a source [default: the same]
    #[arg(long, value_delimiter = ',', value_name = "SHARES", requires = "calibration", value_parser = ranges::part())]
    pub calibration_shares: Vec<f64>,
    /// Subset of a hub dataset [default: wikitext-2-raw-v1 of wikitext, default of any other]
    #[arg(long, value_name = "NAME")]
    pub calibration_subset: Option<String>,
    /// Split of a hub dataset
    #[arg(long, value_name = "NAME", default_value = "train")]
    pub calibration_split: String,
    /// Factorise the weights alone (plain SVD)
    #[arg(long)]
    pub no_calibration: bool,
    /// Windows of calibration text, spread evenly over it
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = ranges::count())]
    pub num_calibration_samples: usize,
    /// Tokens a window
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = ranges::window())]
    pub max_calibration_length: usize,
    /// Field that holds the text of a .jsonl or .parquet row
    #[arg(long, default_value = crate::corpus::DEFAULT_FIELD, value_name = "FIELD")]
    pub text_field: String,
}

/// How a model is factorised.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Method")]
pub struct MethodArgs {
    /// How K and V are put into latents; auto fits what applies and keeps what measures best
    #[arg(long, value_enum, default_value_t = Method::Auto)]
    pub method: Method,
    /// What the factors minimise [default: fisher with calibration text, else mse]
    #[arg(long, value_enum, value_name = "OBJECTIVE")]
    pub objective: Option<Objective>,
    /// Who gets how many latent numbers; auto fits both and keeps the better by KL on held-back text [default: auto]
    #[arg(long, value_enum, value_name = "RANKS")]
    pub ranks: Option<Ranks>,
    /// cascade: earlier layers whose latents a layer reads [default: 7]
    #[arg(long, value_name = "LAYERS", value_parser = ranges::any_count())]
    pub cascade_window: Option<usize>,
    /// cascade: layers of a pipeline stage, across whose start no layer reads [default: one stage]
    #[arg(long, value_name = "LAYERS", value_parser = ranges::count())]
    pub cascade_group: Option<usize>,
    /// cascade: one latent a layer for K and V, or one each [default: together]
    #[arg(long, value_enum, value_name = "HOW")]
    pub cascade_latents: Option<Latents>,
    /// cascade: rounds in which a latent is refined for all layers that read it [default: 4]
    #[arg(long, value_name = "N", value_parser = ranges::rounds())]
    pub cascade_rounds: Option<usize>,
    /// xkv: adjacent layers that share W_uk and W_uv [default: 4]
    #[arg(long, value_name = "LAYERS", value_parser = ranges::count())]
    pub cross_layer_group_size: Option<usize>,
    /// xkv: layers at the start that belong to no group [default: 0]
    #[arg(long, value_name = "LAYERS", value_parser = ranges::any_count())]
    pub xkv_skip_early_layers: Option<usize>,
    /// xkv: keep the attention of those layers as it is
    #[arg(long, requires = "xkv_skip_early_layers")]
    pub keep_early_layers_original: bool,
    /// decoupled_rope: dimensions of K, and of V, that are kept as they are [default: 64]; deepseek: numbers a token of the
    /// rotated key that all heads share [default: a third of what the ratio leaves, at most 64]
    #[arg(long, value_name = "N", value_parser = ranges::count())]
    pub d_rope: Option<usize>,
    /// deepseek: how the shared key turns [default: free]
    #[arg(long, value_enum, value_name = "LAYOUT")]
    pub layout: Option<Layout>,
    /// How statistics are gathered
    #[command(flatten)]
    pub statistics: StatisticsArgs,
}

/// How statistics are gathered.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Statistics")]
pub struct StatisticsArgs {
    /// fisher: windows that go through the backward pass at most; the others serve the second moments alone [default: 32]
    #[arg(long, value_name = "N", value_parser = ranges::count())]
    pub fisher_samples: Option<usize>,
    /// fisher: passes, with new labels each time; more of them make the metric less noisy [default: 1]
    #[arg(long, value_name = "N", value_parser = ranges::draws())]
    pub fisher_draws: Option<usize>,
    /// Weight of a window's first token, the attention sink, as a share of all others; at 0 it is one like any other
    /// [default: 0.6]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, conflicts_with = "no_calibration", value_parser = ranges::weight())]
    pub sink_weight: Option<f64>,
    /// What is kept of them
    #[command(flatten)]
    pub keep: KeepArgs,
}

/// What is kept for the commands that follow.
#[derive(Clone, Copy, Debug, Args)]
pub struct KeepArgs {
    /// GiB of the cache folder ($SHRINK_CACHE, else shrink in the user's) that statistics and sampled text may take, to be taken
    /// up again for the same donor and text; 0 keeps none
    #[arg(long, default_value_t = 8.0, value_name = "GIB", allow_negative_numbers = true, env = "SHRINK_KEEP_STATISTICS", value_parser = ranges::gib())]
    pub keep_statistics: f64,
}

/// What a cascade layer's own latent is fitted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Latents {
    /// K and V.
    Together,
    /// A latent for K and one for V.
    Apart,
}

/// Factorisation methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Method {
    /// The best that applies, by measurement.
    Auto,
    /// Each layer's K and V on their own.
    Separate,
    /// Groups of layers that share W_uk and W_uv.
    Xkv,
    /// One latent for K and V together.
    Joint,
    /// Some dimensions as they are, the rest factorised.
    DecoupledRope,
    /// Layers read the latents of those before them and cache only what is new.
    Cascade,
    /// One rotated key that all heads share and one latent, DeepSeek's form: the cheapest to decode.
    Deepseek,
}

/// How a key that all heads share turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Layout {
    /// As each layer misses most: for shrink.
    Free,
    /// By one series of frequencies in all layers, with ranks that are the same: for other engines.
    Deepseek,
}

/// What factors minimise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Objective {
    /// The squared error of K and V.
    Mse,
    /// The error of scores and of what values add to the stream.
    Attention,
    /// The loss, to second order.
    Fisher,
}

/// How a budget of latent numbers is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Ranks {
    /// The same everywhere.
    Uniform,
    /// Where they prevent most loss.
    Global,
    /// The better of both, by measurement.
    Auto,
}
