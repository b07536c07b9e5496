//! A pass key hidden in filler text, and asked for at the end (Mohtashami & Jaggi 2023, §4.2).

use mla_core::Decoder;
use rand::RngExt;

use super::super::score::EvalError;
use super::continuation::{continuations, share};
use super::draw::rng;

/// What surrounds a pass key.
#[derive(Clone, Debug)]
pub struct Haystack {
    /// What every prompt begins with.
    pub opening: Vec<u32>,
    /// Text to hide the key in.
    pub filler: Vec<u32>,
    /// Places in the filler at which a sentence begins, in order.
    pub breaks: Vec<usize>,
    /// What every prompt ends with.
    pub question: Vec<u32>,
}

impl Haystack {
    /// A prompt of exactly `length` tokens: `needle` stands at the break nearest to `depth` (0 to 1) of the filler, which is
    /// taken from `start` on.
    ///
    /// # Errors
    /// When the parts do not leave room for filler, or the filler ends early.
    pub fn prompt(
        &self,
        needle: &[u32],
        length: usize,
        depth: f64,
        start: usize,
    ) -> Result<Vec<u32>, EvalError> {
        let taken = self.filler_tokens(needle, length)?;
        let end = start + taken;
        if end > self.filler.len() {
            return Err(EvalError::TaskText { tokens: self.filler.len(), needed: taken });
        }
        let wanted = start as f64 + depth * taken as f64;
        let off = |place: usize| (place as f64 - wanted).abs();
        let inside = self.breaks.iter().copied().filter(|place| (start..=end).contains(place));
        let place = inside.chain([start, end]).min_by(|&a, &b| off(a).total_cmp(&off(b))).unwrap_or(start);
        let (before, after) = (&self.filler[start..place], &self.filler[place..end]);
        Ok([&self.opening, before, needle, after, &self.question].concat())
    }

    /// Tokens of filler that a prompt takes.
    fn filler_tokens(&self, needle: &[u32], length: usize) -> Result<usize, EvalError> {
        let least = self.opening.len() + needle.len() + self.question.len();
        match length.checked_sub(least) {
            Some(taken) if taken > 0 => Ok(taken),
            _ => Err(EvalError::TaskRoom { length, least: least + 1 }),
        }
    }

    /// Where a trial's filler begins: at one of the breaks that leave `taken` tokens, or at the start.
    fn start(&self, taken: usize, trial: usize, seed: u64) -> usize {
        let last = self.filler.len().saturating_sub(taken);
        let possible = self.breaks.partition_point(|&place| place <= last);
        match possible {
            0 => 0,
            _ => self.breaks[rng(seed, trial).random_range(0..possible)],
        }
    }
}

/// Pass keys at several lengths and depths.
#[derive(Clone, Debug)]
pub struct Passkeys {
    /// What surrounds them.
    pub haystack: Haystack,
    /// A sentence with a key for each trial.
    pub needles: Vec<Vec<u32>>,
    /// Tokens of context, prompt and answer together.
    pub lengths: Vec<usize>,
    /// Where the key stands in the filler, 0 to 1.
    pub depths: Vec<f64>,
    /// Tokens of an answer.
    pub new_tokens: usize,
    /// Fixes where each trial's filler begins.
    pub seed: u64,
}

impl Passkeys {
    /// A prompt for each length, depth and trial, the last running fastest.
    ///
    /// # Errors
    /// As [`Haystack::prompt`].
    pub fn prompts(&self) -> Result<Vec<Vec<u32>>, EvalError> {
        let mut prompts = Vec::new();
        for &length in &self.lengths {
            let prompt_tokens = length.saturating_sub(self.new_tokens);
            for &depth in &self.depths {
                for (trial, needle) in self.needles.iter().enumerate() {
                    let taken = self.haystack.filler_tokens(needle, prompt_tokens)?;
                    let start = self.haystack.start(taken, trial, self.seed);
                    prompts.push(self.haystack.prompt(needle, prompt_tokens, depth, start)?);
                }
            }
        }
        Ok(prompts)
    }

