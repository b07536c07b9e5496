//! Many rows times a weight of 16-bit numbers: what a prompt does in every layer.
//!
//! A general product wants f32. A weight is widened a tile at a time, which stays in the processor's cache until all rows have met it, so
//! that memory is read once, in 16 bits. The cut depends on the weight alone: any number of threads gives the same numbers.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, Par};
use rayon::prelude::*;

use super::operand::Rows;
use super::stored::Stored;

/// Numbers of a row of the product that a tile makes.
const WIDTH: usize = 256;
/// Numbers that are summed up by a tile.
const DEPTH: usize = 512;

/// `x W`.
///
/// # Shapes
/// - `x`: `[rows, d_in]`, `weight`: `[d_in, d_out]` → row-major `[rows, d_out]`
pub(super) fn product<T: Stored>(x: Rows<'_>, weight: Rows<'_, T>) -> Vec<f32> {
    blocks(x, weight.width, weight.count, |columns, depth, tile| {
        for (row, out) in depth.zip(tile.chunks_exact_mut(columns.len())) {
            T::widen(&weight.row(row)[columns.clone()], out);
        }
        Lies::AsRead
    })
}

/// `x Wᵀ`.
///
/// # Shapes
/// - `x`: `[rows, d_in]`, `weight`: `[d_out, d_in]` → row-major `[rows, d_out]`
pub(super) fn product_transposed<T: Stored>(x: Rows<'_>, weight: Rows<'_, T>) -> Vec<f32> {
    blocks(x, weight.count, weight.width, |columns, depth, tile| {
        for (row, out) in columns.zip(tile.chunks_exact_mut(depth.len())) {
            T::widen(&weight.row(row)[depth.clone()], out);
        }
        Lies::Transposed
    })
}

/// How a tile lies.
enum Lies {
    /// A row of the weight, as multiplied, after the other.
    AsRead,
    /// A column after the other.
    Transposed,
}

/// The product, a block of its columns at a time. `widen` fills a tile for some columns and some depth, and says how it lies.
fn blocks(
    x: Rows<'_>,
    d_out: usize,
    d_in: usize,
    widen: impl Fn(Range<usize>, Range<usize>, &mut [f32]) -> Lies + Sync,
) -> Vec<f32> {
    let cut = |length: usize, step: usize| {
        (0..length).step_by(step).map(move |start| start..length.min(start + step))
    };
    let block = |room: &mut Vec<f32>, columns: Range<usize>| {
        let width = columns.len();
        let mut out = vec![0.0; x.count * width];
        for depth in cut(d_in, DEPTH) {
            let tile = &mut room[..width * depth.len()];
            let tile = match widen(columns.clone(), depth.clone(), tile) {
                Lies::AsRead => Rows::new(tile, depth.len(), width).matrix(),
                Lies::Transposed => Rows::new(tile, width, depth.len()).matrix().transpose(),
            };
            let out = MatMut::from_row_major_slice_mut(&mut out, x.count, width);
            matmul(out, Accum::Add, x.columns(depth).matrix(), tile, 1.0, Par::Seq);
        }
        out
    };
    // One tile a thread, for all its blocks.
    let room = || vec![0.0; WIDTH.min(d_out) * DEPTH.min(d_in)];
    let columns: Vec<_> = cut(d_out, WIDTH).collect();
    let found: Vec<Vec<f32>> = columns.into_par_iter().map_init(room, block).collect();
    let mut out = Vec::with_capacity(x.count * d_out);
    for row in 0..x.count {
        for (part, columns) in found.iter().zip(cut(d_out, WIDTH)) {
            out.extend_from_slice(&part[row * columns.len()..(row + 1) * columns.len()]);
        }
    }
    out
}
