//! The walk through the tokens.
//!
//! Work is cut into units: a sequence, some of its kv heads, a span of its tokens. A unit walks its span a tile at a time:
//! scores, online softmax, weighted sum. Units of the same rows are merged.

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::lanes;
use super::made::Made;
use super::running::Running;
use super::tokens::{Tokens, ahead, gather, in_place};
use crate::host::{Across, Rows, rows};

/// New tokens up to which all heads share a unit; above, each has one of its own.
const FEW: usize = 8;
/// Tokens of a span, where a unit's context is cut: the same on every machine, so that the same numbers come out whatever the
/// number of threads.
const SPAN: usize = 512;

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
    /// The bound of a score.
    pub(crate) softcap: Option<f32>,
    /// A logit a query head that takes weight and gives no value.
    pub(crate) sinks: Option<Vec<f32>>,
    /// Padding columns of each sequence.
    pub(crate) left: Vec<usize>,
}

/// Keys, or values, of one sequence.
#[derive(Clone, Debug)]
pub(crate) enum Side<'a> {
    /// As they are cached, a kv head each: `[tokens, d_head]`.
    Cached(Vec<Tokens<'a>>),
    /// The latents themselves, read by every head: what would make keys of them goes to the queries, what would make
    /// values of them to their weighted sums.
    Absorbed(Made<'a>),
    /// Made of latents, a tile at a time.
    Rebuilt(Made<'a>),
}

/// One sequence.
#[derive(Clone, Debug)]
pub(crate) struct Sequence<'a> {
    /// Scaled queries, rotated where keys are: `[n_heads · t_q, d_head]`.
    pub(crate) queries: Rows<'a>,
    /// What reads the shared key: `[n_heads · t_q, d_rope]`.
    pub(crate) shared: Option<Rows<'a>>,
    /// What is cached of each layer that is read, beside each other, the shared key first: `[tokens, width]` each.
    pub(crate) latents: Vec<Tokens<'a>>,
    /// What scores are made with.
    pub(crate) keys: Side<'a>,
    /// What is summed.
    pub(crate) values: Side<'a>,
}

impl Sequence<'_> {
    /// Numbers of the shared key.
    fn d_rope(&self) -> usize {
        self.shared.map_or(0, |shared| shared.width)
    }

    /// The columns of the latents that absorbed queries read.
    fn scored(&self, made: &Made<'_>) -> Range<usize> {
        let span = made.span();
        if self.shared.is_some() { 0..span.end } else { span }
    }
}

impl Side<'_> {
    /// Numbers of a row of the weighted sum.
    fn width(&self, d_head: usize) -> usize {
        match self {
            Side::Absorbed(made) => made.span().len(),
            Side::Cached(_) | Side::Rebuilt(_) => d_head,
        }
    }
}

