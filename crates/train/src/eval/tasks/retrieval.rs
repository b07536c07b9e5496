//! Lines of keys and values, and one of the keys asked again: look-up in the context.

use mla_core::Decoder;
use rand::RngExt;

use super::super::score::EvalError;
use super::continuation::{continuations, share};
use super::draw::{choose, rng};

/// Lines to look up in.
#[derive(Clone, Debug)]
pub struct Lookups {
    /// What every prompt begins with; may be empty.
    pub opening: Vec<u32>,
    /// Lines of a key and its value; no key twice.
    pub lines: Vec<Vec<u32>>,
    /// What asks for the value of each line.
    pub questions: Vec<Vec<u32>>,
    /// How many lines a prompt has.
    pub counts: Vec<usize>,
    /// Prompts of each number of lines.
    pub trials: usize,
    /// Tokens of an answer.
    pub new_tokens: usize,
    /// Fixes which lines a prompt has, and which is asked for.
    pub seed: u64,
}

/// A prompt, and the line whose value it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Index of the line.
    pub line: usize,
    /// Its tokens.
    pub prompt: Vec<u32>,
}

impl Lookups {
    /// The prompts of one number of lines.
    ///
    /// # Panics
    /// If there are fewer lines, or none is asked for.
    pub fn prompts(&self, count: usize) -> Vec<Asked> {
        let draw = |trial| {
            let mut rng = rng(self.seed, trial);
            let chosen = choose(self.lines.len(), count, &mut rng);
            let line = chosen[rng.random_range(0..count)];
            let mut prompt = self.opening.clone();
            chosen.iter().for_each(|&line| prompt.extend(&self.lines[line]));
            prompt.extend(&self.questions[line]);
            Asked { line, prompt }
        };
        (0..self.trials).map(draw).collect()
    }

    /// The share of values that a model gives, for each number of lines; `right` says of a line's continuation whether it is the
    /// value.
    ///
    /// # Errors
    /// When a prompt exceeds the model's context, or its logits are no numbers.
    ///
    /// # Panics
    /// As [`prompts`](Self::prompts).
    pub fn ask(
        &self,
        decoder: &Decoder,
        right: &dyn Fn(usize, &[u32]) -> bool,
        on_done: &mut dyn FnMut(usize),
    ) -> Result<Vec<f64>, EvalError> {
        let max_positions = decoder.config().max_positions;
        let mut shares = Vec::with_capacity(self.counts.len());
        for (index, &count) in self.counts.iter().enumerate() {
            let (lines, prompts): (Vec<_>, Vec<_>) =
                self.prompts(count).into_iter().map(|asked| (asked.line, asked.prompt)).unzip();
            let length = prompts.iter().map(Vec::len).max().unwrap_or(0) + self.new_tokens;
            if length > max_positions {
                return Err(EvalError::TaskLength { length, max_positions });
            }
            let mut on_group = |done| on_done(index * self.trials + done);
            let given = continuations(decoder, &prompts, self.new_tokens, &mut on_group)?;
            shares.push(share(lines.into_iter().zip(&given).map(|(line, tokens)| right(line, tokens))));
        }
        Ok(shares)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::toy::{CONTEXT, Kept, toy};
    use super::*;

    fn lookups() -> Lookups {
        Lookups {
            opening: vec![0],
            lines: (10..40).map(|key| vec![key, 1, key, 2]).collect(),
            questions: (10..40).map(|key| vec![key, 1]).collect(),
            counts: vec![1, 4, 30],
            trials: 6,
            new_tokens: 2,
            seed: 3,
        }
    }

    #[test]
    fn a_prompt_has_its_lines_once_each_and_asks_for_one_of_them() {
        for count in [1, 4, 30] {
            for Asked { line, prompt } in lookups().prompts(count) {
                assert_eq!(prompt.len(), 1 + 4 * count + 2);
                let keys: Vec<u32> = prompt[1..prompt.len() - 2].chunks(4).map(|line| line[0]).collect();
                let asked = line as u32 + 10;
                assert!(keys.contains(&asked) && prompt.ends_with(&[asked, 1]));
                let once: std::collections::BTreeSet<_> = keys.iter().collect();
                assert_eq!(once.len(), count);
            }
        }
        assert_eq!(lookups().prompts(4), lookups().prompts(4));
        assert_ne!(lookups().prompts(4), Lookups { seed: 4, ..lookups() }.prompts(4));
    }

    #[test]
    fn the_share_is_that_of_the_answers_that_are_right() {
        let decoder = toy(Kept::Dense, 5);
        let mut heard = Vec::new();
        let all =
            lookups().ask(&decoder, &|_, _| true, &mut |done| heard.push(done)).expect("it is measured");
        assert_eq!((all, heard), (vec![1.0; 3], vec![6, 12, 18]));
        let chosen: Vec<usize> = lookups().prompts(4).into_iter().map(|asked| asked.line).collect();
        let even = chosen.iter().filter(|line| line.is_multiple_of(2)).count();
        let found = lookups().ask(&decoder, &|line, _| line.is_multiple_of(2), &mut |_| {});
        assert_eq!(found.expect("it is measured")[1], even as f64 / 6.0);
        let long =
            Lookups { lines: vec![vec![1; CONTEXT]], questions: vec![vec![1]], counts: vec![1], ..lookups() };
        let refused = long.ask(&decoder, &|_, _| true, &mut |_| {});
        assert_eq!(refused, Err(EvalError::TaskLength { length: CONTEXT + 4, max_positions: CONTEXT }));
    }
}
