//! Products of a few rows with a tile, read as it lies.
//!
//! A general product packs its operands first, which pays when they are used often: with more than [`FEW_ROWS`]. A decoding
//! step has a row a query head and reads a tile once or twice: here four rows at a time meet four tokens (scores, sums along
//! the row), or up to eight meet one or two vectors of columns (weighted sums), held in registers. Vectors never pass through a
//! closure: a closure is compiled for the oldest processor there is, and a call each.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, Par};
use pulp::Simd;

use super::operand::Rows;
use super::stored::Stored;

/// Rows of a product up to which packing its operands costs more than it saves.
const FEW_ROWS: usize = 32;
/// Rows, and tokens, of a block of scores.
const BLOCK: usize = 4;
/// Rows of a block of weighted sums at most.
const SUMS: usize = 8;

/// `q kᵀ`.
///
/// # Shapes
/// - `queries`: `[rows, n]`, `keys`: `[tokens, n]`, `scores`: `[rows, tokens]`, rows `stride` apart
#[inline(always)]
pub(crate) fn scores<S: Simd>(simd: S, queries: Rows<'_>, keys: Rows<'_>, scores: &mut [f32], stride: usize) {
    let rows = queries.count;
    if rows > FEW_ROWS {
        // faer 0.24.4's constructor for rows with a stride confuses the two strides.
        let columns = MatMut::from_column_major_slice_with_stride_mut(scores, keys.count, rows, stride);
        matmul(
            columns.transpose_mut(),
            Accum::Replace,
            queries.matrix(),
            keys.matrix().transpose(),
            1.0,
            Par::Seq,
        );
        return;
    }
    few_scores(simd, queries, keys, scores, stride);
}

/// As [`scores`], of few rows and keys as they are stored.
#[inline(always)]
pub(crate) fn few_scores<S: Simd, T: Stored>(
    simd: S,
    queries: Rows<'_>,
    keys: Rows<'_, T>,
    scores: &mut [f32],
    stride: usize,
) {
    let rows = queries.count;
    let mut row = 0;
    while row < rows {
        let scores = &mut scores[row * stride..];
        match rows - row {
            1 => score_rows::<S, T, 1>(simd, queries, keys, row, scores, stride),
            2 => score_rows::<S, T, 2>(simd, queries, keys, row, scores, stride),
            3 => score_rows::<S, T, 3>(simd, queries, keys, row, scores, stride),
            _ => score_rows::<S, T, BLOCK>(simd, queries, keys, row, scores, stride),
        }
        row += BLOCK;
    }
}

/// `out + weights · values`.
///
/// # Shapes
/// - `weights`: `[rows, tokens]`, `values`: `[tokens, width]`, `out`: row-major `[rows, width]`
#[inline(always)]
pub(crate) fn mix<S: Simd>(simd: S, weights: Rows<'_>, values: Rows<'_>, out: &mut [f32]) {
    let rows = weights.count;
    if rows > FEW_ROWS {
        let out = MatMut::from_row_major_slice_mut(out, rows, values.width);
        matmul(out, Accum::Add, weights.matrix(), values.matrix(), 1.0, Par::Seq);
        return;
    }
    few_mix(simd, weights, values, out);
}

/// As [`mix`], of few rows and values as they are stored.
#[inline(always)]
pub(crate) fn few_mix<S: Simd, T: Stored>(simd: S, weights: Rows<'_>, values: Rows<'_, T>, out: &mut [f32]) {
    let rows = weights.count;
    // Blocks of as many rows each: one of a single row would wait for its own sums.
    let block = rows.div_ceil(rows.div_ceil(SUMS).max(1)).max(1);
    for row in (0..rows).step_by(block) {
        match block.min(rows - row) {
            1 => mix_rows::<S, T, 1>(simd, weights, values, row, out),
            2 => mix_rows::<S, T, 2>(simd, weights, values, row, out),
            3 => mix_rows::<S, T, 3>(simd, weights, values, row, out),
            4 => mix_rows::<S, T, 4>(simd, weights, values, row, out),
            5 => mix_rows::<S, T, 5>(simd, weights, values, row, out),
            6 => mix_rows::<S, T, 6>(simd, weights, values, row, out),
            7 => mix_rows::<S, T, 7>(simd, weights, values, row, out),
            _ => mix_rows::<S, T, SUMS>(simd, weights, values, row, out),
        }
    }
}