/// The weighted means of the values of all sequences, row-major `[batch, n_heads · t_q, d_head]`.
pub(crate) fn attend(shape: &Shape, sequences: &[Sequence<'_>]) -> Vec<f32> {
    let mut out = vec![0.0; sequences.len() * shape.n_heads * shape.t_q * shape.d_head];
    let heads_a_unit = if shape.t_q > FEW { 1 } else { shape.n_kv_heads };
    let parts = shape.n_kv_heads / heads_a_unit;
    let rows = heads_a_unit * shape.rows_a_head();
    let span = if parts == 1 { SPAN.next_multiple_of(shape.tile) } else { usize::MAX };
    out.par_chunks_mut((rows * shape.d_head).max(1)).enumerate().for_each(|(unit, out)| {
        let (row, part) = (unit / parts, unit % parts);
        let heads = part * heads_a_unit..(part + 1) * heads_a_unit;
        unit_of(shape, &sequences[row], row, heads, span, out);
    });
    out
}

/// Some kv heads of sequence `row`, its tokens cut into spans.
fn unit_of(
    shape: &Shape,
    sequence: &Sequence<'_>,
    row: usize,
    heads: Range<usize>,
    span: usize,
    out: &mut [f32],
) {
    let rows_a_head = shape.rows_a_head();
    let rows = heads.len() * rows_a_head;
    let queries = sequence.queries.span(heads.start * rows_a_head..heads.end * rows_a_head);
    let absorbed;
    let queries = match &sequence.keys {
        // The bias of K adds the same to all scores of a query: softmax does not see it.
        Side::Absorbed(made) => {
            let all = heads.start * rows_a_head..heads.end * rows_a_head;
            let shared = sequence.shared.map(|shared| shared.span(all));
            absorbed = made.to_latents(queries, shared, heads.clone(), rows_a_head);
            Rows::new(&absorbed, rows, sequence.scored(made).len())
        }
        Side::Cached(_) | Side::Rebuilt(_) => queries,
    };
    let across = match &sequence.keys {
        Side::Absorbed(_) if shape.past >= shape.tile => Across::of(queries),
        _ => None,
    };
    let across = across.as_ref();
    let visible = shape.visible(row);
    let walk = |start: usize| {
        let running = Running::new(rows, sequence.values.width(shape.d_head));
        let mut unit = Unit { shape, sequence, queries, across, row, heads: heads.clone(), running };
        let tokens = start..visible.end.min(start.saturating_add(span));
        pulp::Arch::new().dispatch(Walk { unit: &mut unit, tokens });
        unit.running
    };
    let starts: Vec<usize> = visible.clone().step_by(span).collect();
    let walked: Vec<Running> = match starts[..] {
        [start] => vec![walk(start)],
        _ => starts.into_par_iter().map(walk).collect(),
    };
    let sinks = shape.sinks.as_ref().map(|sinks| {
        let group = shape.n_heads / shape.n_kv_heads;
        let sinks = sinks[heads.start * group..heads.end * group].iter();
        sinks.flat_map(|&sink| std::iter::repeat_n(sink, shape.t_q)).collect::<Vec<_>>()
    });
    let width = sequence.values.width(shape.d_head);
    let sunk = sinks.as_ref().map(|sinks| Running::of_sinks(sinks.clone(), width));
    // In the order of the tokens, so that the same numbers come out whoever was first.
    let Some(whole) = sunk.into_iter().chain(walked).reduce(Running::merged) else { return };
    let weight = sinks.map(|sinks| whole.weight_beside(&sinks));
    let mean = whole.mean();
    match &sequence.values {
        Side::Absorbed(made) => made.to_values(&mean, weight.as_deref(), heads, rows_a_head, out),
        Side::Cached(_) | Side::Rebuilt(_) => out.copy_from_slice(&mean),
    }
}

impl Shape {
    /// Rows that read one kv head.
    fn rows_a_head(&self) -> usize {
        self.n_heads / self.n_kv_heads * self.t_q
    }

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

/// Some kv heads of a sequence.
struct Unit<'a> {
    shape: &'a Shape,
    sequence: &'a Sequence<'a>,
    /// Of its heads: rotated, or taken to the latents.
    queries: Rows<'a>,
    /// Those that were taken to the latents, turned, where it pays.
    across: Option<&'a Across>,
    row: usize,
    heads: Range<usize>,
    running: Running,
}

/// A unit's way through its tokens, compiled for what the processor has.
struct Walk<'u, 'a> {
    unit: &'u mut Unit<'a>,
    tokens: Range<usize>,
}

impl WithSimd for Walk<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.unit.walk(simd, self.tokens);
    }
}

/// What a tile needs room for.
struct Scratch {
    latents: Vec<f32>,
    rebuilt: Vec<f32>,
    scores: Vec<f32>,
    /// Of the shared key, where the others are rebuilt.
    more: Vec<f32>,
}

