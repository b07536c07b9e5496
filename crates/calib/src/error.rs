//! Why a conversion cannot be done.

use mla_core::SourceError;

/// A conversion that cannot be done; the remedy is in [`Error::hint`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The donor's weights could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A ratio below 1, above d_kv, or no number.
    #[error("compression ratio {found} is out of range: from 1 to d_kv = {d_kv}")]
    Ratio {
        /// What was asked for.
        found: f64,
        /// Numbers a token of an uncompressed K (or V).
        d_kv: usize,
    },
    /// A latent width of 0 or above d_kv.
    #[error("latent width {found} is out of range: from 1 to d_kv = {d_kv}")]
    LatentWidth {
        /// What was asked for.
        found: usize,
        /// Numbers a token of an uncompressed K (or V).
        d_kv: usize,
    },
    /// The model is converted already.
    #[error("the model is converted already: layer {layer} caches latents")]
    AlreadyLatent {
        /// The first such layer.
        layer: usize,
    },
    /// A number of layers that makes no sense for the model.
    #[error("the {what} is {found}, expected {least} to {most}")]
    Layers {
        /// Which number.
        what: &'static str,
        /// What was asked for.
        found: usize,
        /// The least there can be.
        least: usize,
        /// The most there can be.
        most: usize,
    },
    /// Kept dimensions that leave nothing to factorise, or half a RoPE pair.
    #[error("{found} dimensions cannot be kept of a latent width of {d_latent}")]
    RopeWidth {
        /// What was asked for.
        found: usize,
        /// The latent width, kept dimensions included.
        d_latent: usize,
        /// Whether dimensions turn in pairs.
        paired: bool,
    },
    /// A shared key of a width that the model has not got.
    #[error("a shared key of {found} numbers does not fit: expected {expected}")]
    SharedKeyWidth {
        /// What was asked for.
        found: usize,
        /// What would fit.
        expected: String,
    },
    /// A model that cannot have a shared key, or not of this layout.
    #[error("the method deepseek does not fit: {why}")]
    SharedKey {
        /// The reason, and the way that works.
        why: &'static str,
    },
    /// A budget that does not reach for one latent number each.
    #[error("the ratio leaves {budget} latent numbers for {units} keys and values")]
    Budget {
        /// Numbers there are.
        budget: usize,
        /// Keys and values of all layers.
        units: usize,
    },
    /// A decoder that several layers share cannot be fitted to one of them.
    #[error("layer {layer} shares its W_up with another, and cannot be corrected on its own")]
    SharedBasis {
        /// The layer.
        layer: usize,
    },
    /// Something that cannot be had without calibration text.
    #[error("{what} needs calibration text")]
    NeedsText {
        /// What.
        what: &'static str,
    },
    /// A cache that no plan makes so small.
    #[error("no plan gives a cache {ratio}x smaller than the donor's in bf16")]
    Unreachable {
        /// The donor's bytes over the new one's.
        ratio: f64,
    },
    /// A loss that no plan keeps to.
    #[error(
        "the least KL to the donor at {ratio}x and beyond is {least:.4} nats a token, and {most:.4} were allowed"
    )]
    Divergence {
        /// What was asked for.
        most: f64,
        /// What was found.
        least: f64,
        /// The smallest ratio that is tried.
        ratio: f64,
    },
    /// Latents that are not in the order of what they prevent.
    #[error(
        "the latents of layer {layer} cannot be cut short: they are not in the order of what they prevent"
    )]
    NotNested {
        /// The layer.
        layer: usize,
    },
    /// A ratio below the one that a folder was converted at.
    #[error("layer {layer} caches {found} numbers, and {wanted} are asked for")]
    Wider {
        /// The layer.
        layer: usize,
        /// What was asked for.
        wanted: usize,
        /// What there is.
        found: usize,
    },
    /// Columns of a `W_up` that depend on each other: the latent has numbers that say nothing.
    #[error("layer {layer} has a W_up of {rank} columns that depend on each other")]
    Dependent {
        /// The layer.
        layer: usize,
        /// Its latent's width.
        rank: usize,
    },
    /// Calibration text of no token.
    #[error("the calibration text is empty")]
    EmptyText,
    /// A Fisher pass that is given too little or too much to work with.
    #[error("the Fisher pass needs {expected} {what}, and {found} were given")]
    Fisher {
        /// Windows, draws, or labels for all its positions.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many are needed, at least.
        expected: usize,
    },
    /// Fewer calibration tokens than latent dimensions: the covariance could not tell which to keep.
    #[error("calibration has {tokens} tokens, fewer than the latent width {d_latent}")]
    TooFewTokens {
        /// Tokens of all windows.
        tokens: usize,
        /// Latent width of a layer.
        d_latent: usize,
    },
    /// Activations became NaN or infinite.
    #[error("the input of attention in layer {layer} is not finite")]
    NotFinite {
        /// The layer.
        layer: usize,
    },
    /// The donor's logits became NaN or infinite.
    #[error("the donor's logits of calibration token {token} of its batch are not finite")]
    LogitsNotFinite {
        /// The token.
        token: usize,
    },
    /// A converted model's logits became NaN or infinite.
    #[error("the converted model's logits on held-back text are not finite")]
    DivergenceNotFinite,
    /// A matrix that should be positive definite is not.
    #[error("a {size}x{size} moment matrix is not positive definite")]
    NotPositive {
        /// Rows of the matrix.
        size: usize,
    },
    /// The temporary file failed.
    #[error("cannot {action} the temporary file in {folder}: {source}")]
    Scratch {
        /// What was tried.
        action: &'static str,
        /// Where it lies.
        folder: std::path::PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// An eigendecomposition did not converge.
    #[error("the eigendecomposition of a {size}x{size} matrix did not converge")]
    NoConvergence {
        /// Rows of the matrix.
        size: usize,
    },
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::Source(_) => return None,
            Error::Ratio { .. } => {
                "2 halves the cache, 4 quarters it; shrink inspect lists what each ratio gives".into()
            }
            Error::LatentWidth { d_kv, .. } => format!("d_kv / 2 = {} halves the cache", (d_kv / 2).max(1)),
            Error::AlreadyLatent { .. } => "convert the donor again at the ratio you want".into(),
            Error::TooFewTokens { d_latent, .. } => format!(
                "give more text, or more and longer windows: at least {d_latent} tokens, better ten times d_model"
            ),
            Error::Layers { .. } => "shrink inspect MODEL tells how many layers there are".into(),
            Error::RopeWidth { paired: true, found, d_latent } if found % 2 == 1 && found < d_latent => {
                "dimensions turn in pairs: take an even number".into()
            }
            Error::RopeWidth { d_latent, .. } => match d_latent {
                0..=2 => "lower the ratio, or take --method separate".into(),
                _ => format!("keep 2 to {} (--d-rope), or lower the ratio", (d_latent - 1) / 2 * 2),
            },
            Error::SharedKeyWidth { .. } => "give another --d-rope, or lower the ratio".into(),
            Error::SharedKey { .. } => "take --method joint, or what the message names".into(),
            Error::Budget { .. } => "lower the ratio, or take --ranks uniform".into(),
            Error::SharedBasis { .. } => "leave --sequential out with xkv".into(),
            Error::NeedsText { .. } => {
                "give text with --calibration, or take --method separate --objective mse".into()
            }
            Error::Unreachable { .. } => "lower --target, or leave --cache-dtype and --method out".into(),
            Error::Divergence { .. } => {
                "allow more, calibrate on more text, or convert at a ratio of your own and measure".into()
            }
            Error::NotNested { .. } => {
                "separate and joint can be cut short; convert the donor again at the ratio you want".into()
            }
            Error::Wider { .. } => {
                "ask for a larger ratio than the folder's, or convert the donor again".into()
            }
            Error::Dependent { .. } => {
                "the run that made it went astray: take an earlier checkpoint, or convert at a larger ratio"
                    .into()
            }
            Error::EmptyText => "give windows of at least two tokens".into(),
            Error::Fisher { .. } => "see FisherOptions for what each number counts".into(),
            Error::LogitsNotFinite { .. } => {
                "the donor overflows on this text: are its weights damaged?".into()
            }
            Error::Scratch { .. } => "free some space there, or raise --scratch-memory".into(),
            Error::DivergenceNotFinite | Error::NotPositive { .. } => {
                "the statistics are degenerate: calibrate on more and other text".into()
            }
            Error::NotFinite { .. } => "the donor overflows on this text: are its weights damaged?".into(),
            Error::NoConvergence { .. } => {
                "the statistics are degenerate: calibrate on more and other text".into()
            }
        };
        Some(hint)
    }
}
