//! Attention over cached latents, a tile of tokens at a time, so that keys and values never exist as a whole.
//!
//! 1. a tile of latents is read from the cache;
//! 2. scores: with rebuilt and rotated keys, or of queries taken to the latents ([`Path`]);
//! 3. online softmax (Milakov & Gimelshein 2018; FlashAttention, Dao et al. 2022): the running maximum, the sum of
//!    exponentials and the weighted sum are brought to the new maximum, then the tile is added;
//! 4. after the last tile, the weighted sum of latents goes through `W_uv`.
//!
//! The oracle is [`LatentAttention::project`] and [`LatentAttention::attend`], which rebuild everything.

use std::ops::Range;

use burn::tensor::Tensor;

use super::cost::{Path, Paths, Work};
use super::frame::Frame;
use super::host;
use super::latent::LatentAttention;
use super::projections::{Made, Term};
use super::scores::{join_heads, split_heads};
use super::trial::if_faster;
use crate::cache::Memory;
use crate::linear::linear;

/// Tokens of a tile.
const TILE: usize = 512;
/// Added to the score of a hidden column: finite, so that a row that sees nothing yet stays a number.
pub(super) const HIDDEN: f32 = -1e30;

/// Who walks through the tokens, and in what steps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walk {
    /// Tokens of a tile of the CPU's own kernel, which goes first where it can; `None` to pass it over.
    pub(crate) host: Option<usize>,
    /// When to take the kernel of CUDA and wgpu.
    pub(crate) cubes: Cubes,
    /// Tokens of a tile of tensors, on any backend.
    pub(crate) tensors: usize,
}

/// When to take the kernel of CUDA and wgpu, of the places where it applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cubes {
    /// Where it measures faster than tiles of tensors.
    IfFaster,
    #[cfg(test)]
    Always,
    #[cfg(test)]
    Never,
}

/// Scaled queries of a pass, a row a query head and new token.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// What the keys of each head are scored with, rotated where those are: `[batch, rows, d_head]`.
    pub(super) heads: Tensor<3>,
    /// What the shared key is scored with: `[batch, rows, d_rope]`.
    pub(super) shared: Option<Tensor<3>>,
}

/// Softmax and weighted sum of the tiles so far, a row a query head and new token.
struct Running {
    /// The largest score: `[batch, rows, 1]`.
    max: Tensor<3>,
    /// The sum of `exp(score − max)`: `[batch, rows, 1]`.
    sum: Tensor<3>,
    /// The sum of `exp(score − max) · value`: `[batch, rows, width]`.
    mixed: Tensor<3>,
}

impl Running {
    /// Before the first tile: the weight that sinks take, and no value.
    ///
    /// # Shapes
    /// - `sinks`: `[batch, rows, 1]`
    fn of_sinks(sinks: Tensor<3>, width: usize) -> Self {
        let [batch, rows, _] = sinks.dims();
        let mixed = Tensor::zeros([batch, rows, width], &sinks.device());
        Self { sum: sinks.ones_like(), max: sinks, mixed }
    }

    /// Takes in a tile.
    ///
    /// # Shapes
    /// - `scores`: `[batch, rows, tile]`; `mix`: `[batch, rows, tile]` → `[batch, rows, width]`
    fn with(so_far: Option<Self>, scores: Tensor<3>, mix: impl FnOnce(Tensor<3>) -> Tensor<3>) -> Self {
        let here = scores.clone().max_dim(2);
        let max = match &so_far {
            Some(so_far) => so_far.max.clone().max_pair(here),
            None => here,
        };
        let weights = (scores - max.clone()).exp();
        let (sum, mixed) = (weights.clone().sum_dim(2), mix(weights));
        match so_far {
            None => Self { max, sum, mixed },
            Some(so_far) => {
                let fade = (so_far.max - max.clone()).exp();
                Self { max, sum: so_far.sum * fade.clone() + sum, mixed: so_far.mixed * fade + mixed }
            }
        }
    }
}

/// Some columns of a tile.
fn columns(tile: &Tensor<3>, columns: &Range<usize>) -> Tensor<3> {
    tile.clone().narrow(2, columns.start, columns.len())
}

impl LatentAttention {
    /// What the layer adds to the residual stream, with a cache.
    ///
    /// # Shapes
    /// - `h`: `[batch, t_q, d_model]` → the same
    pub(super) fn attend_cached(
        &self,
        h: Tensor<3>,
        frame: &Frame,
        layer: usize,
        memory: &mut Memory<'_>,
    ) -> Tensor<3> {
        memory.store(layer, frame.past(), self.compress(h.clone(), frame));
        let paths = self.work(frame, layer).paths();
        self.attend_along(
            paths,
            Walk { host: Some(host::TILE), cubes: Cubes::IfFaster, tensors: TILE },
            h,
            frame,
            layer,
            memory,
        )
    }

