//! Perplexity: `exp` of the mean negative log-likelihood a token.

use std::ops::Range;

use mla_core::Decoder;

use super::positions::{Buckets, Means};
use super::reading::{Pass, Reading};
use super::score::{EvalError, check, log_sum_exp, map_logits};
use super::windows::{Window, Windowing};

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
    /// The same by position in the window, in buckets of doubling size.
    pub by_position: Vec<PositionNll>,
}

/// The likelihood of the tokens at some positions of their windows.
#[derive(Clone, Debug, PartialEq)]
pub struct PositionNll {
    /// Positions in the window, the first token at 0.
    pub positions: Range<usize>,
    /// Tokens scored.
    pub tokens: usize,
    /// Mean negative log-likelihood a token, in nats.
    pub nll: f64,
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
    let mut buckets = Buckets::new(windowing.length());
    for (index, window) in windows.iter().enumerate() {
        let mut reading = Reading::new(decoder, &tokens[window.tokens.clone()], pass);
        while let Some((places, hidden)) = reading.next_part()? {
            let rows = window.predicting(&places);
            if rows.is_empty() {
                continue;
            }
            let hidden = hidden.narrow(1, rows.start - places.start, rows.len());
            let nll = map_logits(decoder, hidden, |i, logits| {
                let target = tokens[window.tokens.start + rows.start + i + 1] as usize;
                log_sum_exp(logits) - f64::from(logits[target])
            });
            for (place, nll) in rows.zip(nll) {
                if !nll.is_finite() {
                    return Err(EvalError::NotFinite { window: index, position: place + 1 });
                }
                buckets.add(place + 1, [nll]);
            }
        }
        on_window(index + 1, windows.len());
    }
    Ok(Perplexity::of(&buckets, windows.len()))
}

impl Perplexity {
    /// Of sums of which the first is the negative log-likelihood.
    pub(super) fn of<const N: usize>(buckets: &Buckets<N>, windows: usize) -> Self {
        let Means { tokens, of, .. } = buckets.whole();
        let at = |Means { positions, tokens, of }| PositionNll { positions, tokens, nll: of[0] };
        let by_position = buckets.means().map(at).collect();
        Self { perplexity: of[0].exp(), nll: of[0], tokens, windows, by_position }
    }
}

/// The windows of a checked text; at least one.
pub(super) fn cut(
    decoder: &Decoder,
    tokens: &[u32],
    windowing: Windowing,
    limit: Option<usize>,
) -> Result<Vec<Window>, EvalError> {
    let length = windowing.length();
    check(decoder, tokens, length)?;
    let windows = windowing.windows(tokens.len(), limit);
    match windows.is_empty() {
        true => Err(EvalError::TooShort { tokens: tokens.len(), length }),
        false => Ok(windows),
    }
}
