//! Random tokens, then the same tokens again: what induction heads do (Olsson et al. 2022).

use std::collections::BTreeSet;

use mla_core::Decoder;
use rand::RngExt;

use super::super::divergence::argmax;
use super::super::reading::{Pass, Reading};
use super::super::score::{EvalError, check, log_sum_exp, map_logits};
use super::draw::rng;

/// Sequences that say the same twice.
#[derive(Clone, Debug)]
pub struct Copies {
    /// What every sequence begins with; may be empty.
    pub opening: Vec<u32>,
    /// A text whose tokens are drawn, each as often as any other, so that they are ordinary ones.
    pub text: Vec<u32>,
    /// Tokens a sequence.
    pub lengths: Vec<usize>,
    /// Sequences of each length.
    pub trials: usize,
    /// Fixes the draws.
    pub seed: u64,
}

/// How well the second copy was foretold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Copied {
    /// Tokens of the second copies that were scored.
    pub tokens: usize,
    /// The share of them that is the most likely token.
    pub accuracy: f64,
    /// Mean negative log-likelihood a token, in nats.
    pub nll: f64,
}

impl Copies {
    /// Scores a model at every length. The first token of a second copy is left out: nothing says that it comes.
    /// `on_done` hears how many sequences are done.
    ///
    /// # Errors
    /// When a length is too short for two copies of two tokens or exceeds the context, a token is unknown, or a log-probability
    /// is no number.
    pub fn measure(
        &self,
        decoder: &Decoder,
        on_done: &mut dyn FnMut(usize),
    ) -> Result<Vec<Copied>, EvalError> {
        let max_positions = decoder.config().max_positions;
        let mut done = 0;
        let mut measured = Vec::with_capacity(self.lengths.len());
        for &length in &self.lengths {
            if length > max_positions {
                return Err(EvalError::TaskLength { length, max_positions });
            }
            let (mut tokens, mut right, mut total) = (0, 0, 0.0);
            for trial in 0..self.trials {
                let sequence = self.sequence(length, trial)?;
                let copied = (sequence.len() - self.opening.len()) / 2;
                for (nll, hit) in second_copy(decoder, &sequence, copied, done)? {
                    tokens += 1;
                    right += usize::from(hit);
                    total += nll;
                }
                done += 1;
                on_done(done);
            }
            let mean = |sum: f64| sum / tokens as f64;
            measured.push(Copied { tokens, accuracy: mean(right as f64), nll: mean(total) });
        }
        Ok(measured)
    }

    /// The opening and two copies, of `length` tokens or one fewer.
    fn sequence(&self, length: usize, trial: usize) -> Result<Vec<u32>, EvalError> {
        let copied = length.saturating_sub(self.opening.len()) / 2;
        if copied < 2 {
            return Err(EvalError::TaskRoom { length, least: self.opening.len() + 4 });
        }
        let known: Vec<u32> = self.text.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        if known.len() < 2 {
            return Err(EvalError::TaskText { tokens: known.len(), needed: 2 });
        }
        let mut rng = rng(self.seed, trial);
        let once: Vec<u32> = (0..copied).map(|_| known[rng.random_range(0..known.len())]).collect();
        Ok([&self.opening[..], &once, &once].concat())
    }
}

/// The negative log-likelihood of each token but the first of the last `copied`, and whether it was the most likely.
fn second_copy(
    decoder: &Decoder,
    sequence: &[u32],
    copied: usize,
    index: usize,
) -> Result<Vec<(f64, bool)>, EvalError> {
    check(decoder, sequence, sequence.len())?;
    let first = sequence.len() - copied;
    let mut scores = Vec::with_capacity(copied - 1);
    let mut reading = Reading::new(decoder, sequence, Pass::Full);
    while let Some((places, hidden)) = reading.next_part()? {
        let rows = places.start.max(first)..places.end.min(sequence.len() - 1);
        if rows.is_empty() {
            continue;
        }
        let hidden = hidden.narrow(1, rows.start - places.start, rows.len());
        scores.extend(map_logits(decoder, hidden, |i, logits| {
            let target = sequence[rows.start + i + 1] as usize;
            (log_sum_exp(logits) - f64::from(logits[target]), argmax(logits) == target)
        }));
    }
    match scores.iter().position(|(nll, _)| !nll.is_finite()) {
        None => Ok(scores),
        Some(i) => Err(EvalError::NotFinite { window: index, position: first + 1 + i }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::toy::{CONTEXT, Kept, text, toy};
    use super::super::super::{Windowing, perplexity};
    use super::*;

    fn copies(length: usize) -> Copies {
        Copies { opening: vec![0], text: text(300, 1), lengths: vec![length], trials: 3, seed: 9 }
    }

    #[test]
    fn a_sequence_says_the_same_twice_in_tokens_of_the_text() {
        let some = Copies { text: vec![3, 5, 5, 5, 8], ..copies(40) };
        for (length, found) in [(40, 39), (41, 41), (5, 5)] {
            let sequence = some.sequence(length, 0).expect("there is room");
            assert_eq!(sequence.len(), found);
            let (once, again) = sequence[1..].split_at(found / 2);
            assert!(once == again && once.iter().all(|token| [3, 5, 8].contains(token)));
        }
        assert_ne!(some.sequence(40, 0), some.sequence(40, 1));
        assert_eq!(some.sequence(4, 0), Err(EvalError::TaskRoom { length: 4, least: 5 }));
        let one = Copies { text: vec![3, 3], ..some };
        assert_eq!(one.sequence(40, 0), Err(EvalError::TaskText { tokens: 1, needed: 2 }));
    }

    #[test]
    fn only_the_second_copy_is_scored_and_as_a_perplexity_would_score_it() {
        let decoder = toy(Kept::Dense, 5);
        let found = copies(41).measure(&decoder, &mut |_| {}).expect("it is measured")[0];
        assert_eq!(found.tokens, 3 * 19);
        let mut total = 0.0;
        for trial in 0..3 {
            let sequence = copies(41).sequence(41, trial).expect("there is room");
            // All but the first nineteen of its tokens, each given those before it in the sequence.
            let of = |length: usize| {
                let windowing = Windowing::Consecutive { length };
                let scored = perplexity(&decoder, &sequence, windowing, Some(1), Pass::Full, &mut |_, _| {});
                let scored = scored.expect("it is scored");
                scored.nll * scored.tokens as f64
            };
            total += of(41) - of(22);
        }
        // Sums of fewer than 200 terms of a few nats, in f64, of logits that agree to f32.
        assert!((found.nll - total / 57.0).abs() < 1e-4, "{found:?} {total}");
        let long = copies(CONTEXT + 1).measure(&decoder, &mut |_| {});
        assert_eq!(long, Err(EvalError::TaskLength { length: CONTEXT + 1, max_positions: CONTEXT }));
    }
}