    /// Asks a model for every key; `right` says of a trial's continuation whether the key is in it.
    ///
    /// # Errors
    /// As [`Haystack::prompt`], and when a length exceeds the model's context or its logits are no numbers.
    pub fn ask(
        &self,
        decoder: &Decoder,
        right: &dyn Fn(usize, &[u32]) -> bool,
        on_done: &mut dyn FnMut(usize),
    ) -> Result<Found, EvalError> {
        let max_positions = decoder.config().max_positions;
        if let Some(&length) = self.lengths.iter().find(|&&length| length > max_positions) {
            return Err(EvalError::TaskLength { length, max_positions });
        }
        let given = continuations(decoder, &self.prompts()?, self.new_tokens, on_done)?;
        let trials = self.needles.len();
        let hits = given.iter().enumerate().map(|(i, tokens)| right(i % trials, tokens)).collect();
        Ok(Found { hits, depths: self.depths.len(), trials })
    }
}

/// Which keys a model found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// In the order of [`Passkeys::prompts`].
    hits: Vec<bool>,
    depths: usize,
    trials: usize,
}

impl Found {
    /// The share found at a length and a depth, by their indices.
    pub fn at(&self, length: usize, depth: usize) -> f64 {
        let first = (length * self.depths + depth) * self.trials;
        share(self.hits[first..first + self.trials].iter().copied())
    }

    /// The share found at a length.
    pub fn of_length(&self, length: usize) -> f64 {
        share(self.length(length).iter().copied())
    }

    /// Of what the donor finds at a length, the share that the model finds too; `None` where the donor finds nothing.
    pub fn of_the_donors(&self, donor: &Found, length: usize) -> Option<f64> {
        let both = self.length(length).iter().zip(donor.length(length));
        let kept: Vec<bool> = both.filter(|&(_, &donors)| donors).map(|(&ours, _)| ours).collect();
        (!kept.is_empty()).then(|| share(kept))
    }

    /// The index of the longest length up to which, there and at all before it, the model finds at least `least` of what the
    /// donor finds. `None` where it does not at the first.
    pub fn holds_to(&self, donor: &Found, least: f64) -> Option<usize> {
        let lengths = self.hits.len() / (self.depths * self.trials);
        (0..lengths)
            .take_while(|&length| self.of_the_donors(donor, length).is_some_and(|share| share >= least))
            .last()
    }

