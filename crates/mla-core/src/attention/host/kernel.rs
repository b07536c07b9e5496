//! The walk through the tokens.
//!
//! Work is cut into units: a sequence, some of its kv heads, a span of its tokens. A unit walks its span a tile at a time:
//! scores, online softmax, weighted sum. Units of the same rows are merged.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::lanes;

/// New tokens up to which a context is cut into spans; above, heads give work enough.
const FEW: usize = 8;

/// What a layer has to do.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// Query heads.
    pub(crate) n_heads: usize,
    /// Key/value heads.
    pub(crate) n_kv_heads: usize,
    /// Width of a head.
    pub(crate) d_head: usize,
    /// Tokens of a tile.
    pub(crate) tile: usize,
    /// New tokens.
    pub(crate) t_q: usize,
    /// Tokens before them.
    pub(crate) past: usize,
    /// A query sees itself and so many tokens before it, less one.
    pub(crate) window: Option<usize>,
    /// Padding columns of each sequence.
    pub(crate) left: Vec<usize>,
}

/// Keys, or values, of one sequence.
#[derive(Clone, Debug)]
pub(crate) enum Side<'a> {
    /// As they are cached, a kv head each: `[tokens, d_head]`.
    Cached(Vec<MatRef<'a, f32>>),
    /// Columns of the latents, read by every head as they are.
    Absorbed(Range<usize>),
    /// Made of latents, a tile at a time.
    Rebuilt(Made<'a>),
}

/// How keys, or values, are made of latents: `Σ latents[columns] · matrix + bias`, then the rotation.
#[derive(Clone, Debug)]
pub(crate) struct Made<'a> {
    /// Columns of the latents and their matrices `[columns, d_kv]`.
    pub(crate) terms: Vec<(Range<usize>, MatRef<'a, f32>)>,
    /// `[d_kv]`.
    pub(crate) bias: Option<&'a [f32]>,
    /// Of keys.
    pub(crate) rotated: Option<Rotated<'a>>,
}

/// Cosines and sines of every token of a sequence, padded ones left out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rotated<'a> {
    /// `[positions, d_head / 2]`.
    pub(crate) cos: MatRef<'a, f32>,
    /// `[positions, d_head / 2]`.
    pub(crate) sin: MatRef<'a, f32>,
}

/// One sequence.
#[derive(Clone, Debug)]
pub(crate) struct Sequence<'a> {
    /// Scaled queries, `[n_heads · t_q, width]`: rotated, or taken to the latents.
    pub(crate) queries: MatRef<'a, f32>,
    /// The latents of each layer that is read, beside each other: `[tokens, width]` each.
    pub(crate) latents: Vec<MatRef<'a, f32>>,
    /// What scores are made with.
    pub(crate) keys: Side<'a>,
    /// What is summed.
    pub(crate) values: Side<'a>,
}

impl Side<'_> {
    /// Numbers of a row of the weighted sum.
    fn width(&self, d_head: usize) -> usize {
        match self {
            Side::Absorbed(columns) => columns.len(),
            Side::Cached(_) | Side::Rebuilt(_) => d_head,
        }
    }
}

