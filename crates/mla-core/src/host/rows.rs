//! Products of a few rows with a tile, read as it lies.
//!
//! A general product packs its operands first, which pays when they are used often. A decoding step has a row a query head
//! and reads a tile once or twice: here four rows at a time meet four tokens (scores, sums along the row) or two vectors of
//! columns (weighted sums), held in registers. Vectors never pass through a closure: a closure is compiled for the oldest
//! processor there is, and a call each.

use pulp::Simd;

use super::operand::Rows;

/// Rows, and tokens, of a block.
const BLOCK: usize = 4;

/// `q kᵀ`.
///
/// # Shapes
/// - `queries`: `[rows, n]`, `keys`: `[tokens, n]`, `scores`: row-major `[rows, tokens]`
#[inline(always)]
pub(super) fn scores<S: Simd>(simd: S, queries: Rows<'_>, keys: Rows<'_>, scores: &mut [f32]) {
    let rows = queries.count;
    let mut row = 0;
    while row < rows {
        match rows - row {
            1 => score_rows::<S, 1>(simd, queries, keys, row, scores),
            2 => score_rows::<S, 2>(simd, queries, keys, row, scores),
            3 => score_rows::<S, 3>(simd, queries, keys, row, scores),
            _ => score_rows::<S, BLOCK>(simd, queries, keys, row, scores),
        }
        row += BLOCK;
    }
}

/// `out + weights · values`.
///
/// # Shapes
/// - `weights`: row-major `[rows, tokens]`, `values`: `[tokens, width]`, `out`: row-major `[rows, width]`
#[inline(always)]
pub(super) fn mix<S: Simd>(simd: S, weights: &[f32], values: Rows<'_>, out: &mut [f32]) {
    let rows = weights.len() / values.count.max(1);
    let mut row = 0;
    while row < rows {
        match rows - row {
            1 => mix_rows::<S, 1>(simd, weights, values, row, out),
            2 => mix_rows::<S, 2>(simd, weights, values, row, out),
            3 => mix_rows::<S, 3>(simd, weights, values, row, out),
            _ => mix_rows::<S, BLOCK>(simd, weights, values, row, out),
        }
        row += BLOCK;
    }
}

#[inline(always)]
fn score_rows<S: Simd, const Q: usize>(
    simd: S,
    queries: Rows<'_>,
    keys: Rows<'_>,
    row: usize,
    scores: &mut [f32],
) {
    let tokens = keys.count;
    let mut block: [&[f32]; Q] = [&[]; Q];
    for (i, query) in block.iter_mut().enumerate() {
        *query = queries.row(row + i);
    }
    let mut token = 0;
    while token + BLOCK <= tokens {
        let mut four: [&[f32]; BLOCK] = [&[]; BLOCK];
        for (j, key) in four.iter_mut().enumerate() {
            *key = keys.row(token + j);
        }
        let dots = dots(simd, block, four);
        for (i, dots) in dots.iter().enumerate() {
            let at = (row + i) * tokens + token;
            scores[at..at + BLOCK].copy_from_slice(dots);
        }
        token += BLOCK;
    }
    for token in token..tokens {
        for (i, [dot]) in dots(simd, block, [keys.row(token)]).into_iter().enumerate() {
            scores[(row + i) * tokens + token] = dot;
        }
    }
}

/// All products of some rows with some others.
#[inline(always)]
fn dots<S: Simd, const Q: usize, const T: usize>(simd: S, a: [&[f32]; Q], b: [&[f32]; T]) -> [[f32; T]; Q] {
    let mut a_parts: [(&[S::f32s], &[f32]); Q] = [(&[], &[]); Q];
    let mut b_parts: [(&[S::f32s], &[f32]); T] = [(&[], &[]); T];
    for (parts, row) in a_parts.iter_mut().zip(a) {
        *parts = S::as_simd_f32s(row);
    }
    for (parts, row) in b_parts.iter_mut().zip(b) {
        *parts = S::as_simd_f32s(row);
    }
    let mut sums = [[simd.splat_f32s(0.0); T]; Q];
    for at in 0..b_parts[0].0.len() {
        for i in 0..Q {
            let x = a_parts[i].0[at];
            for j in 0..T {
                sums[i][j] = simd.mul_add_e_f32s(x, b_parts[j].0[at], sums[i][j]);
            }
        }
    }
    let mut dots = [[0.0; T]; Q];
    for i in 0..Q {
        for j in 0..T {
            let mut dot = simd.reduce_sum_f32s(sums[i][j]);
            for (x, y) in a_parts[i].1.iter().zip(b_parts[j].1) {
                dot += x * y;
            }
            dots[i][j] = dot;
        }
    }
    dots
}

