//! A second model beside one that is loaded: what both have alike is in memory once.
//!
//! A converted model and its donor differ in `W_k` and `W_v` alone. Whoever needs both, a teacher and its student or two
//! models that are compared, would else hold every other matrix twice. Nothing is assumed: a tensor is shared when it
//! has the same shape and the same numbers.

use std::collections::VecDeque;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::nn::Linear;
use burn::tensor::{DType, Device, Tensor};

use super::reader::WeightDtype;
use super::{Block, Decoder};
use crate::attention::{Attention, Queries, Scores};
use crate::source::{SourceError, WeightSource};

impl Decoder {
    /// Loads a whole model beside `other`, a block at a time; every tensor outside K and V that equals `other`'s in its
    /// place is `other`'s own parameter. Large matrices are held in the type in which `other` holds its own. At most one block is held
    /// twice on the way, and the embedding.
    ///
    /// # Errors
    /// When the source fails.
    pub fn load_beside<S: WeightSource>(
        source: &S,
        device: &Device,
        other: &Decoder,
    ) -> Result<Self, SourceError> {
        let beside = |block: Block, layer: usize| match other.blocks.get(layer) {
            Some(twin) => block.shared(twin),
            None => block,
        };
        let weights = match other.tokens.weight.val().dtype() {
            DType::F32 => WeightDtype::F32,
            _ => WeightDtype::Stored,
        };
        let loaded = Self::load_with(source, device, weights, beside)?;
        Ok(Self {
            tokens: shared(loaded.tokens, &other.tokens),
            positions: shared(loaded.positions, &other.positions),
            final_norm: shared(loaded.final_norm, &other.final_norm),
            head: shared(loaded.head, &other.head),
            ..loaded
        })
    }
}

impl Block {
    /// With what equals another block's taken from there.
    fn shared(self, twin: &Self) -> Self {
        let (queries, scores, o_proj) = outer(&twin.attention);
        let attention = match self.attention {
            Attention::Grouped(mut attention) => {
                attention.queries = shared(attention.queries, queries);
                attention.scores = shared(attention.scores, scores);
                attention.o_proj = shared(attention.o_proj, o_proj);
                Attention::Grouped(attention)
            }
            Attention::Latent(mut attention) => {
                attention.queries = shared(attention.queries, queries);
                attention.keys = attention.keys.map(|keys| match &twin.attention {
                    Attention::Grouped(twin) => shared(keys, &twin.keys),
                    Attention::Latent(twin) => match &twin.keys {
                        Some(twin) => shared(keys, twin),
                        None => keys,
                    },
                });
                attention.scores = shared(attention.scores, scores);
                attention.o_proj = shared(attention.o_proj, o_proj);
                Attention::Latent(attention)
            }
        };
        Self {
            input_norm: shared(self.input_norm, &twin.input_norm),
            attention,
            attended_norm: shared(self.attended_norm, &twin.attended_norm),
            mlp_norm: shared(self.mlp_norm, &twin.mlp_norm),
            mlp: shared(self.mlp, &twin.mlp),
            mlp_out_norm: shared(self.mlp_out_norm, &twin.mlp_out_norm),
            kind: self.kind,
            residual_scale: self.residual_scale,
        }
    }
}

/// What every attention has, whatever it caches: queries, scores and `W_o`.
fn outer(attention: &Attention) -> (&Queries, &Scores, &Linear) {
    match attention {
        Attention::Grouped(attention) => (&attention.queries, &attention.scores, &attention.o_proj),
        Attention::Latent(attention) => (&attention.queries, &attention.scores, &attention.o_proj),
    }
}

/// A module, with the tensors that equal `other`'s in the same place taken from there.
fn shared<M: Module>(module: M, other: &M) -> M {
    let mut tensors = Tensors(VecDeque::new());
    other.visit(&mut tensors);
    module.map(&mut tensors)
}

/// A module's parameters, flat, in the order in which modules are walked.
struct Tensors(VecDeque<(ParamId, Tensor<1>)>);

impl ModuleVisitor for Tensors {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        // A contiguous tensor's numbers are not copied by another view of them.
        self.0.push_back((param.id, param.val().flatten::<1>(0, D - 1)));
    }
}

impl ModuleMapper for Tensors {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, tensor, mapper) = param.consume();
        let is_alike = |twin: &Tensor<1>| {
            twin.dims()[0] == tensor.shape().num_elements() && twin.dtype() == tensor.dtype()
        };
        let twin = self.0.pop_front().filter(|(_, twin)| is_alike(twin));
        let (id, tensor) = match twin.map(|(id, twin)| (id, twin.reshape(tensor.dims()))) {
            Some((id, twin)) if twin.clone().equal(tensor.clone()).all().into_scalar::<bool>() => (id, twin),
            _ => (id, tensor),
        };
        Param::from_mapped_value(id, tensor, mapper)
    }
}
