//! The generation loop.

use std::ops::ControlFlow;

use burn::tensor::Tensor;
use thiserror::Error;

use super::sample::{Sampler, Sampling};
use crate::cache::{Cache, CacheError};
use crate::decoder::Decoder;
use crate::positions::Padding;
use crate::source::host_f32;

/// How to generate.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Tokens to add to each prompt at most; the context may end a sequence earlier.
    pub max_new_tokens: usize,
    /// How each token is chosen.
    pub sampling: Sampling,
    /// Ids that end a sequence; the id itself is not part of the result.
    pub stop: Vec<u32>,
    /// Tokens that a prefill pass takes at a time, over all sequences, but a column of them at least.
    pub prefill_chunk: usize,
}

impl Default for GenerateOptions {
    /// 100 greedy tokens, prompts taken 512 tokens at a time, no stop id.
    fn default() -> Self {
        Self { max_new_tokens: 100, sampling: Sampling::Greedy, stop: Vec::new(), prefill_chunk: 512 }
    }
}

/// Why a generation could not be done.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum GenerateError {
    /// A prompt without a token.
    #[error("prompt {row} is empty: there is nothing to continue")]
    EmptyPrompt {
        /// Index of the prompt.
        row: usize,
    },
    /// A prompt that leaves no room for a token.
    #[error(
        "the prompt has {prompt_tokens} tokens, the model's context {max_positions}: no room for another"
    )]
    PromptTooLong {
        /// Tokens of the longest prompt.
        prompt_tokens: usize,
        /// The model's context.
        max_positions: usize,
    },
    /// A token the model has no embedding for.
    #[error("token {token} of prompt {row} is outside the model's vocabulary of {vocab_size}")]
    UnknownToken {
        /// Index of the prompt.
        row: usize,
        /// The offending id.
        token: u32,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// Logits that are NaN or infinite: nothing can be chosen from them.
    #[error("the model gives no number for new token {token} of prompt {row}")]
    NotFinite {
        /// Index of the prompt.
        row: usize,
        /// Index of the new token.
        token: usize,
    },
    /// The cache refused a pass.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop id came.
    Stop,
    /// It has [`GenerateOptions::max_new_tokens`] new tokens.
    Length,
    /// The model's context is full.
    Context,
    /// The caller broke off.
    Broken,
}

impl Finish {
    /// The reason in one lower-case word.
    pub fn name(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::Context => "context",
            Finish::Broken => "broken",
        }
    }
}

/// What a generation gave.
#[derive(Debug)]
pub struct Generation {
    /// New tokens of each sequence, without stop ids.
    pub tokens: Vec<Vec<u32>>,
    /// Why each sequence ended.
    pub finish: Vec<Finish>,
    /// Bytes the cache was allocated with.
    pub cache_bytes: usize,
    /// Tokens a sequence the cache was allocated for.
    pub cache_tokens: usize,
}

