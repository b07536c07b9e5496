//! Building the graph's parts from a [`WeightSource`], one part at a time.

use burn::nn::Linear;
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::config::{DecoderConfig, HeadKind, PositionKind};
use super::reader::{Reader, WeightDtype};
use super::{Block, Decoder};
use crate::attention::{Attention, Frame, Keys};
use crate::norm::Norm;
use crate::positions::Padding;
use crate::source::{SourceError, WeightSource};
use crate::weights::Slot;

/// A frame for an uncached pass over `t` columns.
pub fn frame(config: &DecoderConfig, padding: &Padding, t: usize, device: &Device) -> Frame {
    let own = padding.lengths(t);
    let tables: Vec<_> = config.ropes().iter().map(|rope| rope.batch_table(t, &own, device)).collect();
    Frame::new(config.reach(), &tables, padding, 0, t, device)
}

impl Block {
    /// Loads one layer.
    ///
    /// # Errors
    /// When the source fails.
    pub fn load<S: WeightSource>(source: &S, layer: usize, device: &Device) -> Result<Self, SourceError> {
        Reader { source, device, weights: WeightDtype::F32 }.block(layer, &[])
    }
}

impl Attention {
    /// Loads one layer's attention without the rest of its block.
    ///
    /// # Errors
    /// When the source fails.
    pub fn load<S: WeightSource>(source: &S, layer: usize, device: &Device) -> Result<Self, SourceError> {
        Reader { source, device, weights: WeightDtype::F32 }.attention(layer, &[])
    }
}

impl Keys {
    /// Loads one layer's `W_k` and the norm behind it, where it has one.
    ///
    /// # Errors
    /// When the source fails.
    pub fn load<S: WeightSource>(source: &S, layer: usize, device: &Device) -> Result<Self, SourceError> {
        Reader { source, device, weights: WeightDtype::F32 }.keys(layer)
    }
}

impl Norm {
    /// Loads the norm before the head.
    ///
    /// # Errors
    /// When the source fails.
    pub fn load_final<S: WeightSource>(source: &S, device: &Device) -> Result<Self, SourceError> {
        Reader { source, device, weights: WeightDtype::F32 }.norm(Slot::FinalNorm)
    }
}

impl Decoder {
    /// Loads a whole model, in f32.
    ///
    /// # Errors
    /// When the source fails.
    pub fn load<S: WeightSource>(source: &S, device: &Device) -> Result<Self, SourceError> {
        Self::load_as(source, device, WeightDtype::F32)
    }

    /// Loads a whole model, its large matrices in the type that is asked for.
    ///
    /// # Errors
    /// When the source fails.
    pub fn load_as<S: WeightSource>(
        source: &S,
        device: &Device,
        weights: WeightDtype,
    ) -> Result<Self, SourceError> {
        Self::load_with(source, device, weights, |block, _| block)
    }

    /// Loads a whole model; every block goes through `each`, with its layer, before the next is read.
    pub(super) fn load_with<S: WeightSource>(
        source: &S,
        device: &Device,
        weights: WeightDtype,
        each: impl Fn(Block, usize) -> Block,
    ) -> Result<Self, SourceError> {
        let config = source.config().clone();
        let read = Reader { source, device, weights };
        let positions = match config.position {
            PositionKind::Learned => Some(read.embedding(Slot::PositionEmbedding)?),
            PositionKind::Rope(_) => None,
        };
        let head = match config.head {
            HeadKind::Tied => None,
            HeadKind::Own => Some(Linear { weight: read.large_transposed(Slot::Head)?, bias: None }),
        };
        let mut blocks = Vec::with_capacity(config.n_layers());
        for layer in 0..config.n_layers() {
            let block = read.block(layer, &blocks)?;
            blocks.push(each(block, layer));
        }
        Ok(Self {
            tokens: read.embedding(Slot::TokenEmbedding)?,
            positions,
            blocks,
            final_norm: read.norm(Slot::FinalNorm)?,
            head,
            config,
        })
    }

    /// The residual stream at layer 0 without loading the embedding table, for sweeps that hold one block at a time.
    ///
    /// # Shapes
    /// - `ids`: equally long sequences → `[batch, t, d_model]`
    ///
    /// # Errors
    /// When the source fails or an id is outside the vocabulary.
    ///
    /// # Panics
    /// If the sequences differ in length.
    pub fn embed_from<S: WeightSource>(
        source: &S,
        ids: &[Vec<u32>],
        device: &Device,
    ) -> Result<Tensor<3>, SourceError> {
        let config = source.config();
        let t = ids.first().map_or(0, Vec::len);
        assert!(ids.iter().all(|row| row.len() == t), "sequences of a batch are equally long");
        let rows = source.rows(Slot::TokenEmbedding, &ids.concat(), device)?;
        let x = config.scales.embedded(rows.reshape([ids.len(), t, config.d_model]));
        match config.position {
            PositionKind::Rope(_) => Ok(x),
            PositionKind::Learned => {
                let positions: Vec<u32> = (0..t as u32).collect();
                Ok(x + source.rows(Slot::PositionEmbedding, &positions, device)?.unsqueeze::<3>())
            }
        }
    }
}

/// Token ids on a device.
///
/// # Shapes
/// Row-major `[batch, t]`.
pub(super) fn ids_tensor(ids: &[Vec<u32>], device: &Device) -> Tensor<2, Int> {
    let t = ids.first().map_or(0, Vec::len);
    let flat: Vec<i64> = ids.iter().flatten().map(|&id| i64::from(id)).collect();
    Tensor::from_data(TensorData::new(flat, [ids.len(), t]), device)
}