impl Unit<'_> {
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
    fn walk<S: Simd>(&mut self, simd: S, tokens: Range<usize>) {
        let (tile, latents) = (self.shape.tile, &self.sequence.latents);
        let gathered = match in_place(latents) {
            true => 0,
            false => latents.iter().map(Tokens::width).sum(),
        };
        let mut scratch = Scratch {
            latents: vec![0.0; tile * gathered],
            rebuilt: match (&self.sequence.keys, &self.sequence.values) {
                (Side::Absorbed(_), Side::Absorbed(_)) => Vec::new(),
                _ => vec![0.0; tile * self.heads.len() * self.shape.d_head],
            },
            scores: vec![0.0; self.queries.count * tile],
            more: match self.sequence.keys {
                Side::Rebuilt(_) if self.sequence.shared.is_some() => vec![0.0; self.queries.count * tile],
                _ => Vec::new(),
            },
        };
        for start in tokens.clone().step_by(tile) {
            self.tile(simd, start..tokens.end.min(start + tile), &mut scratch);
        }
    }

    /// Takes in one tile: scores, softmax, weighted sum.
    #[inline(always)]
    fn tile<S: Simd>(&mut self, simd: S, tokens: Range<usize>, scratch: &mut Scratch) {
        let Scratch { latents, rebuilt, scores, more } = scratch;
        let sequence = self.sequence;
        let latents = gather(&sequence.latents, tokens.clone(), latents);
        // Queries before the tile see nothing of it.
        let from = tokens.start.saturating_sub(self.shape.past);
        let (heads, d_head) = (self.heads.clone(), self.shape.d_head);
        match &sequence.keys {
            Side::Absorbed(made) => {
                let keys = latents.columns(sequence.scored(made));
                match self.across {
                    // Every row of all heads sees the tile, or what it does not see is hidden afterwards.
                    Some(across) => {
                        let next = ahead(&sequence.latents, tokens.end..tokens.end + tokens.len());
                        across.scores(simd, keys, next, scores);
                        let (taken, all) = (across.rows(), self.queries.count);
                        let scores = &mut scores[taken * keys.count..all * keys.count];
                        rows::scores(simd, self.queries.span(taken..all), keys, scores, keys.count);
                    }
                    None => self.score(simd, self.queries, 0..heads.len(), from, keys, scores),
                }
            }
            Side::Cached(cached) => {
                for (at, head) in heads.clone().enumerate() {
                    let keys = gather(&cached[head..=head], tokens.clone(), rebuilt);
                    self.score(simd, self.queries, at..at + 1, from, keys, scores);
                }
            }
            Side::Rebuilt(made) => {
                let keys = made.rebuild(latents, heads.start * d_head..heads.end * d_head, rebuilt);
                if let Some(rotated) = &made.rotated {
                    rotated.apply(tokens.clone(), self.shape.left[self.row], d_head, keys);
                }
                let keys = Rows::new(keys, tokens.len(), heads.len() * d_head);
                for at in 0..heads.len() {
                    let keys = keys.columns(at * d_head..(at + 1) * d_head);
                    self.score(simd, self.queries, at..at + 1, from, keys, scores);
                }
                if let Some(shared) = sequence.shared {
                    let rows_a_head = self.shape.rows_a_head();
                    let shared = shared.span(heads.start * rows_a_head..heads.end * rows_a_head);
                    let keys = latents.columns(0..sequence.d_rope());
                    self.score(simd, shared, 0..heads.len(), from, keys, more);
                    for rows in self.blocks(0..heads.len(), from) {
                        let place = rows.start * tokens.len()..rows.end * tokens.len();
                        lanes::add_scaled(&mut scores[place.clone()], &more[place], 1.0);
                    }
                }
            }
        }
        self.weigh(from, tokens.clone(), scores);
        match &sequence.values {
            Side::Absorbed(made) => {
                let values = latents.columns(made.span());
                self.mix(simd, 0..heads.len(), from, values, scores);
            }
            Side::Cached(cached) => {
                for (at, head) in heads.enumerate() {
                    let values = gather(&cached[head..=head], tokens.clone(), rebuilt);
                    self.mix(simd, at..at + 1, from, values, scores);
                }
            }
            Side::Rebuilt(made) => {
                let values = made.rebuild(latents, heads.start * d_head..heads.end * d_head, rebuilt);
                let values = Rows::new(values, tokens.len(), heads.len() * d_head);
                for at in 0..heads.len() {
                    self.mix(simd, at..at + 1, from, values.columns(at * d_head..(at + 1) * d_head), scores);
                }
            }
        }
    }

    /// Scores of some of the unit's kv heads: `q kᵀ`.
    ///
    /// # Shapes
    /// - `queries`: `[rows, width]` of all heads of the unit, `keys`: `[tokens, width]`, `scores`: `[rows, tokens]`
    #[inline(always)]
    fn score<S: Simd>(
        &self,
        simd: S,
        queries: Rows<'_>,
        heads: Range<usize>,
        from: usize,
        keys: Rows<'_>,
        scores: &mut [f32],
    ) {
        for rows in self.blocks(heads, from) {
            let queries = queries.span(rows.clone());
            let out = &mut scores[rows.start * keys.count..rows.end * keys.count];
            rows::scores(simd, queries, keys, out, keys.count);
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
            if let Some(cap) = self.shape.softcap {
                lanes::cap(weights, cap);
            }
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
    fn mix<S: Simd>(&mut self, simd: S, heads: Range<usize>, from: usize, values: Rows<'_>, weights: &[f32]) {
        let (count, width) = (values.count, self.running.width);
        for rows in self.blocks(heads, from) {
            let weights = Rows::new(&weights[rows.start * count..rows.end * count], rows.len(), count);
            let mixed = &mut self.running.mixed[rows.start * width..rows.end * width];
            rows::mix(simd, weights, values, mixed);
        }
    }
}
