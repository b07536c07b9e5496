//! Keys and values of latents: a tile of them, or what `W_up` makes of queries and of weighted sums.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

use super::lanes;
use super::operand::Rows;

/// How keys, or values, are made of latents: `Σ latents[columns] · matrix + bias`, then the rotation.
#[derive(Clone, Debug)]
pub(super) struct Made<'a> {
    /// Columns of the latents and their matrices `[columns, d_kv]`.
    pub(super) terms: Vec<(Range<usize>, MatRef<'a, f32>)>,
    /// `[d_kv]`.
    pub(super) bias: Option<&'a [f32]>,
    /// Of keys.
    pub(super) rotated: Option<Rotated<'a>>,
}

/// Cosines and sines of every token of a sequence, padded ones left out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rotated<'a> {
    /// `[positions, d_head / 2]`.
    pub(super) cos: Rows<'a>,
    /// `[positions, d_head / 2]`.
    pub(super) sin: Rows<'a>,
}

impl Made<'_> {
    /// The columns of the latents that are read.
    pub(super) fn span(&self) -> Range<usize> {
        let (first, last) = (self.terms.first(), self.terms.last());
        first.map_or(0, |(columns, _)| columns.start)..last.map_or(0, |(columns, _)| columns.end)
    }

    /// `W_ukᵀ q` for some kv heads: row-major `[rows, span]`.
    ///
    /// # Shapes
    /// - `queries`: `[rows, d_head]`, `rows_a_head` of each head
    pub(super) fn to_latents(&self, queries: Rows<'_>, heads: Range<usize>, rows_a_head: usize) -> Vec<f32> {
        let (span, d_head) = (self.span(), queries.width);
        let mut out = vec![0.0; queries.count * span.len()];
        let mut latents = MatMut::from_row_major_slice_mut(&mut out, queries.count, span.len());
        for (at, head) in heads.enumerate() {
            let rows = at * rows_a_head..(at + 1) * rows_a_head;
            let mut latents = latents.as_mut().subrows_mut(rows.start, rows_a_head);
            for (columns, weight) in &self.terms {
                let part = latents.as_mut().subcols_mut(columns.start - span.start, columns.len());
                let weight = weight.subcols(head * d_head, d_head).transpose();
                matmul(part, Accum::Replace, queries.span(rows.clone()).matrix(), weight, 1.0, Par::Seq);
            }
        }
        out
    }

    /// `W_uv c + b_v` for means of latents.
    ///
    /// # Shapes
    /// - `mean`: row-major `[rows, span]`, `rows_a_head` of each head, `out`: row-major `[rows, d_head]`
    pub(super) fn to_values(&self, mean: &[f32], heads: Range<usize>, rows_a_head: usize, out: &mut [f32]) {
        let (span, rows) = (self.span(), heads.len() * rows_a_head);
        let d_head = out.len() / rows;
        let mean = Rows::new(mean, rows, span.len());
        for ((at, head), out) in heads.enumerate().zip(out.chunks_exact_mut(rows_a_head * d_head)) {
            let mean = mean.span(at * rows_a_head..(at + 1) * rows_a_head);
            let mut values = MatMut::from_row_major_slice_mut(out, rows_a_head, d_head);
            for (term, (columns, weight)) in self.terms.iter().enumerate() {
                let accum = if term == 0 { Accum::Replace } else { Accum::Add };
                let part = mean.columns(columns.start - span.start..columns.end - span.start).matrix();
                let weight = weight.subcols(head * d_head, d_head);
                matmul(values.as_mut(), accum, part, weight, 1.0, Par::Seq);
            }
            if let Some(bias) = self.bias {
                let bias = &bias[head * d_head..(head + 1) * d_head];
                out.chunks_exact_mut(d_head).for_each(|row| lanes::add_scaled(row, bias, 1.0));
            }
        }
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
            matmul(out.as_mut(), accum, read, weight.subcols(columns.start, width), 1.0, Par::Seq);
        }
        if let Some(bias) = self.bias {
            room.chunks_exact_mut(width).for_each(|row| lanes::add_scaled(row, &bias[columns.clone()], 1.0));
        }
        room
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
