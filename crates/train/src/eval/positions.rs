//! Measures by position in the window: whether a loss holds as the context grows.

use std::ops::Range;

/// Positions of the first bucket; each after it has as many as all before it together.
const FIRST: usize = 64;

/// Sums of `N` measures of a token, by the token's position in its window.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Buckets<const N: usize> {
    /// Tokens a window.
    length: usize,
    sums: Vec<Means<N>>,
}

/// Means of `N` measures over the tokens at some positions.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Means<const N: usize> {
    /// Positions in the window, the first token at 0.
    pub(super) positions: Range<usize>,
    /// Tokens that were measured.
    pub(super) tokens: usize,
    /// The means, or the sums as long as they are added to.
    pub(super) of: [f64; N],
}

impl<const N: usize> Means<N> {
    fn divided(&self) -> Self {
        Self { of: self.of.map(|sum| sum / self.tokens as f64), ..self.clone() }
    }
}

impl<const N: usize> Buckets<N> {
    /// Nothing yet, for windows of `length` tokens.
    pub(super) fn new(length: usize) -> Self {
        Self { length, sums: Vec::new() }
    }

    /// Takes in the measures of the token at a position, which is not the first: nothing is known of that.
    pub(super) fn add(&mut self, position: usize, measures: [f64; N]) {
        let bucket = bucket(position);
        while self.sums.len() <= bucket {
            let positions = positions(self.sums.len(), self.length);
            self.sums.push(Means { positions, tokens: 0, of: [0.0; N] });
        }
        let sums = &mut self.sums[bucket];
        sums.tokens += 1;
        sums.of.iter_mut().zip(measures).for_each(|(sum, measure)| *sum += measure);
    }

    /// Over all positions.
    pub(super) fn whole(&self) -> Means<N> {
        let mut whole = Means { positions: 1..self.length, tokens: 0, of: [0.0; N] };
        for bucket in &self.sums {
            whole.tokens += bucket.tokens;
            whole.of.iter_mut().zip(bucket.of).for_each(|(sum, of)| *sum += of);
        }
        whole.divided()
    }

    /// Bucket by bucket, without those that no token fell into.
    pub(super) fn means(&self) -> impl Iterator<Item = Means<N>> {
        self.sums.iter().filter(|bucket| bucket.tokens > 0).map(Means::divided)
    }
}

/// The bucket of a position.
fn bucket(position: usize) -> usize {
    (position / FIRST).checked_ilog2().map_or(0, |doublings| doublings as usize + 1)
}

/// The positions of a bucket: `1..64`, `64..128`, `128..256`, …, as far as the window goes.
fn positions(bucket: usize, length: usize) -> Range<usize> {
    let end = length.min(FIRST << bucket);
    match bucket {
        0 => 1..end,
        _ => FIRST << (bucket - 1)..end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_double_and_the_last_ends_with_the_window() {
        let mut buckets = Buckets::<1>::new(300);
        (1..300).for_each(|position| buckets.add(position, [position as f64]));
        let found: Vec<_> =
            buckets.means().map(|bucket| (bucket.positions, bucket.tokens, bucket.of[0])).collect();
        assert_eq!(
            found,
            [(1..64, 63, 32.0), (64..128, 64, 95.5), (128..256, 128, 191.5), (256..300, 44, 277.5)]
        );
    }

    proptest! {
        #[test]
        fn the_whole_is_what_its_buckets_sum_up_to(
            measured in proptest::collection::vec((1usize..5000, -9.0..9.0f64), 1..200)
        ) {
            let mut buckets = Buckets::<2>::new(5000);
            for &(position, measure) in &measured {
                buckets.add(position, [measure, 1.0]);
            }
            let whole = buckets.whole();
            let tokens: usize = buckets.means().map(|bucket| bucket.tokens).sum();
            prop_assert_eq!((whole.tokens, tokens, whole.of[1]), (measured.len(), measured.len(), 1.0));
            let mean = measured.iter().map(|(_, measure)| measure).sum::<f64>() / measured.len() as f64;
            let of_buckets: f64 =
                buckets.means().map(|bucket| bucket.of[0] * bucket.tokens as f64).sum::<f64>() / tokens as f64;
            // Two hundred sums of numbers below 9, each rounded twice at the most.
            let bound = 400.0 * 9.0 * f64::EPSILON;
            prop_assert!((whole.of[0] - mean).abs() < bound && (of_buckets - mean).abs() < bound);
            for (position, _) in measured {
                prop_assert!(buckets.means().any(|bucket| bucket.positions.contains(&position)));
            }
        }
    }
}
