//! What the head multiplies for the tokens of a window, a part of it at a time.

use std::ops::Range;

use burn::tensor::Tensor;
use mla_core::{Cache, Decoder, Padding};

use super::score::EvalError;

/// Tokens of a window that is one pass at most, and of a longer one that go through the cache at a time. Scores of every token with
/// every other cost more than a walk through the cache: two windows of 1,024 tokens of SmolLM2-135M took 12.2 s of two cores at
/// once and 9.3 in chunks, one of 8,192 took 139 and 57 (256 tokens a chunk: 64; 1,024: 62).
const CHUNK_TOKENS: usize = 512;

/// How hidden states are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// A short window at once, without a cache; a longer one a chunk of tokens at a time through a cache, which is walked in
    /// tiles.
    Full,
    /// Token by token through the cache, as generation does: what a served model's perplexity really is.
    ThroughCache,
}

impl Pass {
    /// Tokens that go through the model at a time, of a window of `length`.
    pub fn step_tokens(self, length: usize) -> usize {
        match self {
            Pass::ThroughCache => 1,
            Pass::Full => length.min(CHUNK_TOKENS),
        }
    }
}

/// A window on its way through a decoder.
#[derive(Debug)]
pub(super) struct Reading<'a> {
    decoder: &'a Decoder,
    window: &'a [u32],
    read: usize,
    /// Tokens of a part.
    part_tokens: usize,
    /// Tokens of a pass; a part is made of whole ones.
    step_tokens: usize,
    /// `None` where the window is one pass.
    cache: Option<Cache>,
}

impl<'a> Reading<'a> {
    /// The parts of a window depend on its length alone, so that two decoders come to them together.
    pub(super) fn new(decoder: &'a Decoder, window: &'a [u32], pass: Pass) -> Self {
        let whole = Pass::Full.step_tokens(window.len());
        Self::in_steps(decoder, window, whole, pass.step_tokens(window.len()))
    }

    fn in_steps(decoder: &'a Decoder, window: &'a [u32], part_tokens: usize, step_tokens: usize) -> Self {
        let at_once = step_tokens == window.len();
        let cache = (!at_once).then(|| decoder.cache(Padding::none(1), window.len()));
        Self { decoder, window, read: 0, part_tokens, step_tokens, cache }
    }

    /// The next part: its places in the window, and `[1, places, d_model]`. `None` at the end.
    ///
    /// # Errors
    /// When the cache refuses it.
    pub(super) fn next_part(&mut self) -> Result<Option<(Range<usize>, Tensor<3>)>, EvalError> {
        let places = self.read..self.window.len().min(self.read + self.part_tokens);
        if places.is_empty() {
            return Ok(None);
        }
        self.read = places.end;
        let part = &self.window[places.clone()];
        let hidden = match &mut self.cache {
            None => self.decoder.hidden(&[part.to_vec()], &Padding::none(1)),
            Some(cache) => {
                let steps = part.chunks(self.step_tokens);
                let hidden: Result<Vec<_>, _> =
                    steps.map(|step| self.decoder.hidden_cached(&[step.to_vec()], cache)).collect();
                Tensor::cat(hidden?, 1)
            }
        };
        Ok(Some((places, hidden)))
    }
}

#[cfg(test)]
mod tests {
    use mla_core::CacheDtype;

    use super::super::toy::{Kept, text, toy};
    use super::*;

    /// All parts of a window, joined: `[1, t, d_model]` on the host.
    fn whole(mut reading: Reading<'_>) -> Vec<f32> {
        let mut all = Vec::new();
        let mut end = 0;
        while let Some((places, hidden)) = reading.next_part().expect("the cache has room") {
            assert_eq!((places.start, hidden.dims()[1]), (end, places.len()));
            end = places.end;
            all.extend(hidden.try_into_vec_as::<f32>().expect("floats"));
        }
        assert_eq!(end, reading.window.len());
        all
    }

    /// The mean and the largest distance between two.
    fn distance(a: &[f32], b: &[f32]) -> (f32, f32) {
        let gaps = || a.iter().zip(b).map(|(a, b)| (a - b).abs());
        (gaps().sum::<f32>() / a.len() as f32, gaps().fold(0.0, f32::max))
    }

    #[test]
    fn a_window_read_in_chunks_is_the_window_read_at_once() {
        let window = text(100, 1);
        for kept in [Kept::Dense, Kept::Latents(CacheDtype::F32)] {
            let decoder = toy(kept, 3);
            let at_once = whole(Reading::in_steps(&decoder, &window, 100, 100));
            for (part, step) in [(100, 1), (7, 7), (32, 32), (64, 8), (99, 99)] {
                let in_parts = whole(Reading::in_steps(&decoder, &window, part, step));
                let (_, worst) = distance(&at_once, &in_parts);
                // Normed numbers, around 1, of sums of no more than a hundred terms, two layers deep.
                assert!(worst < 1e-4, "{kept:?}, {part} by {step}: {worst}");
            }
        }
    }

    #[test]
    fn a_window_read_in_chunks_sees_what_a_rounded_cache_keeps_as_one_read_at_once_does() {
        let window = text(100, 1);
        let exact = toy(Kept::Latents(CacheDtype::F32), 3);
        let exact = whole(Reading::in_steps(&exact, &window, 100, 100));
        for dtype in [CacheDtype::Int8, CacheDtype::Int4, CacheDtype::Int3] {
            let decoder = toy(Kept::Latents(dtype), 3);
            let at_once = whole(Reading::in_steps(&decoder, &window, 100, 100));
            let in_parts = whole(Reading::in_steps(&decoder, &window, 32, 32));
            let (rounding, _) = distance(&exact, &at_once);
            let (parts, _) = distance(&at_once, &in_parts);
            // A number at the edge of two steps may fall to either side; all others are kept as the same.
            assert!(rounding > 1e-4 && parts < rounding / 10.0, "{dtype:?}: {parts} beside {rounding}");
        }
    }

    #[test]
    fn only_long_windows_are_read_in_chunks() {
        for (length, step) in [(2, 2), (CHUNK_TOKENS, CHUNK_TOKENS), (CHUNK_TOKENS + 1, CHUNK_TOKENS)] {
            assert_eq!((Pass::Full.step_tokens(length), Pass::ThroughCache.step_tokens(length)), (step, 1));
        }
    }
}