    /// What this layer has to do in a pass, a sequence.
    fn work(&self, frame: &Frame, layer: usize) -> Work {
        Work {
            n_heads: self.queries.n_heads,
            n_kv_heads: self.n_kv_heads,
            d_head: self.d_head(),
            read_k: self.made_keys().span().len(),
            read_v: self.made_values().span().len(),
            keys_rebuilt: self.rotates(frame, layer) || self.key_bias_counts(),
            t_q: frame.t_q(),
            t_kv: frame.visible(layer).len(),
        }
    }

    /// Whether a rotation stands between what is rebuilt and the score.
    pub(super) fn rotates(&self, frame: &Frame, layer: usize) -> bool {
        self.shared.is_none() && frame.table(layer).is_some()
    }

    /// Whether scores depend on the bias of keys, which a plain softmax removes.
    pub(crate) fn key_bias_counts(&self) -> bool {
        self.made_keys().bias.is_some() && !self.scores.is_plain()
    }

    /// Width of a head.
    pub(super) fn d_head(&self) -> usize {
        self.queries.proj.weight.dims()[1] / self.queries.n_heads
    }

    /// [`attend_cached`](Self::attend_cached) once the new latents are in `memory`, along given paths.
    pub(crate) fn attend_along(
        &self,
        paths: Paths,
        walk: Walk,
        h: Tensor<3>,
        frame: &Frame,
        layer: usize,
        memory: &Memory<'_>,
    ) -> Tensor<3> {
        let [batch, t_q, _] = h.dims();
        let (d_head, n_heads) = (self.d_head(), self.queries.n_heads);
        let q = self.asked(h, frame, layer);
        let on_cubes = || self.heads_on_cubes(&q, frame, layer, memory);
        let by_tiles = || self.heads_by_tiles(paths, walk.tensors, q.clone(), frame, layer, memory);
        let heads = walk.host.and_then(|tile| self.heads_on_host(paths, tile, &q, frame, layer, memory));
        let heads = heads.or_else(|| match walk.cubes {
            _ if !self.suits_cubes(paths, &q.heads) => None,
            Cubes::IfFaster => {
                if_faster(batch, self.work(frame, layer), &q.heads.device(), on_cubes, by_tiles)
            }
            #[cfg(test)]
            Cubes::Always => on_cubes(),
            #[cfg(test)]
            Cubes::Never => None,
        });
        let heads = heads.unwrap_or_else(by_tiles);
        linear(&self.o_proj, join_heads(heads.reshape([batch, n_heads, t_q, d_head])))
    }

    /// Queries as they are scored.
    ///
    /// # Shapes
    /// - `h`: `[batch, t_q, d_model]`
    fn asked(&self, h: Tensor<3>, frame: &Frame, layer: usize) -> Asked {
        let rows = |q: Tensor<4>| {
            let [batch, n_heads, t_q, width] = q.dims();
            self.scores.scaled(q.reshape([batch, n_heads * t_q, width]))
        };
        match &self.shared {
            None => Asked { heads: rows(self.queries.rotated(h, frame, layer)), shared: None },
            Some(shared) => {
                let q = self.queries.heads(h);
                Asked {
                    shared: Some(rows(shared.queries(q.clone(), self.n_kv_heads, frame))),
                    heads: rows(q),
                }
            }
        }
    }

    /// Weighted means of values over all that a pass may see.
    ///
    /// # Shapes
    /// - → `[batch, n_heads · t_q, d_head]`
    fn heads_by_tiles(
        &self,
        paths: Paths,
        tile: usize,
        q: Asked,
        frame: &Frame,
        layer: usize,
        memory: &Memory<'_>,
    ) -> Tensor<3> {
        let [batch, rows, _] = q.heads.dims();
        let (keys, values) = (self.made_keys(), self.made_values());
        let scored = self.scored(&keys);
        let absorbed = match paths.keys {
            Path::Rebuilt => None,
            // The bias of K adds the same to all scores of a query: softmax does not see it.
            Path::Absorbed => Some(self.taken_to_latents(&keys, &q)),
        };
        let mut running = self.scores.sink_rows(frame.t_q()).map(|sinks| {
            let width = match paths.values {
                Path::Absorbed => values.span().len(),
                Path::Rebuilt => self.d_head(),
            };
            Running::of_sinks(sinks.expand([batch, rows, 1]), width)
        });
        let visible = frame.visible(layer);
        for start in visible.clone().step_by(tile) {
            let tokens = start..visible.end.min(start + tile);
            let tile = self.tile(layer, tokens.clone(), memory);
            let scores = match &absorbed {
                Some(q) => q.clone().matmul(columns(&tile, &scored).transpose()),
                None => {
                    let k = split_heads(keys.rebuild(&tile), self.n_kv_heads);
                    let k = match self.shared {
                        None => frame.rotate_columns(layer, k, tokens.clone()),
                        Some(_) => k,
                    };
                    let scores = self.by_kv_head(q.heads.clone()).matmul(k.transpose());
                    let scores = scores.reshape([batch, rows, tokens.len()]);
                    match &q.shared {
                        None => scores,
                        Some(q) => scores + q.clone().matmul(columns(&tile, &(0..self.d_rope())).transpose()),
                    }
                }
            };
            let scores = self.scores.capped(scores);
            let scores = match frame.hidden(layer, tokens.clone()) {
                None => scores,
                Some(hidden) => {
                    let apart = scores.reshape([batch, self.queries.n_heads, frame.t_q(), tokens.len()]);
                    (apart + hidden.float() * HIDDEN).reshape([batch, rows, tokens.len()])
                }
            };
            running = Some(Running::with(running, scores, |weights| match paths.values {
                Path::Absorbed => weights.matmul(columns(&tile, &values.span())),
                Path::Rebuilt => {
                    let v = split_heads(values.rebuild(&tile), self.n_kv_heads);
                    self.by_kv_head(weights).matmul(v).reshape([batch, rows, self.d_head()])
                }
            }));
        }
        let Running { max, sum, mixed } = running.expect("a pass has at least one token");
        let mean = mixed / sum.clone();
        match paths.values {
            Path::Rebuilt => mean,
            Path::Absorbed => {
                let sinks = self.scores.sink_rows(frame.t_q());
                let weight = sinks.map(|sinks| (sinks - max).exp() / sum).map(|sunk| -sunk + 1.0);
                self.taken_to_values(&values, mean, weight)
            }
        }
    }

