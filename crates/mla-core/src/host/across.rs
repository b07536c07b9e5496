//! Scores of many rows with few tokens each: vectors go across the rows.
//!
//! Absorbed queries of all heads read the same latents. Along a row, as [`rows::scores`](super::rows::scores) goes, every score
//! ends with the sum of a vector's lanes, which for two hundred numbers takes as long as the products. Here a vector holds one number of
//! each row, and a number of a token meets all of them at once: nothing is left to be summed.
//!
//! A processor foresees what is read in order, not eight tokens read beside each other: memory and arithmetic would take turns. So
//! the tokens of the next tile are asked for while those of this one are multiplied.

use branches::prefetch_read_data;
use pulp::Simd;

use super::operand::Rows;

/// Tokens at a time, so that as many sums are under way.
const TOKENS: usize = 8;
/// The same where registers are few and there are two vectors of rows.
const FEWER: usize = 4;
/// The most lanes that there are.
const LANES: usize = 16;
/// Numbers of a line of the processor's cache.
const LINE: usize = 16;

/// Rows turned: `[width, vectors · lanes]`, those that are left over after the last vector filled by more than a quarter aside.
pub(crate) struct Across {
    turned: Vec<f32>,
    vectors: usize,
    lanes: usize,
    /// Rows that are turned.
    rows: usize,
}

impl Across {
    /// `None` where the rows do not fill half a vector.
    pub(crate) fn of(rows: Rows<'_>) -> Option<Self> {
        let lanes = pulp::Arch::new().dispatch(Lanes);
        let rest = rows.count % lanes;
        let vectors = rows.count / lanes + usize::from(rest > lanes / 4);
        if lanes > LANES || 2 * rows.count <= lanes {
            return None;
        }
        let taken = rows.count.min(vectors * lanes);
        let mut turned = vec![0.0; rows.width * vectors * lanes];
        for row in 0..taken {
            let places = turned.chunks_exact_mut(vectors * lanes);
            places.zip(rows.row(row)).for_each(|(place, &x)| place[row] = x);
        }
        Some(Self { turned, vectors, lanes, rows: taken })
    }

    /// Rows that [`scores`](Self::scores) takes; those behind them are the caller's.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// `q kᵀ`.
    ///
    /// # Shapes
    /// - `keys`: `[tokens, width]`, `next`: as many tokens, which will be read then, or none, `scores`: `[rows, tokens]`
    #[inline(always)]
    pub(crate) fn scores<S: Simd>(&self, simd: S, keys: Rows<'_>, next: Rows<'_>, scores: &mut [f32]) {
        let mut vector = 0;
        while vector < self.vectors {
            if vector + 2 > self.vectors {
                self.of_vectors::<S, 1, TOKENS>(simd, vector, keys, next, scores);
                vector += 1;
            } else if S::REGISTER_COUNT < 32 {
                self.of_vectors::<S, 2, FEWER>(simd, vector, keys, next, scores);
                vector += 2;
            } else {
                self.of_vectors::<S, 2, TOKENS>(simd, vector, keys, next, scores);
                vector += 2;
            }
        }
    }

    /// Those of `V` vectors of rows, `T` tokens at a time.
    #[inline(always)]
    fn of_vectors<S: Simd, const V: usize, const T: usize>(
        &self,
        simd: S,
        vector: usize,
        keys: Rows<'_>,
        next: Rows<'_>,
        scores: &mut [f32],
    ) {
        let mut token = 0;
        while token + T <= keys.count {
            self.block::<S, V, T>(simd, vector, keys, next, token, scores);
            token += T;
        }
        for token in token..keys.count {
            self.block::<S, V, 1>(simd, vector, keys, next, token, scores);
        }
    }

    #[inline(always)]
    fn block<S: Simd, const V: usize, const T: usize>(
        &self,
        simd: S,
        vector: usize,
        keys: Rows<'_>,
        next: Rows<'_>,
        token: usize,
        scores: &mut [f32],
    ) {
        let first = vector * self.lanes;
        let (mut tokens, mut soon): ([&[f32]; T], [&[f32]; T]) = ([&[]; T], [&[]; T]);
        for (j, (row, soon)) in tokens.iter_mut().zip(&mut soon).enumerate() {
            *row = &keys.row(token + j)[..keys.width];
            if vector == 0 && token + j < next.count {
                *soon = next.row(token + j);
            }
        }
        let (tokens, soon) = (tokens, soon);
        let mut sums = [[simd.splat_f32s(0.0); V]; T];
        let places = self.turned.chunks_exact(self.vectors * self.lanes);
        for (at, place) in (0..keys.width).zip(places) {
            // One line at a time: a burst of them would stand in line.
            if at % LINE < T
                && let Some(number) = soon[at % LINE].get(at - at % LINE)
            {
                prefetch_read_data::<_, 0>(number);
            }
            let rows = &S::as_simd_f32s(&place[first..first + V * self.lanes]).0[..V];
            for (sums, token) in sums.iter_mut().zip(tokens) {
                let number = simd.splat_f32s(token[at]);
                for (sum, rows) in sums.iter_mut().zip(rows) {
                    *sum = simd.mul_add_e_f32s(number, *rows, *sum);
                }
            }
        }
        let mut found = [[[0.0; LANES]; V]; T];
        for (found, sums) in found.iter_mut().zip(sums) {
            for (found, sum) in found.iter_mut().zip(sums) {
                S::as_mut_simd_f32s(found).0[0] = sum;
            }
        }
        for row in first..self.rows.min(first + V * self.lanes) {
            let (v, lane) = ((row - first) / self.lanes, (row - first) % self.lanes);
            let out = &mut scores[row * keys.count + token..][..T];
            for (out, found) in out.iter_mut().zip(&found) {
                *out = found[v][lane];
            }
        }
    }
}

/// How many numbers a vector has here.
struct Lanes;

impl pulp::WithSimd for Lanes {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        S::F32_LANES
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::tests::numbers;
    use super::*;

    struct Scores {
        rows: usize,
        tokens: usize,
        width: usize,
    }

    impl pulp::WithSimd for Scores {
        type Output = ();

        fn with_simd<S: Simd>(self, simd: S) {
            let Self { rows, tokens, width } = self;
            let (queries, tile) = (numbers(rows * width, 5), numbers(tokens * width, 7));
            let (q, k) = (Rows::new(&queries, rows, width), Rows::new(&tile, tokens, width));
            let Some(across) = Across::of(q) else {
                assert!(2 * rows <= S::F32_LANES || S::F32_LANES > LANES);
                return;
            };
            let left = rows - across.rows();
            assert!(4 * left <= S::F32_LANES, "{left} of {rows} rows are left over");
            let mut found = vec![7.0; rows * tokens];
            across.scores(simd, k, k, &mut found);
            for row in 0..rows {
                for token in 0..tokens {
                    let right: f32 = (0..width).map(|i| q.row(row)[i] * k.row(token)[i]).sum();
                    let right = if row < across.rows() { right } else { 7.0 };
                    assert!((found[row * tokens + token] - right).abs() < 1e-4, "{row}, {token}");
                }
            }
        }
    }

    #[test]
    fn scores_across_rows_are_scores() {
        for (rows, tokens, width) in [
            (1, 1, 1),
            (5, 3, 7),
            (8, 8, 16),
            (9, 20, 33),
            (12, 17, 192),
            (18, 9, 5),
            (32, 128, 8),
            (47, 11, 3),
        ] {
            pulp::Arch::new().dispatch(Scores { rows, tokens, width });
        }
    }
}
