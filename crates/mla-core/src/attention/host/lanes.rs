//! The pointwise part of attention: softmax, rotation and sums, a row at a time.
//!
//! Sums run over [`LANES`] partial sums, so that the compiler may keep them in one register.

use crate::host::exp;

/// Partial results of a reduction.
const LANES: usize = 16;

/// The largest number of a row, `start` included.
#[inline(always)]
pub(super) fn largest(start: f32, row: &[f32]) -> f32 {
    let mut lanes = [start; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    rest.iter().chain(&lanes).fold(start, |largest, &x| if x > largest { x } else { largest })
}

/// `exp(x − shift)` in place of x, and the sum of it.
#[inline(always)]
pub(super) fn exponentials(row: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *x = exp(*x - shift);
            *lane += *x;
        }
    }
    for x in rest.iter_mut() {
        *x = exp(*x - shift);
    }
    rest.iter().chain(&lanes).sum()
}

/// `row · by`.
#[inline(always)]
pub(super) fn scale(row: &mut [f32], by: f32) {
    row.iter_mut().for_each(|x| *x *= by);
}

/// `row + more · by`.
#[inline(always)]
pub(super) fn add_scaled(row: &mut [f32], more: &[f32], by: f32) {
    row.iter_mut().zip(more).for_each(|(x, &y)| *x += y * by);
}

/// `cap · tanh(x / cap)`, with `tanh(y) = 1 − 2 / (exp(2y) + 1)`.
#[inline(always)]
pub(super) fn cap(row: &mut [f32], cap: f32) {
    let twice = 2.0 / cap;
    // Beyond ±20 the tangent is ±1 in f32.
    row.iter_mut().for_each(|x| *x = cap - 2.0 * cap / (exp((*x * twice).clamp(-40.0, 40.0)) + 1.0));
}

/// Rotates the pairs `(j, j + d_rotary/2)` of every head in a row, with `d_rotary / 2` cosines and sines.
#[inline(always)]
pub(super) fn rotate(row: &mut [f32], d_head: usize, cos: &[f32], sin: &[f32]) {
    for head in row.chunks_exact_mut(d_head) {
        let (a, b) = head.split_at_mut(cos.len());
        for (((a, b), &cos), &sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capped_score_is_that_of_the_tangent() {
        let mut row: Vec<f32> = (-60..60).map(|i| i as f32 * 0.37).chain([1e6, -1e6]).collect();
        let right: Vec<f64> = row.iter().map(|&x| 2.5 * (f64::from(x) / 2.5).tanh()).collect();
        cap(&mut row, 2.5);
        for (ours, right) in row.into_iter().zip(right) {
            assert!((f64::from(ours) - right).abs() < 1e-6 * 2.5, "{ours} {right}");
        }
    }

    #[test]
    fn rows_of_any_length_are_reduced_whole() {
        for length in [0, 1, 15, 16, 17, 100] {
            let row: Vec<f32> = (0..length).map(|i| -((i * 7 % 13) as f32)).collect();
            assert_eq!(largest(-50.0, &row), row.iter().copied().fold(-50.0, f32::max));
            let mut weights = row.clone();
            let sum = exponentials(&mut weights, 0.5);
            let right: f32 = row.iter().map(|x| (x - 0.5).exp()).sum();
            assert!((sum - right).abs() <= 1e-5 * right);
        }
    }
}
