//! What training moves: the matrices that a conversion put in the place of `W_k` and `W_v`.

use std::collections::{HashMap, HashSet};

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::Tensor;
use mla_core::decoder::{LatentPart, Serves};
use mla_core::{Attention, Decoder, DecoderConfig, LayerSlot, Slot};

/// What a matrix has to obey.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Constraint {
    /// Nothing: `W_down`, what makes a shared key, and cascade's cross terms.
    Free,
    /// Orthonormal columns: `W_up`. As burn multiplies it, `[d_latent, d_kv]`, those are rows.
    Orthonormal,
}

/// One matrix that trains.
#[derive(Clone, Debug, PartialEq)]
pub struct Factor {
    /// Its slot; of a `W_up` that layers share, that of the first.
    pub slot: Slot,
    /// Its parameter in the decoder: one, even where layers share it.
    pub id: ParamId,
    /// What it has to obey.
    pub constraint: Constraint,
    /// As burn multiplies it: `[d_in, d_out]`.
    pub shape: [usize; 2],
}

impl Factor {
    /// Numbers in it.
    pub fn size(&self) -> usize {
        self.shape[0] * self.shape[1]
    }
}

/// Every matrix that trains, layer by layer, each once.
pub fn factors(decoder: &Decoder) -> Vec<Factor> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for (layer, block) in decoder.blocks.iter().enumerate() {
        let Attention::Latent(attention) = &block.attention else { continue };
        for (slot, linear) in attention.factors() {
            if !seen.insert(linear.weight.id) {
                continue;
            }
            let constraint = match slot {
                LayerSlot::UpKey | LayerSlot::UpValue | LayerSlot::UpJoint => Constraint::Orthonormal,
                _ => Constraint::Free,
            };
            let (id, shape) = (linear.weight.id, linear.weight.dims());
            found.push(Factor { slot: Slot::Layer(layer, slot), id, constraint, shape });
        }
    }
    found
}

/// Numbers that train in a model of this graph, counted from its configuration alone.
pub fn trainable(config: &DecoderConfig) -> usize {
    let of_layer = |layer: usize| {
        let latent = config.latent(layer)?;
        let part = |part: LatentPart| {
            let up = if latent.up_of == layer { part.d_up(config.d_kv()) } else { 0 };
            part.width * (config.read_by(layer, part).len() + up)
        };
        let parts: usize = latent.width.parts().into_iter().map(part).sum();
        let cross: usize = config.cross_columns(layer).into_iter().flatten().sum();
        // The shared key reads what keys are made of.
        let keys = LatentPart { serves: Serves::Keys, width: 0 };
        let shared = latent.d_rope() * config.read_by(layer, keys).len();
        Some(parts + shared + config.d_kv() * cross)
    };
    (0..config.n_layers()).filter_map(of_layer).sum()
}

/// The decoder with some parameters replaced, everywhere they are used; all else stays as it is, bit for bit.
pub fn replace(mut decoder: Decoder, values: HashMap<ParamId, Tensor<2>>) -> Decoder {
    let mut replace = Replace { values };
    decoder.blocks = decoder.blocks.into_iter().map(|block| block.map(&mut replace)).collect();
    decoder
}

struct Replace {
    values: HashMap<ParamId, Tensor<2>>,
}

impl ModuleMapper for Replace {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, tensor, mapper) = param.consume();
        let tensor = match self.values.get(&id) {
            // Only matrices are ever asked for, so the rank is 2 already.
            Some(value) => value.clone().reshape(tensor.dims()),
            None => tensor,
        };
        Param::from_mapped_value(id, tensor, mapper)
    }
}

/// Puts a module onto the tape: the parameters in `ids` as leaves that have gradients, all others as constants.
#[derive(Debug)]
pub(crate) struct Track<'a> {
    pub(crate) ids: &'a HashSet<ParamId>,
}

impl ModuleMapper for Track<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, tensor, mapper) = param.consume();
        let tensor = Tensor::from_inner(tensor);
        let tensor = if self.ids.contains(&id) { tensor.require_grad() } else { tensor };
        Param::from_mapped_value(id, tensor, mapper)
    }
}