/// The weighted sums of all sequences, row-major `[batch, n_heads · t_q, width]`, and their width.
pub(crate) fn attend(shape: &Shape, sequences: &[Sequence<'_>]) -> (Vec<f32>, usize) {
    let width = sequences.first().map_or(0, |sequence| sequence.values.width(shape.d_head));
    let rows = shape.n_heads * shape.t_q;
    let mut out = vec![0.0; sequences.len() * rows * width];
    let threads = rayon::current_num_threads();
    let heads_a_unit = if shape.t_q > FEW { 1 } else { shape.n_kv_heads };
    let parts = shape.n_kv_heads / heads_a_unit;
    let group = shape.n_heads / shape.n_kv_heads;
    let rows_a_unit = heads_a_unit * group * shape.t_q;
    out.par_chunks_mut((rows_a_unit * width).max(1)).enumerate().for_each(|(unit, out)| {
        let (row, part) = (unit / parts, unit % parts);
        let sequence = &sequences[row];
        let heads = part * heads_a_unit..(part + 1) * heads_a_unit;
        let visible = shape.visible(row);
        let spans = threads.div_ceil(sequences.len() * parts).clamp(1, visible.len().div_ceil(shape.tile));
        let span = visible.len().div_ceil(spans).next_multiple_of(shape.tile);
        let walk = |start: usize| {
            let tokens = start..visible.end.min(start + span);
            let mut unit = Unit {
                shape,
                sequence,
                row,
                heads: heads.clone(),
                running: Running::new(rows_a_unit, width),
            };
            pulp::Arch::new().dispatch(|| unit.walk(tokens));
            unit.running
        };
        let starts: Vec<usize> = visible.clone().step_by(span.max(1)).collect();
        let merged = match starts[..] {
            [start] => Some(walk(start)),
            _ => starts.into_par_iter().map(walk).reduce_with(Running::merged),
        };
        if let Some(merged) = merged {
            merged.finish(out);
        }
    });
    (out, width)
}

impl Shape {
    fn t_kv(&self) -> usize {
        self.past + self.t_q
    }

    /// The first token that a query sees.
    fn first(&self, row: usize, query: usize) -> usize {
        let window = self.window.map_or(0, |window| (self.past + query + 1).saturating_sub(window));
        self.left[row].max(window)
    }

    /// The tokens that some query sees.
    fn visible(&self, row: usize) -> Range<usize> {
        self.first(row, 0).min(self.t_kv() - 1)..self.t_kv()
    }
}

/// Softmax and weighted sum so far, a row a query head and new token.
struct Running {
    max: Vec<f32>,
    sum: Vec<f32>,
    mixed: Vec<f32>,
    width: usize,
}

impl Running {
    fn new(rows: usize, width: usize) -> Self {
        Self { max: vec![f32::MIN; rows], sum: vec![0.0; rows], mixed: vec![0.0; rows * width], width }
    }

    /// Two walks through different tokens as one.
    fn merged(mut self, other: Self) -> Self {
        for row in 0..self.max.len() {
            let max = self.max[row].max(other.max[row]);
            let (ours, theirs) = ((self.max[row] - max).exp(), (other.max[row] - max).exp());
            self.max[row] = max;
            self.sum[row] = self.sum[row] * ours + other.sum[row] * theirs;
            let place = row * self.width..(row + 1) * self.width;
            lanes::scale(&mut self.mixed[place.clone()], ours);
            lanes::add_scaled(&mut self.mixed[place.clone()], &other.mixed[place], theirs);
        }
        self
    }

    /// The weighted means. A row that saw nothing is padding, which nobody reads.
    fn finish(self, out: &mut [f32]) {
        out.copy_from_slice(&self.mixed);
        for (row, sum) in out.chunks_exact_mut(self.width.max(1)).zip(&self.sum) {
            lanes::scale(row, if *sum > 0.0 { 1.0 / sum } else { 0.0 });
        }
    }
}

/// Some kv heads of a sequence.
struct Unit<'a> {
    shape: &'a Shape,
    sequence: &'a Sequence<'a>,
    row: usize,
    heads: Range<usize>,
    running: Running,
}

/// What a tile needs room for.
struct Scratch {
    latents: Vec<f32>,
    rebuilt: Vec<f32>,
    scores: Vec<f32>,
}