    fn length(&self, length: usize) -> &[bool] {
        let cases = self.depths * self.trials;
        &self.hits[length * cases..(length + 1) * cases]
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::toy::{CONTEXT, Kept, text, toy};
    use super::*;

    fn haystack() -> Haystack {
        let filler: Vec<u32> = (100..400).collect();
        let breaks = (0..300).step_by(7).collect();
        Haystack { opening: vec![1, 2], filler, breaks, question: vec![3, 4, 5] }
    }

    #[test]
    fn a_needle_stands_at_the_break_nearest_to_its_depth() {
        let needle = [900, 901, 902];
        for start in [0, 14, 70] {
            for depth in [0.0, 0.1, 0.5, 0.77, 1.0] {
                let prompt = haystack().prompt(&needle, 208, depth, start).expect("there is room");
                assert_eq!(prompt.len(), 208);
                let at = prompt.iter().position(|&token| token == 900).expect("the needle is there");
                assert_eq!(&prompt[at..at + 3], &needle);
                let before = at - 2;
                // Breaks are seven tokens apart, and two hundred tokens of filler end between two of them.
                assert!((before as f64 - depth * 200.0).abs() <= 3.5, "{start} {depth}: {before}");
                assert!(before % 7 == 0 || before == 200, "{start} {depth}: {before}");
                // All else is the filler as it stands.
                let filler: Vec<u32> = [&prompt[2..at], &prompt[at + 3..205]].concat();
                assert_eq!(filler, (100 + start as u32..300 + start as u32).collect::<Vec<_>>());
                assert_eq!((&prompt[..2], &prompt[205..]), (&[1, 2][..], &[3, 4, 5][..]));
            }
        }
    }

    #[test]
    fn a_prompt_without_room_or_text_for_it_is_refused() {
        let refused = |length| haystack().prompt(&[900], length, 0.5, 0).expect_err("it cannot be made");
        assert_eq!(refused(6), EvalError::TaskRoom { length: 6, least: 7 });
        assert_eq!(refused(307), EvalError::TaskText { tokens: 300, needed: 301 });
        assert!(
            haystack().prompt(&[900], 7, 0.5, 0).is_ok() && haystack().prompt(&[900], 306, 0.5, 0).is_ok()
        );
    }

    fn passkeys() -> Passkeys {
        let filler = text(400, 2);
        Passkeys {
            haystack: Haystack {
                opening: vec![0],
                filler,
                breaks: (0..400).step_by(5).collect(),
                question: vec![7, 8],
            },
            needles: vec![vec![10, 11], vec![12, 13], vec![14, 15]],
            lengths: vec![40, 80, CONTEXT],
            depths: vec![0.1, 0.9],
            new_tokens: 3,
            seed: 4,
        }
    }

    #[test]
    fn a_model_finds_all_that_its_donor_finds_when_it_is_its_donor() {
        let decoder = toy(Kept::Dense, 5);
        let right = |trial: usize, tokens: &[u32]| (tokens[0] as usize + trial).is_multiple_of(2);
        let mut heard = 0;
        let found = passkeys().ask(&decoder, &right, &mut |done| heard = done).expect("it is measured");
        assert_eq!(heard, 18);
        let again = passkeys().ask(&decoder, &right, &mut |_| {}).expect("it is measured");
        assert_eq!(found, again);
        for length in 0..3 {
            assert_ne!(found.of_the_donors(&again, length), Some(0.0));
            assert!(found.of_the_donors(&again, length).is_none_or(|share| share == 1.0));
        }
        let (all, none) =
            (Found { hits: vec![true; 18], ..found.clone() }, Found { hits: vec![false; 18], ..found });
        assert_eq!(
            (all.holds_to(&all, 0.95), none.holds_to(&all, 0.95), all.holds_to(&none, 0.95)),
            (Some(2), None, None)
        );
        assert_eq!((all.at(2, 1), none.of_length(0)), (1.0, 0.0));
    }

    #[test]
    fn a_share_of_what_the_donor_finds_counts_nothing_else() {
        let found =
            |hits: &[u8]| Found { hits: hits.iter().map(|&hit| hit == 1).collect(), depths: 2, trials: 2 };
        let (model, donor) = (found(&[1, 0, 1, 1, 1, 1, 0, 0]), found(&[1, 1, 0, 0, 0, 1, 0, 0]));
        assert_eq!((model.of_the_donors(&donor, 0), model.of_the_donors(&donor, 1)), (Some(0.5), Some(1.0)));
        assert_eq!((model.at(0, 0), model.at(0, 1), model.of_length(0)), (0.5, 1.0, 0.75));
        // The first length holds half only; behind it a longer one does not count.
        assert_eq!((model.holds_to(&donor, 0.95), model.holds_to(&donor, 0.5)), (None, Some(1)));
    }

    #[test]
    fn trials_differ_in_their_filler_and_follow_the_seed() {
        let prompts = passkeys().prompts().expect("they are made");
        assert_eq!(
            prompts.iter().map(Vec::len).collect::<Vec<_>>(),
            [[37; 6], [77; 6], [CONTEXT - 3; 6]].concat()
        );
        assert_ne!(prompts[0][3..], prompts[1][3..]);
        let other = Passkeys { seed: 5, ..passkeys() }.prompts().expect("they are made");
        assert!(prompts == passkeys().prompts().expect("they are made") && prompts != other);
        let long = Passkeys { lengths: vec![CONTEXT + 1], ..passkeys() };
        let refused = long.ask(&toy(Kept::Dense, 5), &|_, _| true, &mut |_| {}).expect_err("it is too long");
        assert_eq!(refused, EvalError::TaskLength { length: CONTEXT + 1, max_positions: CONTEXT });
    }
}
