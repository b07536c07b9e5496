//! Cutting a token stream into windows to be scored.

use std::ops::Range;

/// How a token stream is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windowing {
    /// Consecutive windows that do not overlap, from the start; a rest shorter than a window is left out. Each window
    /// scores all its tokens but the first.
    Consecutive {
        /// Tokens a window.
        length: usize,
    },
    /// Windows that advance by `stride` and score only tokens that no window before them scored, so that each token
    /// but the very first is scored once, with up to `length − stride` tokens of context kept.
    Strided {
        /// Tokens a window.
        length: usize,
        /// Tokens between the starts of two windows; less than `length`.
        stride: usize,
    },
}

/// One window of a token stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The tokens that are fed.
    pub tokens: Range<usize>,
    /// The tokens that are scored, each given those fed before it.
    pub scored: Range<usize>,
}

impl Window {
    /// Which of some places in the window are scored by: those whose next token is.
    pub(super) fn predicting(&self, places: &Range<usize>) -> Range<usize> {
        let [first, end] = [self.scored.start, self.scored.end].map(|token| token - 1 - self.tokens.start);
        places.start.max(first)..places.end.min(end)
    }
}

impl Windowing {
    /// Tokens a window.
    pub fn length(self) -> usize {
        let (Windowing::Consecutive { length } | Windowing::Strided { length, .. }) = self;
        length
    }

    /// Tokens from the start that the first `windows` windows take in.
    pub fn reach(self, windows: usize) -> usize {
        match self {
            Windowing::Consecutive { length } => windows.saturating_mul(length),
            Windowing::Strided { length, stride } => {
                windows.saturating_sub(1).saturating_mul(stride).saturating_add(length)
            }
        }
    }

    /// The windows of a stream of `tokens` tokens, at most `limit`.
    ///
    /// # Panics
    /// If the length is below 2, or a stride is 0 or not shorter than its window: a window's first token would then have no
    /// context.
    pub fn windows(self, tokens: usize, limit: Option<usize>) -> Vec<Window> {
        let limit = limit.unwrap_or(usize::MAX);
        match self {
            Windowing::Consecutive { length } => {
                assert!(length >= 2, "a window scores nothing below two tokens");
                let starts = (0..tokens / length).map(|i| i * length);
                starts
                    .take(limit)
                    .map(|s| Window { tokens: s..s + length, scored: s + 1..s + length })
                    .collect()
            }
            Windowing::Strided { length, stride } => {
                assert!((1..length).contains(&stride), "0 < stride < length");
                let mut windows = Vec::new();
                let (mut start, mut reached) = (0, 1);
                while reached < tokens && windows.len() < limit {
                    let end = (start + length).min(tokens);
                    windows.push(Window { tokens: start..end, scored: reached..end });
                    reached = end;
                    start += stride;
                }
                windows
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn consecutive_windows_leave_out_the_rest() {
        let windows = Windowing::Consecutive { length: 4 }.windows(11, None);
        assert_eq!(windows, [Window { tokens: 0..4, scored: 1..4 }, Window { tokens: 4..8, scored: 5..8 }]);
        assert_eq!(Windowing::Consecutive { length: 4 }.windows(11, Some(1)).len(), 1);
        assert!(Windowing::Consecutive { length: 4 }.windows(3, None).is_empty());
    }

    proptest! {
        #[test]
        fn windows_are_those_of_the_tokens_that_they_reach(length in 2usize..40, cut in 0usize..40, windows in 1usize..9) {
            let strided = Windowing::Strided { length, stride: 1 + cut % (length - 1) };
            for windowing in [Windowing::Consecutive { length }, strided] {
                let reached = windowing.reach(windows);
                prop_assert_eq!(windowing.windows(reached, Some(windows)), windowing.windows(9 * reached, Some(windows)));
                prop_assert_eq!(windowing.windows(reached, None).len(), windows);
            }
        }

        #[test]
        fn a_stride_scores_every_token_but_the_first_once(tokens in 2usize..200, length in 2usize..40, cut in 0usize..40) {
            let stride = 1 + cut % (length - 1);
            let mut scored = vec![0; tokens];
            for window in (Windowing::Strided { length, stride }).windows(tokens, None) {
                prop_assert!(window.tokens.start < window.scored.start && window.scored.end == window.tokens.end);
                prop_assert!(window.tokens.len() <= length);
                window.scored.for_each(|t| scored[t] += 1);
            }
            prop_assert_eq!(scored[0], 0);
            prop_assert!(scored[1..].iter().all(|&n| n == 1));
        }
    }
}
