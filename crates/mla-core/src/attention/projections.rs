//! How a layer's latents come about and how keys and values are rebuilt from them.
//!
//! The matrices are stored as burn's `Linear` multiplies them, transposed: what the papers call a matrix with
//! orthonormal columns has orthonormal rows here.

use std::ops::Range;

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::Tensor;

use crate::linear::linear;

/// `W_down` and `W_up` of one layer.
#[derive(Module, Debug)]
#[expect(clippy::large_enum_variant, reason = "a model has one a layer, and most often of the larger kind")]
pub enum Projections {
    /// One latent for keys and one for values.
    Split(SplitProjections),
    /// One latent for both.
    Joint(JointProjections),
}

/// `c_k = W_down_k h`, `c_v = W_down_v h`; `K = W_uk c_k + b_k`, `V = W_uv c_v + b_v`. Of normed keys `c_k = W_down_k k̂`.
#[derive(Module, Debug)]
pub struct SplitProjections {
    /// `W_down_kᵀ`: `[d_model, d_latent_k]`; of normed keys `[d_kv, d_latent_k]`.
    pub down_k: Linear,
    /// `W_ukᵀ`: `[d_latent_k, d_kv]`, orthonormal rows; its bias is the donor's b_k, exact.
    pub up_k: Linear,
    /// `W_down_vᵀ`: `[d_model, d_latent_v]`.
    pub down_v: Linear,
    /// `W_uvᵀ`: `[d_latent_v, d_kv]`, orthonormal rows; its bias is the donor's b_v, exact.
    pub up_v: Linear,
}

/// `c = W_down h`; `[K; V] = W_up c + [b_k; b_v]`. Of normed keys `c = W_down [k̂; h]`.
#[derive(Module, Debug)]
pub struct JointProjections {
    /// `W_downᵀ`: `[d_model, d_latent]`; of normed keys `[d_kv + d_model, d_latent]`.
    pub down: Linear,
    /// `[W_uk; W_uv]ᵀ`: `[d_latent, 2 · d_kv]`, orthonormal rows; its bias is the donor's b_k and b_v, exact.
    pub up: Linear,
}

/// What keys and values take from latents that are not their own (cascade).
///
/// `K` gains `X_k [c_v; c_j; …]` and `V` gains `X_v [c_k; c_j; …]`: the other half of the layer's own latent, where it
/// has halves, then the whole latents of earlier layers.
#[derive(Module, Debug)]
pub struct CrossTerms {
    /// `X_kᵀ`: `[columns, d_kv]`, no bias.
    pub key: Linear,
    /// `X_vᵀ`: `[columns, d_kv]`, no bias.
    pub value: Linear,
    /// The earlier layers that are read, ascending.
    #[module(skip)]
    pub reads: Vec<usize>,
}

impl Projections {
    /// What is cached: the latent for keys, then that for values.
    ///
    /// # Shapes
    /// - `x`: `[batch, t, ..]` as [`latent_input`](super::latent_input) gives it → `[batch, t, width]`
    pub fn down(&self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Projections::Split(split) => {
                let (for_keys, for_values) = split.inputs(x);
                Tensor::cat(vec![linear(&split.down_k, for_keys), linear(&split.down_v, for_values)], 2)
            }
            Projections::Joint(joint) => linear(&joint.down, x),
        }
    }

    /// Keys and values from the layer's own latents, biases included.
    ///
    /// # Shapes
    /// - `latents`: `[batch, t, width]` → both `[batch, t, d_kv]`
    pub fn up(&self, latents: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        match self {
            Projections::Split(split) => {
                let [latent_k, latent_v] = split.halves(latents);
                (linear(&split.up_k, latent_k), linear(&split.up_v, latent_v))
            }
            Projections::Joint(joint) => in_two(linear(&joint.up, latents)),
        }
    }
}

impl SplitProjections {
    /// What the latent of keys is made of, and what that of values: the same, or normed keys and `h` behind them.
    fn inputs(&self, x: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        let ([read_k, _], [d_model, _]) = (self.down_k.weight.dims(), self.down_v.weight.dims());
        match x.dims()[2] {
            width if width == d_model => (x.clone(), x),
            width => (x.clone().narrow(2, 0, read_k), x.narrow(2, width - d_model, d_model)),
        }
    }

    /// The latents for keys and for values, apart.
    fn halves(&self, latents: Tensor<3>) -> [Tensor<3>; 2] {
        let [_, d_latent_k] = self.down_k.weight.dims();
        let [_, d_latent_v] = self.down_v.weight.dims();
        [latents.clone().narrow(2, 0, d_latent_k), latents.narrow(2, d_latent_k, d_latent_v)]
    }
}