/// Continues a batch of prompts through the cache.
///
/// Prompts of different lengths are padded on the left; each row gives what it would give alone, to the end of its own context. `on_token` hears each
/// new token with its row as soon as it is chosen; a `Break` ends the generation there, with what was made so far.
///
/// # Errors
/// When a prompt is empty, has an unknown token or leaves no room, or the model's logits are not finite.
pub fn generate(
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    mut on_token: impl FnMut(usize, u32) -> ControlFlow<()>,
) -> Result<Generation, GenerateError> {
    let longest = check_prompts(decoder, prompts)?;
    if prompts.is_empty() {
        return Ok(Generation { tokens: Vec::new(), finish: Vec::new(), cache_bytes: 0, cache_tokens: 0 });
    }
    let max_positions = decoder.config().max_positions;
    let limits: Vec<usize> =
        prompts.iter().map(|prompt| options.max_new_tokens.min(max_positions - prompt.len())).collect();
    let room = limits.iter().copied().max().unwrap_or(0);
    let padding = Padding::left(prompts.iter().map(|p| longest - p.len()).collect());
    let padded = prompts.iter().map(|p| [vec![0; longest - p.len()], p.clone()].concat()).collect::<Vec<_>>();

    // The last token chosen is never fed back, hence one column fewer.
    let mut cache = decoder.cache(padding, longest + room.saturating_sub(1));
    let mut tokens = vec![Vec::new(); prompts.len()];
    let mut finish: Vec<Option<Finish>> = vec![None; prompts.len()];
    let mut samplers: Vec<_> = (0..prompts.len()).map(|row| Sampler::new(options.sampling, row)).collect();
    let vocab = decoder.config().vocab_size;
    let mut last = match room {
        0 => None,
        _ => Some(prefill(decoder, &padded, options.prefill_chunk, &mut cache)?),
    };
    let mut open_end = Finish::Length;
    'steps: for left in (0..room).rev() {
        let Some(hidden) = last.take() else { break };
        let logits = host_f32(decoder.logits(hidden));
        for (row, logits) in logits.chunks_exact(vocab).enumerate() {
            if finish[row].is_some() {
                continue;
            }
            if !logits.iter().all(|l| l.is_finite()) {
                return Err(GenerateError::NotFinite { row, token: tokens[row].len() });
            }
            let token = samplers[row].pick(logits);
            if options.stop.contains(&token) {
                finish[row] = Some(Finish::Stop);
            } else {
                tokens[row].push(token);
                if on_token(row, token).is_break() {
                    open_end = Finish::Broken;
                    break 'steps;
                }
                if tokens[row].len() == limits[row] {
                    let whole = limits[row] == options.max_new_tokens;
                    finish[row] = Some(if whole { Finish::Length } else { Finish::Context });
                }
            }
        }
        if left > 0 && finish.contains(&None) {
            // Ended rows go on with a filler that nobody reads.
            let columns: Vec<_> = tokens.iter().map(|row| vec![row.last().copied().unwrap_or(0)]).collect();
            last = Some(decoder.hidden_cached(&columns, &mut cache)?);
        }
    }
    let finish = finish.into_iter().map(|reason| reason.unwrap_or(open_end)).collect();
    Ok(Generation { tokens, finish, cache_bytes: cache.bytes(), cache_tokens: cache.capacity() })
}

/// Feeds equally long prompts, `chunk` tokens a pass (a column at least), and returns what the head multiplies for the last column.
///
/// # Shapes
/// - `padded`: `[batch, t]`, `t ≥ 1` → `[batch, 1, d_model]`
///
/// # Errors
/// When they do not fit the cache.
pub fn prefill(
    decoder: &Decoder,
    padded: &[Vec<u32>],
    chunk: usize,
    cache: &mut Cache,
) -> Result<Tensor<3>, CacheError> {
    let length = padded[0].len();
    let chunk = (chunk / padded.len()).max(1);
    let mut start = 0;
    loop {
        let end = (start + chunk).min(length);
        let columns: Vec<Vec<u32>> = padded.iter().map(|row| row[start..end].to_vec()).collect();
        let hidden = decoder.hidden_cached(&columns, cache)?;
        if end == length {
            return Ok(hidden.narrow(1, end - start - 1, 1));
        }
        start = end;
    }
}

/// The length of the longest prompt.
fn check_prompts(decoder: &Decoder, prompts: &[Vec<u32>]) -> Result<usize, GenerateError> {
    let config = decoder.config();
    let (vocab_size, max_positions) = (config.vocab_size, config.max_positions);
    for (row, prompt) in prompts.iter().enumerate() {
        if prompt.is_empty() {
            return Err(GenerateError::EmptyPrompt { row });
        }
        if let Some(&token) = prompt.iter().find(|&&token| token as usize >= vocab_size) {
            return Err(GenerateError::UnknownToken { row, token, vocab_size });
        }
    }
    let prompt_tokens = prompts.iter().map(Vec::len).max().unwrap_or(0);
    if prompt_tokens >= max_positions {
        return Err(GenerateError::PromptTooLong { prompt_tokens, max_positions });
    }
    Ok(prompt_tokens)
}
