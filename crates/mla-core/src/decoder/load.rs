//! Building the graph's parts from a [`WeightSource`], one part at a time.

use burn::module::Param;
use burn::nn::{Embedding, EmbeddingConfig, LayerNormConfig, Linear, RmsNorm};
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::config::{AttentionKind, DecoderConfig, HeadKind, MlpKind, NormKind, PositionKind};
use super::{Block, Decoder, Experts, GatedMlp, Mlp, Norm, PlainMlp};
use crate::attention::{Attention, Frame, GroupedAttention, LatentAttention, Padding};
use crate::source::{SourceError, WeightSource};
use crate::weights::{LayerSlot, Part, Slot};

/// A frame for an uncached pass over `t` columns.
pub fn frame(config: &DecoderConfig, padding: &Padding, t: usize, device: &Device) -> Frame {
    let table = match &config.position {
        PositionKind::Learned => None,
        PositionKind::Rope(rope) => Some(rope.batch_table(config.d_head, t, &padding.lengths(t), device)),
    };
    Frame::new(config.layers.iter().map(|l| l.window).collect(), table.as_ref(), padding, 0, t, device)
}

impl Block {
    /// Loads one layer.
    ///
    /// # Errors
    /// When the source fails.
    pub fn load<S: WeightSource>(source: &S, layer: usize, device: &Device) -> Result<Self, SourceError> {
        let read = Reader { source, device };
        Ok(Self {
            input_norm: read.norm(|part| Slot::Layer(layer, LayerSlot::InputNorm(part)))?,
            attention: read.attention(layer)?,
            mlp_norm: read.norm(|part| Slot::Layer(layer, LayerSlot::MlpNorm(part)))?,
            mlp: read.mlp(layer)?,
        })
    }
}

