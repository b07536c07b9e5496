//! Keys and values of latents: a tile of them, or what `W_up` makes of queries and of weighted sums.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, Par};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::lanes;
use crate::host::{Rows, rows};

/// How keys, or values, are made of latents: `Σ latents[columns] · matrix + bias`, then the rotation.
#[derive(Clone, Debug)]
pub(super) struct Made<'a> {
    /// Columns of the latents and their matrices `[columns, d_kv]`.
    pub(super) terms: Vec<(Range<usize>, Rows<'a>)>,
    /// `[d_kv]`.
    pub(super) bias: Option<&'a [f32]>,
    /// Of keys.
    pub(super) rotated: Option<Rotated<'a>>,
}

/// Cosines and sines of every token of a sequence, padded ones left out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rotated<'a> {
    /// `[positions, d_rotary / 2]`.
    pub(super) cos: Rows<'a>,
    /// `[positions, d_rotary / 2]`.
    pub(super) sin: Rows<'a>,
}

impl Made<'_> {
    /// The columns of the latents that are read.
    pub(super) fn span(&self) -> Range<usize> {
        let (first, last) = (self.terms.first(), self.terms.last());
        first.map_or(0, |(columns, _)| columns.start)..last.map_or(0, |(columns, _)| columns.end)
    }

    /// `W_ukᵀ q` for some kv heads, behind what reads the shared key: row-major `[rows, d_rope + span]`.
    ///
    /// # Shapes
    /// - `queries`: `[rows, d_head]`, `shared`: `[rows, d_rope]`, `rows_a_head` of each head
    pub(super) fn to_latents(
        &self,
        queries: Rows<'_>,
        shared: Option<Rows<'_>>,
        heads: Range<usize>,
        rows_a_head: usize,
    ) -> Vec<f32> {
        let d_rope = shared.map_or(0, |shared| shared.width);
        let width = d_rope + self.span().len();
        let mut out = vec![0.0; queries.count * width];
        out.par_chunks_mut((rows_a_head * width).max(1)).zip(heads).enumerate().for_each(
            |(at, (out, head))| {
                let rows = at * rows_a_head..(at + 1) * rows_a_head;
                if let Some(shared) = shared {
                    for (row, out) in rows.clone().zip(out.chunks_exact_mut(width)) {
                        out[..d_rope].copy_from_slice(shared.row(row));
                    }
                }
                let queries = queries.span(rows);
                let out = &mut out[d_rope..];
                pulp::Arch::new().dispatch(ToLatents { made: self, head, queries, out, stride: width });
            },
        );
        out
    }

    /// `W_uv c + b_v` for weighted sums of latents; `weight` is the sum of the weights where it is not 1, and counts for the
    /// bias.
    ///
    /// # Shapes
    /// - `mean`: row-major `[rows, span]`, `rows_a_head` of each head, `weight`: `[rows]`, `out`: row-major `[rows, d_head]`
    pub(super) fn to_values(
        &self,
        mean: &[f32],
        weight: Option<&[f32]>,
        heads: Range<usize>,
        rows_a_head: usize,
        out: &mut [f32],
    ) {
        let (width, rows) = (self.span().len(), heads.len() * rows_a_head);
        let d_head = out.len() / rows;
        let mean = Rows::new(mean, rows, width);
        out.par_chunks_mut(rows_a_head * d_head).zip(heads).enumerate().for_each(|(at, (out, head))| {
            let rows = at * rows_a_head..(at + 1) * rows_a_head;
            let (mean, weight) = (mean.span(rows.clone()), weight.map(|weight| &weight[rows]));
            pulp::Arch::new().dispatch(ToValues { made: self, head, mean, weight, out });
        });
    }

    /// Some columns of keys or values of a tile, before the rotation: row-major `[tokens, columns]`.
    #[inline(always)]
    pub(super) fn rebuild<'r>(
        &self,
        latents: Rows<'_>,
        columns: Range<usize>,
        room: &'r mut [f32],
    ) -> &'r mut [f32] {
        let (count, width) = (latents.count, columns.len());
        let room = &mut room[..count * width];
        let mut out = MatMut::from_row_major_slice_mut(room, count, width);
        for (at, (read, weight)) in self.terms.iter().enumerate() {
            let accum = if at == 0 { Accum::Replace } else { Accum::Add };
            let read = latents.columns(read.clone()).matrix();
            matmul(out.as_mut(), accum, read, weight.columns(columns.clone()).matrix(), 1.0, Par::Seq);
        }
        if let Some(bias) = self.bias {
            room.chunks_exact_mut(width).for_each(|row| lanes::add_scaled(row, &bias[columns.clone()], 1.0));
        }
        room
    }
}

/// Queries of one kv head, to the latents.
struct ToLatents<'m, 'a> {
    made: &'m Made<'a>,
    head: usize,
    queries: Rows<'m>,
    out: &'m mut [f32],
    /// Numbers from a row of `out` to the next.
    stride: usize,
}

impl WithSimd for ToLatents<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { made, head, queries, out, stride } = self;
        let (span, d_head) = (made.span(), queries.width);
        for (columns, weight) in &made.terms {
            let weight = weight.columns(head * d_head..(head + 1) * d_head);
            let out = &mut out[columns.start - span.start..];
            rows::scores(simd, queries, weight, out, stride);
        }
    }
}

/// Means of latents, to the values of one kv head.
struct ToValues<'m, 'a> {
    made: &'m Made<'a>,
    head: usize,
    mean: Rows<'m>,
    weight: Option<&'m [f32]>,
    out: &'m mut [f32],
}

impl WithSimd for ToValues<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { made, head, mean, weight, out } = self;
        let (start, d_head) = (made.span().start, out.len() / mean.count);
        out.fill(0.0);
        for (columns, weight) in &made.terms {
            let mean = mean.columns(columns.start - start..columns.end - start);
            rows::mix(simd, mean, weight.columns(head * d_head..(head + 1) * d_head), out);
        }
        if let Some(bias) = made.bias {
            let bias = &bias[head * d_head..(head + 1) * d_head];
            for (row, out) in out.chunks_exact_mut(d_head).enumerate() {
                lanes::add_scaled(out, bias, weight.map_or(1.0, |weight| weight[row]));
            }
        }
    }
}

impl Rotated<'_> {
    /// Rotates rows of tokens of a sequence that has `left` columns of padding.
    #[inline(always)]
    pub(super) fn apply(&self, tokens: Range<usize>, left: usize, d_head: usize, keys: &mut [f32]) {
        let width = keys.len() / tokens.len();
        for (token, row) in tokens.zip(keys.chunks_exact_mut(width)) {
            let position = token.saturating_sub(left);
            lanes::rotate(row, d_head, self.cos.row(position), self.sin.row(position));
        }
    }
}
