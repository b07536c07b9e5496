//! How far a model is from its donor, token by token.

use std::ops::Range;

use mla_core::Decoder;

use super::perplexity::{Perplexity, cut};
use super::positions::{Buckets, Means};
use super::reading::{Pass, Reading};
use super::score::{EvalError, log_sum_exp, map_logit_pairs};
use super::windows::Windowing;

/// Distance to a donor on the positions a perplexity scores.
#[derive(Clone, Debug, PartialEq)]
pub struct Divergence {
    /// The model's own perplexity on the same tokens, as [`perplexity`](super::perplexity()) gives it.
    pub model: Perplexity,
    /// Mean `KL(donor ‖ model)` a token, in nats.
    pub kl: f64,
    /// Share of positions where both find the same token most likely.
    pub top1_agreement: f64,
    /// The donor's perplexity on the same tokens.
    pub donor_perplexity: f64,
    /// The same by position in the window, in the buckets of [`Perplexity::by_position`].
    pub by_position: Vec<PositionGap>,
}

/// Distance to a donor on the tokens at some positions of their windows.
#[derive(Clone, Debug, PartialEq)]
pub struct PositionGap {
    /// Positions in the window, the first token at 0.
    pub positions: Range<usize>,
    /// Mean `KL(donor ‖ model)` a token, in nats.
    pub kl: f64,
    /// Share of positions where both find the same token most likely.
    pub top1_agreement: f64,
    /// The donor's perplexity.
    pub donor_perplexity: f64,
    /// The model's perplexity over the donor's.
    pub ratio: f64,
}

/// Compares a model with its donor, and measures the model's perplexity on the way.
///
/// # Errors
/// When the vocabularies differ, or as for [`perplexity`](super::perplexity()).
pub fn compare(
    model: &Decoder,
    donor: &Decoder,
    tokens: &[u32],
    windowing: Windowing,
    limit: Option<usize>,
    pass: Pass,
    on_window: &mut dyn FnMut(usize, usize),
) -> Result<Divergence, EvalError> {
    let (left, right) = (model.config().vocab_size, donor.config().vocab_size);
    if left != right {
        return Err(EvalError::Vocabulary { left, right });
    }
    let windows = cut(model, tokens, windowing, limit)?;
    cut(donor, tokens, windowing, limit)?;
    let mut buckets = Buckets::new(windowing.length());
    for (index, window) in windows.iter().enumerate() {
        let fed = &tokens[window.tokens.clone()];
        let (mut ours, mut theirs) = (Reading::new(model, fed, pass), Reading::new(donor, fed, Pass::Full));
        while let (Some((places, ours)), Some((_, theirs))) = (ours.next_part()?, theirs.next_part()?) {
            let rows = window.predicting(&places);
            if rows.is_empty() {
                continue;
            }
            let [ours, theirs] =
                [ours, theirs].map(|hidden| hidden.narrow(1, rows.start - places.start, rows.len()));
            let target = |i: usize| fed[rows.start + i + 1] as usize;
            let gaps = map_logit_pairs((model, ours), (donor, theirs), |i, q, p| gap(q, p, target(i)));
            for (place, gap) in rows.clone().zip(gaps) {
                if !gap.iter().all(|x| x.is_finite()) {
                    return Err(EvalError::NotFinite { window: index, position: place + 1 });
                }
                buckets.add(place + 1, gap);
            }
        }
        on_window(index + 1, windows.len());
    }
    let [_, kl, top1_agreement, donor_nll] = buckets.whole().of;
    let at = |Means { positions, of: [nll, kl, top1_agreement, donor_nll], .. }| PositionGap {
        positions,
        kl,
        top1_agreement,
        donor_perplexity: donor_nll.exp(),
        ratio: (nll - donor_nll).exp(),
    };
    let by_position = buckets.means().map(at).collect();
    let model = Perplexity::of(&buckets, windows.len());
    Ok(Divergence { model, kl, top1_agreement, donor_perplexity: donor_nll.exp(), by_position })
}

/// What the logits of a model (`q`) and of its donor (`p`) say of one token: its negative log-likelihood, the KL, 1 where the
/// most likely token is the same, and the donor's negative log-likelihood.
fn gap(q: &[f32], p: &[f32], target: usize) -> [f64; 4] {
    let (log_z_q, log_z_p) = (log_sum_exp(q), log_sum_exp(p));
    let terms = p.iter().zip(q).map(|(&p, &q)| {
        let log_p = f64::from(p) - log_z_p;
        log_p.exp() * (log_p - (f64::from(q) - log_z_q))
    });
    let same = if argmax(p) == argmax(q) { 1.0 } else { 0.0 };
    [log_z_q - f64::from(q[target]), terms.sum(), same, log_z_p - f64::from(p[target])]
}

pub(super) fn argmax(logits: &[f32]) -> usize {
    (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best })
}