#[inline(always)]
fn score_rows<S: Simd, T: Stored, const Q: usize>(
    simd: S,
    queries: Rows<'_>,
    keys: Rows<'_, T>,
    row: usize,
    scores: &mut [f32],
    stride: usize,
) {
    let tokens = keys.count;
    let mut block: [&[f32]; Q] = [&[]; Q];
    for (i, query) in block.iter_mut().enumerate() {
        *query = queries.row(row + i);
    }
    if Q == 1 {
        for (token, score) in scores[..tokens].iter_mut().enumerate() {
            *score = dot(simd, block[0], keys.row(token));
        }
        return;
    }
    let mut token = 0;
    while token + BLOCK <= tokens {
        let mut four: [&[T]; BLOCK] = [&[]; BLOCK];
        for (j, key) in four.iter_mut().enumerate() {
            *key = keys.row(token + j);
        }
        let dots = dots(simd, block, four);
        for (i, dots) in dots.iter().enumerate() {
            let at = i * stride + token;
            scores[at..at + BLOCK].copy_from_slice(dots);
        }
        token += BLOCK;
    }
    for token in token..tokens {
        for (i, [dot]) in dots(simd, block, [keys.row(token)]).into_iter().enumerate() {
            scores[i * stride + token] = dot;
        }
    }
}

/// One row reads the other from its start to its end, which memory likes best.
#[inline(always)]
fn dot<S: Simd, T: Stored>(simd: S, a: &[f32], b: &[T]) -> f32 {
    let lanes = S::F32_LANES;
    let ((a, a_rest), (b, b_rest)) = (S::as_simd_f32s(a), b.split_at(b.len() / lanes * lanes));
    let ((a_blocks, a), mut b_blocks) = (a.as_chunks::<BLOCK>(), b.chunks_exact(BLOCK * lanes));
    let mut sums = [simd.splat_f32s(0.0); BLOCK];
    for (a, b) in a_blocks.iter().zip(&mut b_blocks) {
        for i in 0..BLOCK {
            sums[i] = simd.mul_add_e_f32s(a[i], T::vector(simd, &b[i * lanes..(i + 1) * lanes]), sums[i]);
        }
    }
    for (a, b) in a.iter().zip(b_blocks.remainder().chunks_exact(lanes)) {
        sums[0] = simd.mul_add_e_f32s(*a, T::vector(simd, b), sums[0]);
    }
    let [first, second, third, fourth] = sums;
    let sum = simd.add_f32s(simd.add_f32s(first, second), simd.add_f32s(third, fourth));
    a_rest.iter().zip(b_rest).fold(simd.reduce_sum_f32s(sum), |sum, (a, b)| sum + a * b.widened())
}

/// All products of some rows with some others.
#[inline(always)]
fn dots<S: Simd, T: Stored, const Q: usize, const K: usize>(
    simd: S,
    a: [&[f32]; Q],
    b: [&[T]; K],
) -> [[f32; K]; Q] {
    let lanes = S::F32_LANES;
    let mut a_parts: [(&[S::f32s], &[f32]); Q] = [(&[], &[]); Q];
    let mut b_parts: [(&[T], &[T]); K] = [(&[], &[]); K];
    for (parts, row) in a_parts.iter_mut().zip(a) {
        *parts = S::as_simd_f32s(row);
    }
    let vectors = b[0].len() / lanes;
    for (parts, row) in b_parts.iter_mut().zip(b) {
        *parts = row.split_at(vectors * lanes);
    }
    let mut sums = [[simd.splat_f32s(0.0); K]; Q];
    for at in 0..vectors {
        let mut of_b = [simd.splat_f32s(0.0); K];
        for (vector, (row, _)) in of_b.iter_mut().zip(b_parts) {
            *vector = T::vector(simd, &row[at * lanes..(at + 1) * lanes]);
        }
        for i in 0..Q {
            let x = a_parts[i].0[at];
            for j in 0..K {
                sums[i][j] = simd.mul_add_e_f32s(x, of_b[j], sums[i][j]);
            }
        }
    }
    let mut dots = [[0.0; K]; Q];
    for i in 0..Q {
        for j in 0..K {
            let mut dot = simd.reduce_sum_f32s(sums[i][j]);
            for (x, y) in a_parts[i].1.iter().zip(b_parts[j].1) {
                dot += x * y.widened();
            }
            dots[i][j] = dot;
        }
    }
    dots
}