    /// What keys and values of some tokens are made of: what the layer caches, then the latents of the layers it reads.
    fn tile(&self, layer: usize, tokens: Range<usize>, memory: &Memory<'_>) -> Tensor<3> {
        let own = memory.latents(layer, tokens.clone());
        match &self.cross {
            None => own,
            Some(cross) => {
                let earlier = cross.reads.iter().map(|&j| memory.latents(j, tokens.clone()));
                Tensor::cat(std::iter::once(own).chain(earlier).collect(), 2)
            }
        }
    }

    /// The rows that read one kv head, apart: `[batch, rows, n]` → `[batch, n_kv_heads, rows / n_kv_heads, n]`.
    fn by_kv_head(&self, x: Tensor<3>) -> Tensor<4> {
        let [batch, rows, n] = x.dims();
        x.reshape([batch, self.n_kv_heads, rows / self.n_kv_heads, n])
    }

    /// The columns of a tile that scores are made of where keys are absorbed: those behind keys, and the shared key before them.
    pub(super) fn scored(&self, keys: &Made) -> Range<usize> {
        let span = keys.span();
        if self.shared.is_some() { 0..span.end } else { span }
    }

    /// `W_ukᵀ q`, behind what reads the shared key.
    ///
    /// # Shapes
    /// - → `[batch, rows, scored]`
    pub(super) fn taken_to_latents(&self, keys: &Made, q: &Asked) -> Tensor<3> {
        let [batch, rows, _] = q.heads.dims();
        let by_head = self.by_kv_head(q.heads.clone());
        let term = |term: &Term| {
            let part = by_head.clone().matmul(self.heads_of(term).transpose());
            part.reshape([batch, rows, term.columns.len()])
        };
        Tensor::cat(q.shared.iter().cloned().chain(keys.terms.iter().map(term)).collect(), 2)
    }

    /// `W_uv c + b_v` for weighted sums of latents; `weight` is the sum of the weights where it is not 1, and counts for the
    /// bias.
    ///
    /// # Shapes
    /// - `mixed`: `[batch, rows, span]`, `weight`: `[batch, rows, 1]` → `[batch, rows, d_head]`
    pub(super) fn taken_to_values(
        &self,
        values: &Made,
        mixed: Tensor<3>,
        weight: Option<Tensor<3>>,
    ) -> Tensor<3> {
        let [batch, rows, _] = mixed.dims();
        let mixed = self.by_kv_head(mixed);
        let first = values.span().start;
        let term = |term: &Term| {
            let part = mixed.clone().narrow(3, term.columns.start - first, term.columns.len());
            part.matmul(self.heads_of(term))
        };
        let made = values.terms.iter().map(term).reduce(|sum, part| sum + part);
        let made = made.expect("values are made of something");
        let d_head = made.dims()[3];
        let made = match &values.bias {
            None => made,
            Some(bias) => {
                let bias = bias.clone().reshape([1, self.n_kv_heads, 1, d_head]);
                match weight {
                    None => made + bias,
                    Some(weight) => made + bias * self.by_kv_head(weight),
                }
            }
        };
        made.reshape([batch, rows, d_head])
    }

    /// A term's matrix by kv heads: `[1, n_kv_heads, columns, d_head]`.
    fn heads_of(&self, term: &Term) -> Tensor<4> {
        split_heads(term.weight.clone().unsqueeze::<3>(), self.n_kv_heads)
    }
}
