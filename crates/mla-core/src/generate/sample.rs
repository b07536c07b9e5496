//! Choosing the next token from logits.

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// The most likely token; the lowest id among equals.
    Greedy,
    /// A draw from the softmax at a temperature, cut by top-k, then by top-p.
    Random {
        /// Divides the logits; above 0.
        temperature: f64,
        /// Keep the k most likely tokens; `None` keeps all.
        top_k: Option<usize>,
        /// Keep the smallest set of tokens whose probabilities reach p (Holtzman et al. 2020); 1 keeps all.
        top_p: f64,
        /// Fixes every draw, on every platform.
        seed: u64,
    },
}

/// [`Sampling`] with its random state, one for each sequence.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// The sampler of sequence `row` of a batch; row 0 draws what a single prompt would.
    pub fn new(sampling: Sampling, row: usize) -> Self {
        let seed = match sampling {
            Sampling::Greedy => 0,
            Sampling::Random { seed, .. } => seed,
        };
        Self { sampling, rng: ChaCha8Rng::seed_from_u64(seed.wrapping_add(row as u64)) }
    }

    /// Picks a token id.
    ///
    /// # Panics
    /// If `logits` is empty.
    pub fn pick(&mut self, logits: &[f32]) -> u32 {
        match self.sampling {
            Sampling::Greedy => argmax(logits),
            Sampling::Random { temperature, top_k, top_p, .. } => {
                let kept = match top_k.is_none() && top_p >= 1.0 {
                    // All are kept, in the order of their ids: nothing asks for the most likely ones.
                    true => weights(logits, temperature),
                    false => nucleus(logits, temperature, top_k, top_p),
                };
                let total: f64 = kept.iter().map(|&(_, p)| p).sum();
                let mut left = self.rng.random::<f64>() * total;
                for &(token, p) in &kept {
                    left -= p;
                    if left < 0.0 {
                        return token;
                    }
                }
                kept[kept.len() - 1].0
            }
        }
    }
}

fn argmax(logits: &[f32]) -> u32 {
    assert!(!logits.is_empty(), "there is no token to choose");
    let best = (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
    best as u32
}

/// Every token with its (unnormalised) probability.
fn weights(logits: &[f32], temperature: f64) -> Vec<(u32, f64)> {
    let top = f64::from(logits[argmax(logits) as usize]);
    let weigh = |&l: &f32| ((f64::from(l) - top) / temperature).exp();
    logits.iter().map(weigh).enumerate().map(|(i, p)| (i as u32, p)).collect()
}

/// Tokens that survive top-k and top-p with their (unnormalised) probabilities, most likely first.
fn nucleus(logits: &[f32], temperature: f64, top_k: Option<usize>, top_p: f64) -> Vec<(u32, f64)> {
    let mut tokens = weights(logits, temperature);
    tokens.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    tokens.truncate(top_k.unwrap_or(tokens.len()).max(1));
    let total: f64 = tokens.iter().map(|&(_, p)| p).sum();
    let mut reached = 0.0;
    let kept = tokens.iter().take_while(|&&(_, p)| {
        let keep = reached < top_p * total;
        reached += p;
        keep
    });
    let kept = kept.count().max(1);
    tokens.truncate(kept);
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [0.0, 3.0, 1.0, 2.0, -4.0];

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(Sampler::new(Sampling::Greedy, 0).pick(&[0.0, 2.0, 2.0]), 1);
    }

    #[test]
    fn top_k_and_top_p_cut_where_they_say() {
        let ids = |kept: Vec<(u32, f64)>| kept.into_iter().map(|(id, _)| id).collect::<Vec<_>>();
        assert_eq!(ids(nucleus(&LOGITS, 1.0, Some(2), 1.0)), [1, 3]);
        // Softmax: 0.639, 0.235, 0.087, 0.032, …: 0.8 is reached by the second token, 0.9 by the third.
        assert_eq!(ids(nucleus(&LOGITS, 1.0, None, 0.8)), [1, 3]);
        assert_eq!(ids(nucleus(&LOGITS, 1.0, None, 0.9)), [1, 3, 2]);
        assert_eq!(ids(nucleus(&LOGITS, 1.0, None, 0.0)), [1]);
    }

    #[test]
    fn the_same_seed_draws_the_same_tokens_and_another_does_not() {
        let draw = |seed| {
            let sampling = Sampling::Random { temperature: 1.5, top_k: None, top_p: 1.0, seed };
            let mut sampler = Sampler::new(sampling, 0);
            (0..40).map(|_| sampler.pick(&LOGITS)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn draws_follow_the_softmax() {
        let sampling = Sampling::Random { temperature: 1.0, top_k: None, top_p: 1.0, seed: 1 };
        let mut sampler = Sampler::new(sampling, 0);
        let ones = (0..4000).filter(|_| sampler.pick(&LOGITS) == 1).count() as f64 / 4000.0;
        // σ of the frequency is sqrt(0.639 · 0.361 / 4000) = 0.0076.
        assert!((ones - 0.639).abs() < 0.03, "{ones}");
    }
}