#[inline(always)]
fn mix_rows<S: Simd, T: Stored, const Q: usize>(
    simd: S,
    rows: Rows<'_>,
    values: Rows<'_, T>,
    row: usize,
    out: &mut [f32],
) {
    let (tokens, width) = (values.count, values.width);
    let mut block: [&[f32]; Q] = [&[]; Q];
    for (i, weights) in block.iter_mut().enumerate() {
        // As long as there are tokens, so that no bound is checked in the loops.
        *weights = &rows.row(row + i)[..tokens];
    }
    let weights = block;
    let out = &mut out[row * width..(row + Q) * width];
    let lanes = S::F32_LANES;
    let mut column = 0;
    // Sums beyond the registers would go to memory and back with every token.
    while (Q * 2 < S::REGISTER_COUNT) && column + 2 * lanes <= width {
        mix_columns::<S, T, Q, 2>(simd, weights, values, column, out);
        column += 2 * lanes;
    }
    while column + lanes <= width {
        mix_columns::<S, T, Q, 1>(simd, weights, values, column, out);
        column += lanes;
    }
    for column in column..width {
        for (i, weights) in weights.iter().enumerate() {
            let sum: f32 =
                (0..tokens).map(|token| weights[token] * values.row(token)[column].widened()).sum();
            out[i * width + column] += sum;
        }
    }
}

/// `V` vectors of columns.
#[inline(always)]
fn mix_columns<S: Simd, T: Stored, const Q: usize, const V: usize>(
    simd: S,
    weights: [&[f32]; Q],
    values: Rows<'_, T>,
    column: usize,
    out: &mut [f32],
) {
    let (width, span) = (values.width, V * S::F32_LANES);
    let mut sums = [[simd.splat_f32s(0.0); V]; Q];
    for (sums, out) in sums.iter_mut().zip(out.chunks_exact(width)) {
        sums.copy_from_slice(S::as_simd_f32s(&out[column..column + span]).0);
    }
    for token in 0..values.count {
        let row = &values.row(token)[column..column + span];
        let mut vectors = [simd.splat_f32s(0.0); V];
        for (vector, part) in vectors.iter_mut().zip(row.chunks_exact(S::F32_LANES)) {
            *vector = T::vector(simd, part);
        }
        for (sums, weights) in sums.iter_mut().zip(weights) {
            let weight = simd.splat_f32s(weights[token]);
            for (sum, vector) in sums.iter_mut().zip(&vectors) {
                *sum = simd.mul_add_e_f32s(weight, *vector, *sum);
            }
        }
    }
    for (sums, out) in sums.iter().zip(out.chunks_exact_mut(width)) {
        S::as_mut_simd_f32s(&mut out[column..column + span]).0.copy_from_slice(sums);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Some numbers from −1 to 1.
    pub(in crate::host) fn numbers(count: usize, step: usize) -> Vec<f32> {
        (0..count).map(|i| (i * step % 17) as f32 / 8.0 - 1.0).collect()
    }

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
                let (queries, tile) = (numbers(rows * width, 5), numbers(tokens * width, 7));
                let matrix = |data, rows| Rows::new(data, rows, width);
                let (q, k) = (matrix(&queries[..], rows), matrix(&tile[..], tokens));
                // One number of room between rows.
                let stride = tokens + 1;
                let mut apart = vec![7.0; rows * stride];
                scores(simd, q, k, &mut apart[..rows * stride - 1], stride);
                assert!((0..rows).all(|row| apart[row * stride + tokens] == 7.0));
                let found: Vec<f32> =
                    apart.chunks_exact(stride).flat_map(|row| row[..tokens].to_vec()).collect();
                let mut sums = numbers(rows * width, 3);
                let before = sums.clone();
                mix(simd, Rows::new(&found, rows, tokens), k, &mut sums);
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
            [(1, 1, 1), (1, 9, 64), (3, 4, 70), (4, 6, 16), (7, 5, 33), (16, 128, 48), (FEW_ROWS + 1, 9, 5)]
        {
            pulp::Arch::new().dispatch(Products { rows, tokens, width });
        }
    }
}
