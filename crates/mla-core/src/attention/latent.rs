//! Multi-Head Latent Attention: what is cached is `c = W_down h`, nothing else.
//!
//! Source: DeepSeek-V2 2024, §2.1. Ours is fitted after training: the rotary embedding is applied to the rebuilt key, unless the
//! layer has a [`SharedKey`] as DeepSeek's has; keys and values may have a latent each, and a layer may read the latents of
//! earlier layers ([`CrossTerms`]).

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::Tensor;

use super::frame::Frame;
use super::inputs::{Keys, Queries, latent_input};
use super::projections::{CrossTerms, Made, Projections};
use super::scores::{Scores, split_heads};
use super::shared::SharedKey;
use crate::cache::Memory;
use crate::linear::linear;
use crate::weights::{LayerSlot, Part};

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
    /// The rotated key that all heads share; with it, the keys that are made of latents are not rotated.
    pub shared: Option<SharedKey>,
    /// How queries and keys become weights.
    pub scores: Scores,
    /// `[n_heads · d_head, d_model]`.
    pub o_proj: Linear,
    /// Key/value heads.
    pub n_kv_heads: usize,
}

/// Keys and values of some tokens, rebuilt from latents, biases included.
#[derive(Clone, Debug)]
pub struct KeysValues {
    /// Before the rotary embedding, if there is one: `[batch, t, d_kv]`.
    pub keys: Tensor<3>,
    /// `[batch, t, d_kv]`.
    pub values: Tensor<3>,
    /// The rotated key that all heads share: `[batch, t, d_rope]`.
    pub shared: Option<Tensor<3>>,
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
        if let Some(shared) = &self.shared {
            found.push((LayerSlot::DownShared(Part::Weight), &shared.down));
        }
        found
    }

    /// What is cached of new tokens: the shared key, where there is one, and the latents.
    ///
    /// # Shapes
    /// - `h`: `[batch, t, d_model]` → `[batch, t, width]`
    pub fn compress(&self, h: Tensor<3>, frame: &Frame) -> Tensor<3> {
        let x = latent_input(self.keys.as_ref(), h);
        match &self.shared {
            None => self.projections.down(x),
            Some(shared) => Tensor::cat(vec![shared.keys(x.clone(), frame), self.projections.down(x)], 2),
        }
    }

    /// Numbers before the latent in what is cached.
    pub(super) fn d_rope(&self) -> usize {
        self.shared.as_ref().map_or(0, SharedKey::d_rope)
    }

    /// Keys and values from what is cached.
    ///
    /// # Shapes
    /// - `cached`: `[batch, t, width]`, the layer's own; `earlier`: `[batch, t, ..]` each, those of the layers that it
    ///   reads, ascending
    pub fn rebuild(&self, cached: Tensor<3>, earlier: &[Tensor<3>]) -> KeysValues {
        let (d_rope, width) = (self.d_rope(), cached.dims()[2]);
        let shared = self.shared.as_ref().map(|_| cached.clone().narrow(2, 0, d_rope));
        let latents = if d_rope == 0 { cached } else { cached.narrow(2, d_rope, width - d_rope) };
        let (mut keys, mut values) = self.projections.up(latents.clone());
        if let Some(cross) = &self.cross {
            let (more_k, more_v) = cross.forward(&self.projections, latents, earlier);
            (keys, values) = (keys + more_k, values + more_v);
        }
        KeysValues { keys, values, shared }
    }

    /// Keys and values of all tokens that the pass may see. What is cached of the new ones goes into `memory`.
    ///
    /// # Shapes
    /// - `h`: `[batch, t_q, d_model]` → of `t_kv` tokens
    pub fn project(&self, h: Tensor<3>, frame: &Frame, layer: usize, memory: &mut Memory<'_>) -> KeysValues {
        let latents = memory.append(layer, frame.past(), self.compress(h, frame));
        let reads = self.cross.iter().flat_map(|cross| &cross.reads);
        let earlier: Vec<_> = reads.map(|&earlier| memory.latents(earlier, 0..frame.t_kv())).collect();
        self.rebuild(latents, &earlier)
    }

    /// What the layer adds to the residual stream, given keys and values from [`project`](Self::project).
    ///
    /// # Shapes
    /// - `h`: `[batch, t_q, d_model]`, `known`: of `t_kv` tokens → `[batch, t_q, d_model]`
    pub fn attend(&self, h: Tensor<3>, known: KeysValues, frame: &Frame, layer: usize) -> Tensor<3> {
        let k = split_heads(known.keys, self.n_kv_heads);
        let v = split_heads(known.values, self.n_kv_heads);
        let (q, k) = match (&self.shared, known.shared) {
            (Some(shared), Some(key)) => {
                let q = self.queries.heads(h);
                let reading = shared.queries(q.clone(), self.n_kv_heads, frame);
                let [batch, t_kv, d_rope] = key.dims();
                let key = key.unsqueeze_dim::<4>(1).expand([batch, self.n_kv_heads, t_kv, d_rope]);
                (Tensor::cat(vec![reading, q], 3), Tensor::cat(vec![key, k], 3))
            }
            _ => {
                let q = self.queries.rotated(h, frame, layer);
                (q, frame.rotate_columns(layer, k, 0..frame.t_kv()))
            }
        };
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
                let known = self.project(h.clone(), frame, layer, memory);
                self.attend(h, known, frame, layer)
            }
            Memory::Cache(_) => self.attend_cached(h, frame, layer, memory),
        }
    }

    /// How keys are made of a tile of what is cached.
    pub(super) fn made_keys(&self) -> Made {
        let [keys, _] = self.projections.made(self.d_rope(), self.cross.as_ref());
        keys
    }

    /// How values are made of a tile of what is cached.
    pub(super) fn made_values(&self) -> Made {
        let [_, values] = self.projections.made(self.d_rope(), self.cross.as_ref());
        values
    }
}