#[inline(always)]
fn mix_rows<S: Simd, const Q: usize>(
    simd: S,
    weights: &[f32],
    values: Rows<'_>,
    row: usize,
    out: &mut [f32],
) {
    let (tokens, width) = (values.count, values.width);
    let mut block: [&[f32]; Q] = [&[]; Q];
    for (i, row) in weights[row * tokens..].chunks_exact(tokens).take(Q).enumerate() {
        block[i] = row;
    }
    let weights = block;
    let out = &mut out[row * width..(row + Q) * width];
    let lanes = S::F32_LANES;
    let mut column = 0;
    while column + 2 * lanes <= width {
        mix_columns::<S, Q, 2>(simd, weights, values, column, out);
        column += 2 * lanes;
    }
    while column + lanes <= width {
        mix_columns::<S, Q, 1>(simd, weights, values, column, out);
        column += lanes;
    }
    for column in column..width {
        for (i, weights) in weights.iter().enumerate() {
            let sum: f32 = (0..tokens).map(|token| weights[token] * values.row(token)[column]).sum();
            out[i * width + column] += sum;
        }
    }
}

/// `V` vectors of columns.
#[inline(always)]
fn mix_columns<S: Simd, const Q: usize, const V: usize>(
    simd: S,
    weights: [&[f32]; Q],
    values: Rows<'_>,
    column: usize,
    out: &mut [f32],
) {
    let (width, span) = (values.width, V * S::F32_LANES);
    let mut sums = [[simd.splat_f32s(0.0); V]; Q];
    for (sums, out) in sums.iter_mut().zip(out.chunks_exact(width)) {
        sums.copy_from_slice(S::as_simd_f32s(&out[column..column + span]).0);
    }
    for token in 0..values.count {
        let vectors = S::as_simd_f32s(&values.row(token)[column..column + span]).0;
        for (sums, weights) in sums.iter_mut().zip(weights) {
            let weight = simd.splat_f32s(weights[token]);
            for (sum, vector) in sums.iter_mut().zip(vectors) {
                *sum = simd.mul_add_e_f32s(weight, *vector, *sum);
            }
        }
    }
    for (sums, out) in sums.iter().zip(out.chunks_exact_mut(width)) {
        S::as_mut_simd_f32s(&mut out[column..column + span]).0.copy_from_slice(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_a_few_rows_are_products() {
        struct Products {
            rows: usize,
            tokens: usize,
            width: usize,
        }
        impl pulp::WithSimd for Products {
            type Output = ();
            fn with_simd<S: Simd>(self, simd: S) {
                let Self { rows, tokens, width } = self;
                let numbers = |count: usize, step: usize| -> Vec<f32> {
                    (0..count).map(|i| (i * step % 17) as f32 / 8.0 - 1.0).collect()
                };
                let (queries, tile) = (numbers(rows * width, 5), numbers(tokens * width, 7));
                let matrix = |data, rows| Rows::new(data, rows, width);
                let (q, k) = (matrix(&queries[..], rows), matrix(&tile[..], tokens));
                let mut found = vec![0.0; rows * tokens];
                scores(simd, q, k, &mut found);
                let mut sums = numbers(rows * width, 3);
                let before = sums.clone();
                mix(simd, &found, k, &mut sums);
                for row in 0..rows {
                    for token in 0..tokens {
                        let right: f32 = (0..width).map(|i| q.row(row)[i] * k.row(token)[i]).sum();
                        assert!((found[row * tokens + token] - right).abs() < 1e-4);
                    }
                    for column in 0..width {
                        let at = row * width + column;
                        let more: f32 = (0..tokens).map(|t| found[row * tokens + t] * k.row(t)[column]).sum();
                        assert!((sums[at] - before[at] - more).abs() < 1e-3);
                    }
                }
            }
        }
        for (rows, tokens, width) in
            [(1, 1, 1), (1, 9, 64), (3, 4, 70), (4, 6, 16), (7, 5, 33), (16, 128, 48)]
        {
            pulp::Arch::new().dispatch(Products { rows, tokens, width });
        }
    }
}
