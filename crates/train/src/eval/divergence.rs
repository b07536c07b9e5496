//! How far a model is from its donor, token by token.

use mla_core::Decoder;

use super::perplexity::{Pass, Perplexity, cut, hidden};
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
    let (mut kl, mut agreed, mut nll, mut donor_nll, mut count) = (0.0, 0, 0.0, 0.0, 0);
    for (index, window) in windows.iter().enumerate() {
        let fed = &tokens[window.tokens.clone()];
        let first = window.scored.start - 1 - window.tokens.start;
        let rows = |decoder, pass| {
            Ok::<_, EvalError>(hidden(decoder, fed, pass)?.narrow(1, first, window.scored.len()))
        };
        let ours = rows(model, pass)?;
        let theirs = rows(donor, Pass::Full)?;
        let pairs = map_logit_pairs((model, ours), (donor, theirs), |i, q, p| {
            let (log_z_q, log_z_p) = (log_sum_exp(q), log_sum_exp(p));
            let kl: f64 = p
                .iter()
                .zip(q)
                .map(|(&p, &q)| {
                    let log_p = f64::from(p) - log_z_p;
                    log_p.exp() * (log_p - (f64::from(q) - log_z_q))
                })
                .sum();
            let target = tokens[window.scored.start + i] as usize;
            (kl, argmax(p) == argmax(q), log_z_q - f64::from(q[target]), log_z_p - f64::from(p[target]))
        });
        for (i, (token_kl, same, token_nll, token_donor_nll)) in pairs.into_iter().enumerate() {
            if ![token_kl, token_nll, token_donor_nll].iter().all(|x| x.is_finite()) {
                return Err(EvalError::NotFinite { window: index, position: first + 1 + i });
            }
            kl += token_kl;
            nll += token_nll;
            donor_nll += token_donor_nll;
            agreed += usize::from(same);
            count += 1;
        }
        on_window(index + 1, windows.len());
    }
    let mean = |sum: f64| sum / count as f64;
    let nll = mean(nll);
    Ok(Divergence {
        model: Perplexity { perplexity: nll.exp(), nll, tokens: count, windows: windows.len() },
        kl: mean(kl),
        top1_agreement: mean(agreed as f64),
        donor_perplexity: mean(donor_nll).exp(),
    })
}

fn argmax(logits: &[f32]) -> usize {
    (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best })
}
