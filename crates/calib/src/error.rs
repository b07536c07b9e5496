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
            Error::NotFinite { .. } => "the donor overflows on this text: are its weights damaged?".into(),
            Error::NoConvergence { .. } => {
                "the statistics are degenerate: calibrate on more and other text".into()
            }
        };
        Some(hint)
    }
}
