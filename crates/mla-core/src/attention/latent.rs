//! Multi-Head Latent Attention: what is cached is `c = W_down h`, nothing else.
//!
//! Source: DeepSeek-V2 2024, §2.1. Ours is fitted after training, so the rotary embedding is applied to the rebuilt key,
//! keys and values may have a latent each, and a layer may read the latents of earlier layers ([`CrossTerms`]).

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::Tensor;

use super::frame::Frame;
use super::inputs::{Keys, Queries, latent_input};
use super::projections::{CrossTerms, Made, Projections};
use super::scores::{Scores, split_heads};
use crate::cache::Memory;
use crate::linear::linear;
use crate::weights::LayerSlot;

/// Attention that caches latents and rebuilds keys and values from them.
#[derive(Module, Debug)]
pub struct LatentAttention {
    /// `W_q`, and what follows it.
    pub queries: Queries,
    /// `W_k` and its norm, where keys are normed before they are compressed.
    pub keys: Option<Keys>,
    /// To the latents and back.
    pub projections: Projections,
    /// What is read beside a key's or a value's own latent.
    pub cross: Option<CrossTerms>,
    /// How queries and keys become weights.
    pub scores: Scores,
    /// `[n_heads · d_head, d_model]`.
    pub o_proj: Linear,
    /// Key/value heads.
    pub n_kv_heads: usize,
}

impl LatentAttention {
    /// The matrices that a conversion put in the place of `W_k` and `W_v`, by their slots: all that training moves.
    ///
    /// A `W_up` that layers share is the same parameter in each.
    pub fn factors(&self) -> Vec<(LayerSlot, &Linear)> {
        let mut found = match &self.projections {
            Projections::Split(split) => vec![
                (LayerSlot::DownKey, &split.down_k),
                (LayerSlot::UpKey, &split.up_k),
                (LayerSlot::DownValue, &split.down_v),
                (LayerSlot::UpValue, &split.up_v),
            ],
            Projections::Joint(joint) => {
                vec![(LayerSlot::DownJoint, &joint.down), (LayerSlot::UpJoint, &joint.up)]
            }
        };
        if let Some(cross) = &self.cross {
            found.extend([(LayerSlot::CrossKey, &cross.key), (LayerSlot::CrossValue, &cross.value)]);
        }
        found
    }

    /// The latents of new tokens.
    ///
    /// # Shapes
    /// - `h`: `[batch, t, d_model]` → `[batch, t, width]`
    pub fn compress(&self, h: Tensor<3>) -> Tensor<3> {
        self.projections.down(latent_input(self.keys.as_ref(), h))
    }

    /// Keys and values before the rotary embedding, biases included.
    ///
    /// # Shapes
    /// - `latents`: `[batch, t, width]`, the layer's own; `earlier`: `[batch, t, ..]` each, those of the layers that it
    ///   reads, ascending → both `[batch, t, d_kv]`
    pub fn rebuild(&self, latents: Tensor<3>, earlier: &[Tensor<3>]) -> (Tensor<3>, Tensor<3>) {
        let Some(cross) = &self.cross else { return self.projections.up(latents) };
        let (more_k, more_v) = cross.forward(&self.projections, latents.clone(), earlier);
        let (k, v) = self.projections.up(latents);
        (k + more_k, v + more_v)
    }

    /// Keys and values of all tokens that the pass may see, before the rotary embedding, biases included. The latents of
    /// the new ones go into `memory`.
    ///
    /// # Shapes
    /// - `h`: `[batch, t_q, d_model]` → both `[batch, t_kv, d_kv]`
    pub fn project(
        &self,
        h: Tensor<3>,
        frame: &Frame,
        layer: usize,
        memory: &mut Memory<'_>,
    ) -> (Tensor<3>, Tensor<3>) {
        let latents = memory.append(layer, frame.past(), self.compress(h));
        let reads = self.cross.iter().flat_map(|cross| &cross.reads);
        let earlier: Vec<_> = reads.map(|&earlier| memory.latents(earlier, 0..frame.t_kv())).collect();
        self.rebuild(latents, &earlier)
    }

    /// What the layer adds to the residual stream, given keys and values from [`project`](Self::project).
    ///
    /// # Shapes
    /// - `h`: `[batch, t_q, d_model]`, `k`, `v`: `[batch, t_kv, d_kv]` → `[batch, t_q, d_model]`
    pub fn attend(&self, h: Tensor<3>, k: Tensor<3>, v: Tensor<3>, frame: &Frame, layer: usize) -> Tensor<3> {
        let q = self.queries.rotated(h, frame, layer);
        let k = frame.rotate_columns(layer, split_heads(k, self.n_kv_heads), 0..frame.t_kv());
        let v = split_heads(v, self.n_kv_heads);
        linear(&self.o_proj, self.scores.attend(q, k, v, frame.sight(layer, 0)))
    }

    /// # Shapes
    /// - `h`: `[batch, t_q, d_model]` → the same
    pub(super) fn forward(
        &self,
        h: Tensor<3>,
        frame: &Frame,
        layer: usize,
        memory: &mut Memory<'_>,
    ) -> Tensor<3> {
        match memory {
            // A pass without a cache holds its keys and values for a tape, and no longer than the layer.
            Memory::Pass(_) => {
                let (k, v) = self.project(h.clone(), frame, layer, memory);
                self.attend(h, k, v, frame, layer)
            }
            Memory::Cache(_) => self.attend_cached(h, frame, layer, memory),
        }
    }

    /// How keys are made of a tile of latents.
    pub(super) fn made_keys(&self) -> Made {
        let [keys, _] = self.projections.made(self.cross.as_ref());
        keys
    }

    /// How values are made of a tile of latents.
    pub(super) fn made_values(&self) -> Made {
        let [_, values] = self.projections.made(self.cross.as_ref());
        values
    }
}
