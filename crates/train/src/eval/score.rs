//! From hidden states to log-probabilities, a few positions at a time.

use burn::tensor::Tensor;
use mla_core::generate::GenerateError;
use mla_core::{CacheError, Decoder};
use rayon::prelude::*;

/// Positions whose logits are held at a time: the vocabulary is wide, the window need not be.
const CHUNK_POSITIONS: usize = 128;

/// A measurement that cannot be had.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum EvalError {
    /// Not enough tokens for one window.
    #[error("the text has {tokens} tokens, fewer than one window of {length}")]
    TooShort {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens a window.
        length: usize,
    },
    /// A window the model has no positions for.
    #[error("windows of {length} tokens exceed the model's context of {max_positions}")]
    TooLong {
        /// Tokens a window.
        length: usize,
        /// The model's context.
        max_positions: usize,
    },
    /// A token the model has no embedding for.
    #[error("token {token} of the text is outside the model's vocabulary of {vocab_size}")]
    UnknownToken {
        /// The offending id.
        token: u32,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// Two models that do not share a vocabulary.
    #[error("the models have vocabularies of {left} and {right} tokens")]
    Vocabulary {
        /// Rows of the first model's embedding.
        left: usize,
        /// Rows of the second model's.
        right: usize,
    },
    /// NaN or infinity where a log-probability should be. Never skipped: it would flatter the mean.
    #[error("the model gives no number for token {position} of window {window}")]
    NotFinite {
        /// Index of the window.
        window: usize,
        /// Index of the token in the window.
        position: usize,
    },
    /// A task in a context that the model does not have.
    #[error("a context of {length} tokens exceeds the model's of {max_positions}")]
    TaskLength {
        /// Tokens of prompt and answer.
        length: usize,
        /// The model's context.
        max_positions: usize,
    },
    /// A task in a context that does not hold its parts.
    #[error("a prompt of {length} tokens has no room for the task, which takes {least} or more")]
    TaskRoom {
        /// Tokens of the prompt.
        length: usize,
        /// Tokens that its parts take, and one of the text.
        least: usize,
    },
    /// Not enough text for a task.
    #[error("the text gives {tokens} tokens, and the task takes {needed} or more")]
    TaskText {
        /// Tokens of the text; of a copy the different ones.
        tokens: usize,
        /// Tokens that a prompt takes.
        needed: usize,
    },
    /// The cache refused a pass.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A continuation that could not be had.
    #[error(transparent)]
    Generate(#[from] GenerateError),
}

impl EvalError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            EvalError::TooShort { .. } => "give more text or shorten --max-length",
            EvalError::TooLong { .. } => "shorten --max-length",
            EvalError::UnknownToken { .. } => "the tokenizer does not belong to this model",
            EvalError::Vocabulary { .. } => "compare a converted model with its own donor",
            EvalError::NotFinite { .. } => {
                "an activation overflowed on this text: measure the donor on it too, and convert from its bf16 or f32 original"
            }
            EvalError::TaskLength { .. } => "take shorter --lengths, fewer --pairs or fewer --max-new-tokens",
            EvalError::TaskRoom { .. } => "take longer --lengths",
            EvalError::TaskText { .. } => "give more text (--data), or take shorter --lengths",
            EvalError::Generate(GenerateError::UnknownToken { .. }) => {
                "the tokenizer does not belong to this model"
            }
            EvalError::Generate(GenerateError::NotFinite { .. }) => {
                "the weights overflow or are damaged; shrink check names the tensor"
            }
            EvalError::Cache(_) | EvalError::Generate(_) => return None,
        };
        Some(hint.into())
    }
}

/// Calls `row(position, logits)` for every position of one sequence, in parallel, and collects the answers in order.
///
/// # Shapes
/// - `hidden`: `[1, t, d_model]`
pub(super) fn map_logits<T: Send>(
    decoder: &Decoder,
    hidden: Tensor<3>,
    row: impl Fn(usize, &[f32]) -> T + Sync,
) -> Vec<T> {
    let [_, t, _] = hidden.dims();
    let vocab = decoder.config().vocab_size;
    let mut out = Vec::with_capacity(t);
    for start in (0..t).step_by(CHUNK_POSITIONS) {
        let count = CHUNK_POSITIONS.min(t - start);
        let logits = host_logits(decoder, hidden.clone().narrow(1, start, count));
        out.par_extend(logits.par_chunks(vocab).enumerate().map(|(i, logits)| row(start + i, logits)));
    }
    out
}

fn host_logits(decoder: &Decoder, hidden: Tensor<3>) -> Vec<f32> {
    decoder.logits(hidden).try_into_vec_as::<f32>().expect("a float tensor reads back as f32")
}

/// Calls `row(position, logits_a, logits_b)` for every position of one sequence under two decoders.
pub(super) fn map_logit_pairs<T: Send>(
    (a, hidden_a): (&Decoder, Tensor<3>),
    (b, hidden_b): (&Decoder, Tensor<3>),
    row: impl Fn(usize, &[f32], &[f32]) -> T + Sync,
) -> Vec<T> {
    let [_, t, _] = hidden_a.dims();
    let vocab = a.config().vocab_size;
    let mut out = Vec::with_capacity(t);
    for start in (0..t).step_by(CHUNK_POSITIONS) {
        let count = CHUNK_POSITIONS.min(t - start);
        let left = host_logits(a, hidden_a.clone().narrow(1, start, count));
        let right = host_logits(b, hidden_b.clone().narrow(1, start, count));
        let pairs = left.par_chunks(vocab).zip(right.par_chunks(vocab)).enumerate();
        out.par_extend(pairs.map(|(i, (left, right))| row(start + i, left, right)));
    }
    out
}

/// `log Σ exp(logits)` in f64.
pub(super) fn log_sum_exp(logits: &[f32]) -> f64 {
    let top = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    top + logits.iter().map(|&l| (f64::from(l) - top).exp()).sum::<f64>().ln()
}

/// The ids are the model's and a window fits its context.
pub(crate) fn check(decoder: &Decoder, tokens: &[u32], length: usize) -> Result<(), EvalError> {
    let (vocab_size, max_positions) = (decoder.config().vocab_size, decoder.config().max_positions);
    if length > max_positions {
        return Err(EvalError::TooLong { length, max_positions });
    }
    match tokens.iter().find(|&&token| token as usize >= vocab_size) {
        Some(&token) => Err(EvalError::UnknownToken { token, vocab_size }),
        None => Ok(()),
    }
}
