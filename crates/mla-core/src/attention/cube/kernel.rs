//! The kernel: one source for CUDA and wgpu.
//!
//! A cube (a thread block) walks through a span of tokens for [`ROWS`] query heads, so that a latent that was fetched once
//! serves them all. A unit (a thread) holds one score of a tile, then some columns of the weighted sums.

#![expect(clippy::cast_possible_truncation, reason = "CubeCL's indices are usize, its scalars u32")]

use burn_cubecl::cubecl;
use cubecl::prelude::*;

use super::super::tiled::HIDDEN;

/// Query heads of a cube.
pub(super) const ROWS: usize = 8;
/// Tokens of a tile.
pub(super) const TILE: usize = 32;
/// Units of a cube: one for each score of a tile.
pub(super) const UNITS: usize = ROWS * TILE;
/// Columns of latents that are kept in shared memory at a time.
const CHUNK: usize = 32;
/// Room between tokens in shared memory: one more, so that neighbouring units read different banks.
const STRIDE: usize = CHUNK + 1;

/// Online softmax over a span of tokens: the weighted sum of the latents behind the values, the largest score, and the sum
/// of exponentials.
///
/// # Shapes
/// - `queries`: `[batch, rows, read_k]`, taken to the latents; `latents`: `[batch, tokens, width]`; `left`: `[batch]`
/// - `mixed`: `[batch, spans, rows, read_v]`; `peaks`, `sums`: `[batch, spans, rows]`
///
/// `past` tokens are before the first of the `t_q` queries, each of which sees the last `window` tokens (all, if that is 0) but for
/// those `left` of its sequence; spans are of `span` tokens, from `first` on. Scores are bounded by `softcap`, unless that is 0.
#[expect(clippy::too_many_arguments, reason = "a kernel takes numbers one by one")]
#[cube(launch)]
pub(super) fn attend_span<F: Float>(
    queries: &Tensor<f32>,
    latents: &Tensor<F>,
    left: &Tensor<i32>,
    mixed: &mut Tensor<f32>,
    peaks: &mut Tensor<f32>,
    sums: &mut Tensor<f32>,
    past: u32,
    t_q: u32,
    window: u32,
    first: u32,
    span: u32,
    softcap: f32,
    #[comptime] key_start: usize,
    #[comptime] read_k: usize,
    #[comptime] value_start: usize,
    #[comptime] read_v: usize,
    #[define(F)] _dtype: ElemType,
) {
    let unit = UNIT_POS_X as usize;
    let (rows, tokens) = (queries.shape(1), latents.shape(1));
    let (head, at) = (unit / TILE, unit % TILE);
    let first_row = CUBE_POS_X as usize * ROWS;
    let row = first_row + head;
    let (part, batch) = (CUBE_POS_Y as usize, CUBE_POS_Z as usize);
    let start = first as usize + part * span as usize;
    let stop = usize::min(tokens, start + span as usize);
    let query = past as usize + row % t_q as usize;
    let hidden = left[batch] as usize;
    let latents_at = batch * latents.stride(0);
    let queries_at = batch * queries.stride(0);

    let mut tile = Shared::<[f32]>::new_slice(TILE * STRIDE);
    let mut heads = Shared::<[f32]>::new_slice(ROWS * CHUNK);
    let mut weights = Shared::<[f32]>::new_slice(ROWS * TILE);
    let mut fades = Shared::<[f32]>::new_slice(ROWS);

    let columns = comptime!(read_v.div_ceil(UNITS));
    let mut sum_of = Array::<f32>::new(columns * ROWS);
    #[unroll]
    for i in 0..columns * ROWS {
        sum_of[i] = 0.0;
    }
    let mut peak = f32::new(HIDDEN);
    let mut sum = f32::new(0.0);

    let mut from = start;
    while from < stop {
        // 1. One score a unit, a chunk of columns at a time.
        let mut score = f32::new(0.0);
        let mut chunk = 0usize;
        while chunk < read_k {
            let mut i = unit;
            while i < TILE * CHUNK {
                let (token, column) = (from + i / CHUNK, chunk + i % CHUNK);
                let mut x = f32::new(0.0);
                if token < stop && column < read_k {
                    let at =
                        latents_at + token * latents.stride(1) + (key_start + column) * latents.stride(2);
                    x = f32::cast_from(latents[at]);
                }
                tile[(i / CHUNK) * STRIDE + i % CHUNK] = x;
                i += UNITS;
            }
            let mut i = unit;
            while i < ROWS * CHUNK {
                let (row, column) = (first_row + i / CHUNK, chunk + i % CHUNK);
                let mut x = f32::new(0.0);
                if row < rows && column < read_k {
                    x = queries[queries_at + row * queries.stride(1) + column * queries.stride(2)];
                }
                heads[i] = x;
                i += UNITS;
            }
            sync_cube();
            for column in 0..CHUNK {
                score += heads[head * CHUNK + column] * tile[at * STRIDE + column];
            }
            sync_cube();
            chunk += CHUNK;
        }
        if softcap > 0.0 {
            score = softcap * f32::tanh(score / softcap);
        }
        let token = from + at;
        let (window, reach) = (window as usize, token + window as usize);
        let seen = token < stop && token >= hidden && token <= query && (window == 0 || reach > query);
        if !seen {
            score = f32::new(HIDDEN);
        }

        // 2. The running maximum and sum of the unit's head, which all its units keep alike.
        weights[head * TILE + at] = score;
        sync_cube();
        let mut higher = peak;
        for other in 0..TILE {
            higher = f32::max(higher, weights[head * TILE + other]);
        }
        sync_cube();
        let fade = f32::exp(peak - higher);
        let mut weight = f32::new(0.0);
        if seen {
            weight = f32::exp(score - higher);
        }
        weights[head * TILE + at] = weight;
        if at == 0 {
            fades[head] = fade;
        }
        sync_cube();
        sum *= fade;
        for other in 0..TILE {
            sum += weights[head * TILE + other];
        }
        peak = higher;

        // 3. The weighted sums, some columns of all heads a unit.
        #[unroll]
        for i in 0..columns * ROWS {
            sum_of[i] *= fades[i % ROWS];
        }
        for token in 0..usize::min(TILE, stop - from) {
            #[unroll]
            for i in 0..columns {
                let column = unit + i * UNITS;
                if column < read_v {
                    let at = latents_at
                        + (from + token) * latents.stride(1)
                        + (value_start + column) * latents.stride(2);
                    let x = f32::cast_from(latents[at]);
                    #[unroll]
                    for head in 0..ROWS {
                        sum_of[i * ROWS + head] += weights[head * TILE + token] * x;
                    }
                }
            }
        }
        sync_cube();
        from += TILE;
    }

    let spans = peaks.shape(1);
    let out = (batch * spans + part) * rows;
    if at == 0 && row < rows {
        peaks[out + row] = peak;
        sums[out + row] = sum;
    }
    #[unroll]
    for i in 0..columns {
        let column = unit + i * UNITS;
        if column < read_v {
            #[unroll]
            for head in 0..ROWS {
                if first_row + head < rows {
                    mixed[(out + first_row + head) * read_v + column] = sum_of[i * ROWS + head];
                }
            }
        }
    }
}
