//! Perplexity: `exp` of the mean negative log-likelihood a token.

use burn::tensor::Tensor;
use mla_core::{Decoder, Padding};

use super::score::{EvalError, check, log_sum_exp, map_logits};
use super::windows::{Window, Windowing};

/// How hidden states are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// A window at once, no cache.
    Full,
    /// Token by token through the cache, as generation does: what a served model's perplexity really is.
    ThroughCache,
}

/// A perplexity and what it was measured on.
#[derive(Clone, Debug, PartialEq)]
pub struct Perplexity {
    /// `exp(mean negative log-likelihood)`.
    pub perplexity: f64,
    /// Mean negative log-likelihood a token, in nats.
    pub nll: f64,
    /// Tokens scored.
    pub tokens: usize,
    /// Windows scored.
    pub windows: usize,
}

/// Scores a token stream. `on_window` hears how many windows are done, of how many.
///
/// # Errors
/// When the text is shorter than a window, a token is unknown, or a log-probability is not a number.
pub fn perplexity(
    decoder: &Decoder,
    tokens: &[u32],
    windowing: Windowing,
    limit: Option<usize>,
    pass: Pass,
    on_window: &mut dyn FnMut(usize, usize),
) -> Result<Perplexity, EvalError> {
    let windows = cut(decoder, tokens, windowing, limit)?;
    let (mut total, mut scored) = (0.0, 0);
    for (index, window) in windows.iter().enumerate() {
        let hidden = hidden(decoder, &tokens[window.tokens.clone()], pass)?;
        for nll in window_nll(decoder, tokens, window, hidden, index)? {
            total += nll;
            scored += 1;
        }
        on_window(index + 1, windows.len());
    }
    let nll = total / scored as f64;
    Ok(Perplexity { perplexity: nll.exp(), nll, tokens: scored, windows: windows.len() })
}

/// The windows of a checked text; at least one.
pub(super) fn cut(
    decoder: &Decoder,
    tokens: &[u32],
    windowing: Windowing,
    limit: Option<usize>,
) -> Result<Vec<Window>, EvalError> {
    let (Windowing::Consecutive { length } | Windowing::Strided { length, .. }) = windowing;
    check(decoder, tokens, length)?;
    let windows = windowing.windows(tokens.len(), limit);
    match windows.is_empty() {
        true => Err(EvalError::TooShort { tokens: tokens.len(), length }),
        false => Ok(windows),
    }
}

/// `[1, t, d_model]`, what the head multiplies.
pub(super) fn hidden(decoder: &Decoder, window: &[u32], pass: Pass) -> Result<Tensor<3>, EvalError> {
    match pass {
        Pass::Full => Ok(decoder.hidden(&[window.to_vec()], &Padding::none(1))),
        Pass::ThroughCache => {
            let mut cache = decoder.cache(Padding::none(1), window.len());
            let step = |&token| decoder.hidden_cached(&[vec![token]], &mut cache);
            let columns: Result<Vec<_>, _> = window.iter().map(step).collect();
            Ok(Tensor::cat(columns?, 1))
        }
    }
}

/// The negative log-likelihood of each scored token of a window.
fn window_nll(
    decoder: &Decoder,
    tokens: &[u32],
    window: &Window,
    hidden: Tensor<3>,
    index: usize,
) -> Result<Vec<f64>, EvalError> {
    // The token at `s` is predicted from the position before it.
    let first = window.scored.start - 1 - window.tokens.start;
    let rows = hidden.narrow(1, first, window.scored.len());
    let nll = map_logits(decoder, rows, |i, logits| {
        let target = tokens[window.scored.start + i] as usize;
        log_sum_exp(logits) - f64::from(logits[target])
    });
    match nll.iter().position(|x| !x.is_finite()) {
        None => Ok(nll),
        Some(i) => Err(EvalError::NotFinite { window: index, position: first + 1 + i }),
    }
}