impl Decoder {
    /// Loads a whole model.
    ///
    /// # Errors
    /// When the source fails.
    pub fn load<S: WeightSource>(source: &S, device: &Device) -> Result<Self, SourceError> {
        let config = source.config().clone();
        let read = Reader { source, device };
        let positions = match config.position {
            PositionKind::Learned => Some(read.embedding(Slot::PositionEmbedding)?),
            PositionKind::Rope(_) => None,
        };
        let head = match config.head {
            HeadKind::Tied => None,
            HeadKind::Own => Some(Linear { weight: read.transposed(Slot::Head)?, bias: None }),
        };
        let blocks: Result<_, _> =
            (0..config.n_layers()).map(|layer| Block::load(source, layer, device)).collect();
        Ok(Self {
            tokens: read.embedding(Slot::TokenEmbedding)?,
            positions,
            blocks: blocks?,
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
        let x =
            source.rows(Slot::TokenEmbedding, &ids.concat(), device)?.reshape([ids.len(), t, config.d_model]);
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

struct Reader<'a, S> {
    source: &'a S,
    device: &'a Device,
}

impl<S: WeightSource> Reader<'_, S> {
    fn matrix(&self, slot: Slot) -> Result<Param<Tensor<2>>, SourceError> {
        Ok(frozen(self.source.matrix(slot, self.device)?))
    }

    fn vector(&self, slot: Slot) -> Result<Param<Tensor<1>>, SourceError> {
        Ok(frozen(self.source.vector(slot, self.device)?))
    }

    /// burn's `Linear` multiplies from the right: `[d_in, d_out]`.
    ///
    /// Laid out anew rather than viewed: with a transposed view a decode step's one-row products took 15 to 25 times
    /// longer on the CPU backend (1×576×1536: 2.0 ms against 0.07).
    fn transposed(&self, slot: Slot) -> Result<Param<Tensor<2>>, SourceError> {
        let view = self.source.matrix(slot, self.device)?.transpose();
        Ok(frozen(Tensor::from_data(view.into_data(), self.device)))
    }

    fn linear(&self, layer: usize, slot: fn(Part) -> LayerSlot, bias: bool) -> Result<Linear, SourceError> {
        let bias = bias.then(|| self.vector(Slot::Layer(layer, slot(Part::Bias)))).transpose()?;
        Ok(Linear { weight: self.transposed(Slot::Layer(layer, slot(Part::Weight)))?, bias })
    }

    fn factor(&self, weight: Slot, bias: Option<Slot>) -> Result<Linear, SourceError> {
        Ok(Linear { weight: self.transposed(weight)?, bias: bias.map(|slot| self.vector(slot)).transpose()? })
    }

    fn embedding(&self, slot: Slot) -> Result<Embedding, SourceError> {
        let weight = self.matrix(slot)?;
        let [rows, width] = weight.val().dims();
        let mut embedding = EmbeddingConfig::new(rows, width).init(self.device);
        embedding.weight = weight;
        Ok(embedding)
    }

    fn norm(&self, slot: impl Fn(Part) -> Slot) -> Result<Norm, SourceError> {
        let config = self.source.config();
        let gamma = self.vector(slot(Part::Weight))?;
        Ok(match config.norm {
            NormKind::Rms => Norm::Rms(RmsNorm { gamma, epsilon: config.norm_eps }),
            NormKind::Layer => {
                let mut norm =
                    LayerNormConfig::new(config.d_model).with_epsilon(config.norm_eps).init(self.device);
                norm.gamma = gamma;
                norm.beta = Some(self.vector(slot(Part::Bias))?);
                Norm::Layer(norm)
            }
        })
    }

    fn attention(&self, layer: usize) -> Result<Attention, SourceError> {
        let config = self.source.config();
        let (n_heads, n_kv_heads) = (config.n_heads, config.n_kv_heads);
        let biased = config.biases.qkv;
        let q_proj = self.linear(layer, LayerSlot::Query, biased)?;
        let o_proj = self.linear(layer, LayerSlot::Output, config.biases.output)?;
        let slot = |slot| Slot::Layer(layer, slot);
        Ok(match config.layers[layer].attention {
            AttentionKind::Grouped => Attention::Grouped(GroupedAttention {
                q_proj,
                k_proj: self.linear(layer, LayerSlot::Key, biased)?,
                v_proj: self.linear(layer, LayerSlot::Value, biased)?,
                o_proj,
                n_heads,
                n_kv_heads,
            }),
            AttentionKind::Latent { .. } => Attention::Latent(LatentAttention {
                q_proj,
                down_k: self.factor(slot(LayerSlot::DownKey), None)?,
                up_k: self
                    .factor(slot(LayerSlot::UpKey), biased.then(|| slot(LayerSlot::Key(Part::Bias))))?,
                down_v: self.factor(slot(LayerSlot::DownValue), None)?,
                up_v: self
                    .factor(slot(LayerSlot::UpValue), biased.then(|| slot(LayerSlot::Value(Part::Bias))))?,
                o_proj,
                n_heads,
                n_kv_heads,
            }),
        })
    }

    fn mlp(&self, layer: usize) -> Result<Mlp, SourceError> {
        let config = self.source.config();
        let biased = config.biases.mlp;
        Ok(match config.mlp {
            MlpKind::Plain(activation) => Mlp::Plain(PlainMlp {
                up: self.linear(layer, LayerSlot::Up, biased)?,
                down: self.linear(layer, LayerSlot::Down, biased)?,
                activation,
            }),
            MlpKind::Gated(activation) => Mlp::Gated(GatedMlp {
                gate: self.linear(layer, LayerSlot::Gate, biased)?,
                up: self.linear(layer, LayerSlot::Up, biased)?,
                down: self.linear(layer, LayerSlot::Down, biased)?,
                activation,
            }),
            MlpKind::Experts { activation, n_experts, top_k } => {
                let expert = |e| -> Result<GatedMlp, SourceError> {
                    let linear = |slot| -> Result<Linear, SourceError> {
                        Ok(Linear { weight: self.transposed(Slot::Layer(layer, slot))?, bias: None })
                    };
                    Ok(GatedMlp {
                        gate: linear(LayerSlot::ExpertGate(e))?,
                        up: linear(LayerSlot::ExpertUp(e))?,
                        down: linear(LayerSlot::ExpertDown(e))?,
                        activation,
                    })
                };
                let experts: Result<_, _> = (0..n_experts).map(expert).collect();
                let router = self.matrix(Slot::Layer(layer, LayerSlot::Router))?;
                Mlp::Experts(Experts { router, experts: experts?, top_k })
            }
        })
    }
}

/// Wraps loaded weights as parameters that do not train until someone asks them to.
fn frozen<const D: usize>(tensor: Tensor<D>) -> Param<Tensor<D>> {
    Param::from_tensor(tensor).set_require_grad(false)
}