impl Unit<'_> {
    fn query_heads(&self) -> Range<usize> {
        let group = self.shape.n_heads / self.shape.n_kv_heads;
        self.heads.start * group..self.heads.end * group
    }

    /// Rows of the unit that belong to some of its kv heads, queries before `from` left out: as few blocks as there can be.
    #[inline(always)]
    fn blocks(&self, heads: Range<usize>, from: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let (group, t_q) = (self.shape.n_heads / self.shape.n_kv_heads, self.shape.t_q);
        let step = if from == 0 { heads.len() * group } else { 1 };
        let firsts = (heads.start * group..heads.end * group).step_by(step.max(1));
        firsts.map(move |head| head * t_q + from..(head + step) * t_q)
    }

    /// Takes in a span of tokens.
    #[inline(always)]
    fn walk(&mut self, tokens: Range<usize>) {
        let (tile, latents) = (self.shape.tile, &self.sequence.latents);
        let gathered: usize =
            if latents.len() > 1 { latents.iter().map(|latents| latents.ncols()).sum() } else { 0 };
        let mut scratch = Scratch {
            latents: vec![0.0; tile * gathered],
            rebuilt: vec![0.0; tile * self.heads.len() * self.shape.d_head],
            scores: vec![0.0; self.query_heads().len() * self.shape.t_q * tile],
        };
        for start in tokens.clone().step_by(tile) {
            self.tile(start..tokens.end.min(start + tile), &mut scratch);
        }
    }

    /// Takes in one tile: scores, softmax, weighted sum.
    #[inline(always)]
    fn tile(&mut self, tokens: Range<usize>, scratch: &mut Scratch) {
        let Scratch { latents, rebuilt, scores } = scratch;
        let sequence = self.sequence;
        let latents = gather(&sequence.latents, tokens.clone(), latents);
        // Queries before the tile see nothing of it.
        let from = tokens.start.saturating_sub(self.shape.past);
        let (heads, d_head) = (self.heads.clone(), self.shape.d_head);
        match &sequence.keys {
            Side::Absorbed(columns) => {
                let keys = latents.subcols(columns.start, columns.len());
                self.score(0..heads.len(), from, keys, scores);
            }
            Side::Cached(cached) => {
                for (at, head) in heads.clone().enumerate() {
                    self.score(at..at + 1, from, cached[head].subrows(tokens.start, tokens.len()), scores);
                }
            }
            Side::Rebuilt(made) => {
                let keys = made.rebuild(latents, heads.start * d_head..heads.end * d_head, rebuilt);
                if let Some(rotated) = &made.rotated {
                    rotated.apply(tokens.clone(), self.shape.left[self.row], d_head, keys);
                }
                let keys = MatRef::from_row_major_slice(keys, tokens.len(), heads.len() * d_head);
                for at in 0..heads.len() {
                    self.score(at..at + 1, from, keys.subcols(at * d_head, d_head), scores);
                }
            }
        }
        self.weigh(from, tokens.clone(), scores);
        match &sequence.values {
            Side::Absorbed(columns) => {
                let values = latents.subcols(columns.start, columns.len());
                self.mix(0..heads.len(), from, values, scores);
            }
            Side::Cached(cached) => {
                for (at, head) in heads.enumerate() {
                    self.mix(at..at + 1, from, cached[head].subrows(tokens.start, tokens.len()), scores);
                }
            }
            Side::Rebuilt(made) => {
                let values = made.rebuild(latents, heads.start * d_head..heads.end * d_head, rebuilt);
                let values = MatRef::from_row_major_slice(values, tokens.len(), heads.len() * d_head);
                for at in 0..heads.len() {
                    self.mix(at..at + 1, from, values.subcols(at * d_head, d_head), scores);
                }
            }
        }
    }

    /// Scores of some of the unit's kv heads: `q kᵀ`.
    ///
    /// # Shapes
    /// - `keys`: `[tokens, width]`, `scores`: `[rows, tokens]`
    #[inline(always)]
    fn score(&self, heads: Range<usize>, from: usize, keys: MatRef<'_, f32>, scores: &mut [f32]) {
        let (count, first) = (keys.nrows(), self.query_heads().start * self.shape.t_q);
        for rows in self.blocks(heads, from) {
            let queries = self.sequence.queries.subrows(first + rows.start, rows.len());
            let out = &mut scores[rows.start * count..rows.end * count];
            let out = MatMut::from_row_major_slice_mut(out, rows.len(), count);
            matmul(out, Accum::Replace, queries, keys.transpose(), 1.0, Par::Seq);
        }
    }

    /// Scores to weights, what is hidden to 0; sums so far are brought to the new maximum.
    #[inline(always)]
    fn weigh(&mut self, from: usize, tokens: Range<usize>, scores: &mut [f32]) {
        let Shape { t_q, past, .. } = *self.shape;
        let (count, width) = (tokens.len(), self.running.width);
        for row in self.blocks(0..self.heads.len(), from).flatten() {
            let query = row % t_q;
            let place = |token: usize| token.clamp(tokens.start, tokens.end) - tokens.start;
            let seen = place(self.shape.first(self.row, query))..place(past + query + 1);
            let weights = &mut scores[row * count..(row + 1) * count];
            weights[..seen.start].fill(0.0);
            weights[seen.end.max(seen.start)..].fill(0.0);
            if seen.is_empty() {
                continue;
            }
            let weights = &mut weights[seen];
            let before = self.running.max[row];
            let max = lanes::largest(before, weights);
            if max > before {
                let fade = (before - max).exp();
                self.running.max[row] = max;
                self.running.sum[row] *= fade;
                lanes::scale(&mut self.running.mixed[row * width..(row + 1) * width], fade);
            }
            self.running.sum[row] += lanes::exponentials(weights, max);
        }
    }

    /// Adds the weighted sum of a tile's values.
    ///
    /// # Shapes
    /// - `values`: `[tokens, width]`, `weights`: `[rows, tokens]`
    #[inline(always)]
    fn mix(&mut self, heads: Range<usize>, from: usize, values: MatRef<'_, f32>, weights: &[f32]) {
        let (count, width) = (values.nrows(), self.running.width);
        for rows in self.blocks(heads, from) {
            let weights = &weights[rows.start * count..rows.end * count];
            let weights = MatRef::from_row_major_slice(weights, rows.len(), count);
            let mixed = &mut self.running.mixed[rows.start * width..rows.end * width];
            let mixed = MatMut::from_row_major_slice_mut(mixed, rows.len(), width);
            matmul(mixed, Accum::Add, weights, values, 1.0, Par::Seq);
        }
    }
}

