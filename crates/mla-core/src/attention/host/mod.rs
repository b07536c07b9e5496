//! Attention on the CPU: over slices of the cache where they lie, in one walk, without a tensor between.
//!
//! The same mathematics as `tiled.rs`, which is the oracle and what every other backend runs. What is gained is that a
//! tile (rebuilt keys, scores, weights) stays in the processor's cache, that the cache is read in place, and that one token
//! against a long context is shared between threads: a thread takes a span of tokens, and the spans' running softmaxes
//! are merged at the end (Flash-Decoding, Dao et al. 2023).
//!
//! Products are `faer`'s, one thread each; vector code is written as loops over arrays that `pulp` has compiled for what the
//! processor has.

mod kernel;
mod lanes;
mod made;
mod running;
mod tokens;

use burn::tensor::{Tensor, TensorData};

use super::cost::{Path, Paths};
use super::frame::Frame;
use super::latent::LatentAttention;
use super::projections;
use super::scores::Scores;
use super::tiled::Asked;
use crate::cache::Memory;
use crate::host::Operand;
use kernel::{Sequence, Shape, Side};
use made::{Made, Rotated};
use tokens::Cached;

/// Tokens of a tile: rebuilt keys of 4 kv heads of 64 numbers fill 128 KB.
pub(super) const TILE: usize = 128;

/// Matrices and bias of a [`projections::Made`].
struct Matrices {
    terms: Vec<(std::ops::Range<usize>, Operand)>,
    bias: Option<Operand>,
}

impl Matrices {
    fn of(made: &projections::Made) -> Option<Self> {
        let terms = made.terms.iter().map(|term| Some((term.columns.clone(), Operand::rows(&term.weight)?)));
        let bias = match &made.bias {
            None => None,
            Some(bias) => Some(Operand::rows(bias)?),
        };
        Some(Self { terms: terms.collect::<Option<_>>()?, bias })
    }

    fn side<'a>(&'a self, path: Path, rotated: Option<Rotated<'a>>) -> Side<'a> {
        let made = Made {
            terms: self.terms.iter().map(|(columns, weight)| (columns.clone(), weight.at(&[]))).collect(),
            bias: self.bias.as_ref().map(Operand::vector),
            rotated,
        };
        match path {
            Path::Absorbed => Side::Absorbed(made),
            Path::Rebuilt => Side::Rebuilt(made),
        }
    }
}

impl LatentAttention {
    /// Weighted means of values over all that a pass may see. `None` where the tensors are not the CPU's.
    ///
    /// # Shapes
    /// - → `[batch, n_heads · t_q, d_head]`
    pub(super) fn heads_on_host(
        &self,
        paths: Paths,
        tile: usize,
        q: &Asked,
        frame: &Frame,
        layer: usize,
        memory: &Memory<'_>,
    ) -> Option<Tensor<3>> {
        let [batch, rows, d_head] = q.heads.dims();
        let queries = Operand::rows(&q.heads)?;
        let shared = match &q.shared {
            None => None,
            Some(shared) => Some(Operand::rows(shared)?),
        };
        let reads = self.cross.iter().flat_map(|cross| cross.reads.iter().copied());
        let latents = std::iter::once(layer).chain(reads);
        let latents: Vec<_> = latents
            .map(|layer| {
                let first = memory.first(layer);
                Cached::latents(memory.kept(layer, first..frame.t_kv()), first)
            })
            .collect::<Option<_>>()?;
        let (keys, values) = (Matrices::of(&self.made_keys())?, Matrices::of(&self.made_values())?);
        let turning = frame.table(layer).filter(|_| self.rotates(frame, layer));
        let table = match turning {
            None => None,
            Some(table) => Some((Operand::rows(&table.cos)?, Operand::rows(&table.sin)?)),
        };
        let shape = shape(&self.scores, frame, layer, tile, [self.queries.n_heads, self.n_kv_heads, d_head])?;
        let sequence = |row: usize| {
            let rotated = table.as_ref().zip(turning).map(|((cos, sin), table)| {
                let positions = table.rows_of(row);
                Rotated { cos: cos.at(&[]).span(positions.clone()), sin: sin.at(&[]).span(positions) }
            });
            Sequence {
                queries: queries.at(&[row]),
                shared: shared.as_ref().map(|shared| shared.at(&[row])),
                latents: latents.iter().map(|latents| latents.at(&[row])).collect(),
                keys: keys.side(paths.keys, rotated),
                values: values.side(paths.values, None),
            }
        };
        let sequences: Vec<_> = (0..batch).map(sequence).collect();
        let heads = kernel::attend(&shape, &sequences);
        Some(Tensor::from_data(TensorData::new(heads, [batch, rows, d_head]), &q.heads.device()))
    }
}

/// Weighted means of cached values, which begin with token `first`. `None` where the tensors are not the CPU's.
///
/// # Shapes
/// - `q`: `[batch, n_heads, t_q, d_head]`, rotated, `k`, `v`: `[batch, n_kv_heads, t_kv − first, d_head]` →
///   `[batch, n_heads, t_q, d_head]`
pub(super) fn attend_cached(
    scores: &Scores,
    q: Tensor<4>,
    k: &Tensor<4>,
    v: &Tensor<4>,
    first: usize,
    frame: &Frame,
    layer: usize,
) -> Option<Tensor<4>> {
    let ([batch, n_heads, t_q, d_head], n_kv_heads) = (q.dims(), k.dims()[1]);
    let (k, v) = (Cached::float(k, first)?, Cached::float(v, first)?);
    let device = q.device();
    let q = scores.scaled(q.reshape([batch, n_heads * t_q, d_head]));
    let queries = Operand::rows(&q)?;
    let sequence = |row: usize| {
        let [keys, values] =
            [&k, &v].map(|side| Side::Cached((0..n_kv_heads).map(|head| side.at(&[row, head])).collect()));
        Sequence { queries: queries.at(&[row]), shared: None, latents: Vec::new(), keys, values }
    };
    let sequences: Vec<_> = (0..batch).map(sequence).collect();
    let shape = shape(scores, frame, layer, TILE, [n_heads, n_kv_heads, d_head])?;
    let heads = kernel::attend(&shape, &sequences);
    Some(Tensor::from_data(TensorData::new(heads, [batch, n_heads, t_q, d_head]), &device))
}

/// `None` where the sinks are not the CPU's.
fn shape(
    scores: &Scores,
    frame: &Frame,
    layer: usize,
    tile: usize,
    [n_heads, n_kv_heads, d_head]: [usize; 3],
) -> Option<Shape> {
    let sinks = match &scores.sinks {
        None => None,
        Some(sinks) => Some(Operand::rows(&sinks.val())?.vector().to_vec()),
    };
    Some(Shape {
        n_heads,
        n_kv_heads,
        d_head,
        tile,
        t_q: frame.t_q(),
        past: frame.past(),
        window: frame.window(layer),
        softcap: scores.softcap.map(|cap| cap as f32),
        sinks,
        left: frame.padding().columns().to_vec(),
    })
}