impl CrossTerms {
    /// What is added to keys and to values.
    ///
    /// # Shapes
    /// - `latents`: `[batch, t, width]`, the layer's own; `earlier`: `[batch, t, ..]` each → both `[batch, t, d_kv]`
    pub fn forward(
        &self,
        own: &Projections,
        latents: Tensor<3>,
        earlier: &[Tensor<3>],
    ) -> (Tensor<3>, Tensor<3>) {
        let read =
            |first: Option<Tensor<3>>| Tensor::cat(first.into_iter().chain(earlier.to_vec()).collect(), 2);
        let (for_keys, for_values) = match own {
            Projections::Split(split) => {
                let [latent_k, latent_v] = split.halves(latents);
                (read(Some(latent_v)), read(Some(latent_k)))
            }
            Projections::Joint(_) => (read(None), read(None)),
        };
        (linear(&self.key, for_keys), linear(&self.value, for_values))
    }
}

/// How keys, or values, are made of a tile of latents: `Σ latents[columns] · weight + bias`.
///
/// A tile is what the layer caches, its latents behind the shared key if it has one, followed by the latents of the layers
/// that it reads.
#[derive(Clone, Debug)]
pub(super) struct Made {
    /// In the order of their columns, which touch.
    pub(super) terms: Vec<Term>,
    /// `[d_kv]`.
    pub(super) bias: Option<Tensor<1>>,
}

/// One matrix of a [`Made`].
#[derive(Clone, Debug)]
pub(super) struct Term {
    /// Columns of the tile.
    pub(super) columns: Range<usize>,
    /// `[columns, d_kv]`.
    pub(super) weight: Tensor<2>,
}

impl Term {
    fn new(start: usize, weight: Tensor<2>) -> Self {
        Self { columns: start..start + weight.dims()[0], weight }
    }
}

impl Made {
    /// The columns of a tile that are read.
    pub(super) fn span(&self) -> Range<usize> {
        let (first, last) = (self.terms.first(), self.terms.last());
        first.map_or(0, |term| term.columns.start)..last.map_or(0, |term| term.columns.end)
    }

    /// Keys or values before the rotary embedding.
    ///
    /// # Shapes
    /// - `tile`: `[batch, t, ..]` → `[batch, t, d_kv]`
    pub(super) fn rebuild(&self, tile: &Tensor<3>) -> Tensor<3> {
        let [batch, t, _] = tile.dims();
        let term = |term: &Term| {
            let read = tile.clone().narrow(2, term.columns.start, term.columns.len());
            read.reshape([batch * t, term.columns.len()]).matmul(term.weight.clone())
        };
        let made = self.terms.iter().map(term).reduce(|sum, part| sum + part);
        let made = made.expect("keys and values are made of something");
        let made = match &self.bias {
            None => made,
            Some(bias) => made + bias.clone().unsqueeze::<2>(),
        };
        let d_kv = made.dims()[1];
        made.reshape([batch, t, d_kv])
    }
}

impl Projections {
    /// Keys (`[0]`) and values (`[1]`) as they are made of a tile whose latents begin at column `first`.
    pub(super) fn made(&self, first: usize, cross: Option<&CrossTerms>) -> [Made; 2] {
        match self {
            Projections::Split(split) => {
                let bias = |up: &Linear| up.bias.as_ref().map(|bias| bias.val());
                let [d_latent_k, _] = split.up_k.weight.dims();
                let mut keys = vec![Term::new(first, split.up_k.weight.val())];
                let mut values = vec![Term::new(first + d_latent_k, split.up_v.weight.val())];
                if let Some(cross) = cross {
                    keys.push(Term::new(first + d_latent_k, cross.key.weight.val()));
                    let own = values[0].columns.end;
                    let weight = cross.value.weight.val();
                    let earlier = weight.dims()[0] - d_latent_k;
                    values.insert(0, Term::new(first, weight.clone().narrow(0, 0, d_latent_k)));
                    if earlier > 0 {
                        values.push(Term::new(own, weight.narrow(0, d_latent_k, earlier)));
                    }
                }
                [
                    Made { terms: keys, bias: bias(&split.up_k) },
                    Made { terms: values, bias: bias(&split.up_v) },
                ]
            }
            Projections::Joint(joint) => {
                let [d_latent, both] = joint.up.weight.dims();
                let d_kv = both / 2;
                let crossed = |cross: &CrossTerms, part: usize| {
                    if part == 0 { cross.key.weight.val() } else { cross.value.weight.val() }
                };
                [0, 1].map(|part| {
                    let own = Term::new(first, joint.up.weight.val().narrow(1, part * d_kv, d_kv));
                    let more = cross.map(|cross| Term::new(first + d_latent, crossed(cross, part)));
                    let bias = joint.up.bias.as_ref().map(|bias| bias.val().narrow(0, part * d_kv, d_kv));
                    Made { terms: std::iter::once(own).chain(more).collect(), bias }
                })
            }
        }
    }
}

/// The halves of the last axis.
fn in_two(x: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
    let half = x.dims()[2] / 2;
    (x.clone().narrow(2, 0, half), x.narrow(2, half, half))
}