/// Latents of a tile, one matrix: in place where one layer is read, else side by side in `room`.
#[inline(always)]
fn gather<'a>(latents: &[MatRef<'a, f32>], tokens: Range<usize>, room: &'a mut [f32]) -> MatRef<'a, f32> {
    let (start, count) = (tokens.start, tokens.len());
    match latents {
        [] => MatRef::from_row_major_slice(&[], count, 0),
        [one] => one.subrows(start, count),
        many => {
            let width = many.iter().map(|latents| latents.ncols()).sum();
            let mut column = 0;
            for latents in many {
                for token in 0..count {
                    let at = token * width + column;
                    room[at..at + latents.ncols()].copy_from_slice(row_of(*latents, start + token));
                }
                column += latents.ncols();
            }
            MatRef::from_row_major_slice(&room[..count * width], count, width)
        }
    }
}

impl Made<'_> {
    /// Some columns of keys or values of a tile, before the rotation: row-major `[tokens, columns]`.
    #[inline(always)]
    fn rebuild<'r>(
        &self,
        latents: MatRef<'_, f32>,
        columns: Range<usize>,
        room: &'r mut [f32],
    ) -> &'r mut [f32] {
        let (count, width) = (latents.nrows(), columns.len());
        let room = &mut room[..count * width];
        let mut out = MatMut::from_row_major_slice_mut(room, count, width);
        for (at, (read, weight)) in self.terms.iter().enumerate() {
            let accum = if at == 0 { Accum::Replace } else { Accum::Add };
            let read = latents.subcols(read.start, read.len());
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
    fn apply(&self, tokens: Range<usize>, left: usize, d_head: usize, keys: &mut [f32]) {
        let width = keys.len() / tokens.len();
        for (token, row) in tokens.zip(keys.chunks_exact_mut(width)) {
            let position = token.saturating_sub(left);
            lanes::rotate(row, d_head, row_of(self.cos, position), row_of(self.sin, position));
        }
    }
}

/// A row of a matrix whose rows are dense.
#[inline(always)]
fn row_of<'a>(matrix: MatRef<'a, f32>, row: usize) -> &'a [f32] {
    matrix.row(row).try_as_row_major().map_or(&[], |row| row.as_slice())
}
