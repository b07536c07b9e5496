//! Reading the tensors of a [`WeightSource`] into burn's modules.

use burn::module::Param;
use burn::nn::{Embedding, EmbeddingConfig, LayerNormConfig, Linear, RmsNorm};
use burn::tensor::{Device, Tensor};

use super::basis::{Basis, spread_tensor};
use super::config::{AttentionKind, MlpKind, NormKind};
use super::latents::{LatentConfig, LatentPart, LatentWidth, SharedKeyConfig};
use super::{Block, Experts, GatedMlp, Mlp, PlainMlp};
use crate::attention::{
    Attention, CrossTerms, GroupedAttention, JointProjections, Keys, LatentAttention, Projections, Queries,
    Scores, SharedKey, SplitProjections,
};
use crate::norm::{HeadNorm, Norm};
use crate::source::{SourceError, WeightSource};
use crate::weights::{LayerSlot, Matrix, Part, Slot};

/// A source, the device its tensors go to, and the type in which the large ones stay.
pub(super) struct Reader<'a, S> {
    pub(super) source: &'a S,
    pub(super) device: &'a Device,
    pub(super) weights: WeightDtype,
}

/// In which type a model's large matrices are held: the embedding, the head, and those of attention and MLP that it has of its donor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightDtype {
    /// As they are computed with, whatever they are stored in. What trains or is factorised needs that.
    #[default]
    F32,
    /// As they are stored. A product widens them as it reads them, so that it gives what it gives with f32, from half as much memory.
    Stored,
}

impl<S: WeightSource> Reader<'_, S> {
    /// One layer; `earlier` as in [`attention`](Self::attention).
    pub(super) fn block(&self, layer: usize, earlier: &[Block]) -> Result<Block, SourceError> {
        let config = self.source.config();
        let (kind, residual_scale) = (config.block, config.scales.residual);
        let norm = |there: bool, slot: fn(Part) -> LayerSlot| {
            there.then(|| self.norm(|part| Slot::Layer(layer, slot(part)))).transpose()
        };
        Ok(Block {
            input_norm: norm(kind.norms_before(), LayerSlot::InputNorm)?,
            attention: self.attention(layer, earlier)?,
            attended_norm: norm(kind.norms_after(), LayerSlot::AttendedNorm)?,
            mlp_norm: norm(kind.norms_before(), LayerSlot::MlpNorm)?,
            mlp: self.mlp(layer)?,
            mlp_out_norm: norm(kind.norms_after(), LayerSlot::MlpOutNorm)?,
            kind,
            residual_scale,
        })
    }

    fn matrix(&self, slot: Slot) -> Result<Param<Tensor<2>>, SourceError> {
        Ok(frozen(self.source.matrix(slot, self.device)?))
    }

    fn vector(&self, slot: Slot) -> Result<Param<Tensor<1>>, SourceError> {
        Ok(frozen(self.source.vector(slot, self.device)?))
    }

    /// A large matrix, in the type in which such stay.
    fn large(&self, slot: Slot) -> Result<Tensor<2>, SourceError> {
        match self.weights {
            WeightDtype::F32 => self.source.matrix(slot, self.device),
            WeightDtype::Stored => self.source.matrix_as_stored(slot, self.device),
        }
    }

    /// burn's `Linear` multiplies from the right: `[d_in, d_out]`.
    fn transposed(&self, slot: Slot) -> Result<Param<Tensor<2>>, SourceError> {
        Ok(turned(self.source.matrix(slot, self.device)?))
    }

    /// As [`transposed`](Self::transposed), of a large matrix.
    pub(super) fn large_transposed(&self, slot: Slot) -> Result<Param<Tensor<2>>, SourceError> {
        Ok(turned(self.large(slot)?))
    }

    fn linear(&self, layer: usize, slot: fn(Part) -> LayerSlot, bias: bool) -> Result<Linear, SourceError> {
        let bias = bias.then(|| self.vector(Slot::Layer(layer, slot(Part::Bias)))).transpose()?;
        Ok(Linear { weight: self.large_transposed(Slot::Layer(layer, slot(Part::Weight)))?, bias })
    }

    /// A matrix without a bias.
    fn plain(&self, layer: usize, slot: LayerSlot) -> Result<Linear, SourceError> {
        Ok(Linear { weight: self.transposed(Slot::Layer(layer, slot))?, bias: None })
    }

    pub(super) fn embedding(&self, slot: Slot) -> Result<Embedding, SourceError> {
        let weight = frozen(self.large(slot)?);
        let [rows, width] = weight.val().dims();
        let mut embedding = EmbeddingConfig::new(rows, width).init(self.device);
        embedding.weight = weight;
        Ok(embedding)
    }

    pub(super) fn norm(&self, slot: impl Fn(Part) -> Slot) -> Result<Norm, SourceError> {
        let config = self.source.config();
        if config.norm != NormKind::Layer {
            return Ok(Norm::Rms(self.rms_norm(slot(Part::Weight))?));
        }
        let mut norm = LayerNormConfig::new(config.d_model).with_epsilon(config.norm_eps).init(self.device);
        norm.gamma = self.vector(slot(Part::Weight))?;
        norm.beta = Some(self.vector(slot(Part::Bias))?);
        Ok(Norm::Layer(norm))
    }

    fn rms_norm(&self, slot: Slot) -> Result<RmsNorm, SourceError> {
        let config = self.source.config();
        let gain = self.source.vector(slot, self.device)?;
        let gain = if config.norm == NormKind::RmsPlusOne { gain + 1.0 } else { gain };
        Ok(RmsNorm { gamma: frozen(gain), epsilon: config.norm_eps })
    }

    /// The norm of a layer's queries, or keys, where it has one.
    fn head_norm(&self, layer: usize, slot: LayerSlot) -> Result<Option<HeadNorm>, SourceError> {
        let there = self.source.config().layers[layer].qk_norm.is_some();
        let norm = there.then(|| self.rms_norm(Slot::Layer(layer, slot))).transpose()?;
        Ok(norm.map(|norm| HeadNorm { norm }))
    }

    /// `W_k` of a layer, and the norm behind it.
    pub(super) fn keys(&self, layer: usize) -> Result<Keys, SourceError> {
        let proj = self.linear(layer, LayerSlot::Key, self.source.config().biases.qkv)?;
        Ok(Keys { proj, norm: self.head_norm(layer, LayerSlot::KeyNorm)? })
    }

    /// One layer's attention. Of the `earlier` blocks, the first of its group lends its `W_up`: the same parameter, so
    /// that it is in memory once.
    pub(super) fn attention(&self, layer: usize, earlier: &[Block]) -> Result<Attention, SourceError> {
        let config = self.source.config();
        let n_kv_heads = config.n_kv_heads;
        let biased = config.biases.qkv;
        let queries = Queries {
            proj: self.linear(layer, LayerSlot::Query, biased)?,
            norm: self.head_norm(layer, LayerSlot::QueryNorm)?,
            n_heads: config.n_heads,
        };
        let spec = config.layers[layer].scores;
        let sinks = spec.sinks.then(|| self.vector(Slot::Layer(layer, LayerSlot::Sinks))).transpose()?;
        let scores = Scores { scale: spec.scale, softcap: spec.softcap, sinks };
        let o_proj = self.linear(layer, LayerSlot::Output, config.biases.output)?;
        Ok(match &config.layers[layer].attention {
            AttentionKind::Grouped => Attention::Grouped(GroupedAttention {
                queries,
                keys: self.keys(layer)?,
                v_proj: self.linear(layer, LayerSlot::Value, biased)?,
                scores,
                o_proj,
                n_kv_heads,
            }),
            AttentionKind::Latent(latent) => Attention::Latent(LatentAttention {
                queries,
                keys: config.layers[layer].qk_norm.map(|_| self.keys(layer)).transpose()?,
                projections: self.projections(layer, latent, earlier)?,
                cross: self.cross(layer)?,
                shared: latent.shared_key().map(|shared| self.shared_key(layer, shared)).transpose()?,
                scores,
                o_proj,
                n_kv_heads,
            }),
        })
    }

    fn projections(
        &self,
        layer: usize,
        latent: &LatentConfig,
        earlier: &[Block],
    ) -> Result<Projections, SourceError> {
        let leader = match earlier.get(latent.up_of).map(|block| &block.attention) {
            Some(Attention::Latent(leader)) => Some(&leader.projections),
            _ => None,
        };
        let bases = self.bases(latent.up_of)?;
        let config = self.source.config();
        let biased = config.biases.qkv;
        let bias = |slot: fn(Part) -> LayerSlot| {
            biased.then(|| self.vector(Slot::Layer(layer, slot(Part::Bias)))).transpose()
        };
        // A bias before a norm is in the normed key already: nothing is added to what is rebuilt.
        let bias_k = match (bias(LayerSlot::Key)?, config.layers[layer].qk_norm) {
            (Some(bias), Some(_)) => Some(frozen(bias.val().zeros_like())),
            (bias, _) => bias,
        };
        let bias_v = bias(LayerSlot::Value)?;
        // Transposed as all weights are: (W T⁻¹)ᵀ = T⁻ᵀ Wᵀ, (T W)ᵀ = Wᵀ Tᵀ.
        let up = |slot, lent: Option<&Linear>, part: usize, bias| -> Result<Linear, SourceError> {
            let weight = match (lent, bases.get(part)) {
                (Some(lent), _) => lent.weight.clone(),
                (None, None) => self.transposed(Slot::Layer(latent.up_of, slot))?,
                (None, Some(basis)) => {
                    let weight = self.source.matrix(Slot::Layer(latent.up_of, slot), self.device)?;
                    frozen(basis.from.clone().transpose().matmul(weight.transpose()))
                }
            };
            Ok(Linear { weight, bias })
        };
        let down = |slot, part: usize| -> Result<Linear, SourceError> {
            let Some(basis) = bases.get(part) else { return self.plain(layer, slot) };
            let weight = self.source.matrix(Slot::Layer(layer, slot), self.device)?;
            let weight = frozen(weight.transpose().matmul(basis.to.clone().transpose()));
            Ok(Linear { weight, bias: None })
        };
        Ok(match latent.width {
            LatentWidth::Split { .. } => {
                let leader = leader.and_then(|leader| match leader {
                    Projections::Split(leader) => Some(leader),
                    Projections::Joint(_) => None,
                });
                Projections::Split(SplitProjections {
                    down_k: down(LayerSlot::DownKey, 0)?,
                    up_k: up(LayerSlot::UpKey, leader.map(|leader| &leader.up_k), 0, bias_k)?,
                    down_v: down(LayerSlot::DownValue, 1)?,
                    up_v: up(LayerSlot::UpValue, leader.map(|leader| &leader.up_v), 1, bias_v)?,
                })
            }
            LatentWidth::Joint { .. } => {
                let leader = leader.and_then(|leader| match leader {
                    Projections::Joint(leader) => Some(leader),
                    Projections::Split(_) => None,
                });
                let biases: Vec<_> = bias_k.into_iter().chain(bias_v).map(|bias| bias.val()).collect();
                let bias = biased.then(|| frozen(Tensor::cat(biases, 0)));
                Projections::Joint(JointProjections {
                    down: down(LayerSlot::DownJoint, 0)?,
                    up: up(LayerSlot::UpJoint, leader.map(|leader| &leader.up), 0, bias)?,
                })
            }
        })
    }

    /// The rotated key that all heads of a layer share.
    fn shared_key(&self, layer: usize, shared: &SharedKeyConfig) -> Result<SharedKey, SourceError> {
        let config = self.source.config();
        // A bias before a norm is in the normed key already.
        let biased = config.biases.qkv && config.layers[layer].qk_norm.is_none();
        Ok(SharedKey {
            down: self.linear(layer, LayerSlot::DownShared, biased)?,
            up: self.transposed(Slot::Layer(layer, LayerSlot::UpShared))?,
            spread: config.cache_dtype.bits().map(|_| frozen(spread_tensor(shared.d_rope(), self.device))),
            rope: shared.rope,
            pairs: shared.pairs.clone(),
        })
    }

    /// The bases in which the parts of a layer's latent are cached; none where they are cached as they are.
    fn bases(&self, layer: usize) -> Result<Vec<Basis>, SourceError> {
        let config = self.source.config();
        let Some(latent) = config.latent(layer).filter(|_| config.cache_dtype.bits().is_some()) else {
            return Ok(Vec::new());
        };
        let basis = |part: LatentPart| {
            let slot = Slot::Layer(layer, part.balance());
            let balance = match latent.balanced {
                true => Some(Matrix::from_tensor(&self.source.matrix(slot, self.device)?)),
                false => None,
            };
            Basis::new(part.width, balance.as_ref(), self.device)
                .map_err(|why| format!("{slot}: {why}").into())
        };
        latent.width.parts().into_iter().map(basis).collect()
    }

    fn cross(&self, layer: usize) -> Result<Option<CrossTerms>, SourceError> {
        let config = self.source.config();
        if config.cross_columns(layer).is_none() {
            return Ok(None);
        }
        let reads = config.reads(layer);
        let mut earlier = Vec::new();
        for &read in &reads {
            earlier.extend(self.bases(read)?);
        }
        let mut own: Vec<_> = self.bases(layer)?.into_iter().map(Some).collect();
        // Keys read the other half of the layer's own latent, and values the first.
        let mut terms = |slot, half: usize| -> Result<Linear, SourceError> {
            let other = if own.len() == 2 { own[1 - half].take() } else { None };
            let bases: Vec<&Basis> = other.iter().chain(&earlier).collect();
            if bases.is_empty() {
                return self.plain(layer, slot);
            }
            let weight = self.source.matrix(Slot::Layer(layer, slot), self.device)?.transpose();
            let mut column = 0;
            let term = |basis: &Basis| {
                let width = basis.from.dims()[0];
                let part = weight.clone().narrow(0, column, width);
                column += width;
                basis.from.clone().transpose().matmul(part)
            };
            let weight = Tensor::cat(bases.into_iter().map(term).collect(), 0);
            Ok(Linear { weight: frozen(weight), bias: None })
        };
        Ok(Some(CrossTerms {
            key: terms(LayerSlot::CrossKey, 0)?,
            value: terms(LayerSlot::CrossValue, 1)?,
            reads,
        }))
    }

    fn mlp(&self, layer: usize) -> Result<Mlp, SourceError> {
        let config = self.source.config();
        let biased = config.biases.mlp;
        Ok(match config.layers[layer].mlp.kind {
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
            MlpKind::Experts { activation, n_experts, top_k, renormalised } => {
                let linear = |slot: &dyn Fn(Part) -> LayerSlot| -> Result<Linear, SourceError> {
                    let slot = |part| Slot::Layer(layer, slot(part));
                    let bias = biased.then(|| self.vector(slot(Part::Bias))).transpose()?;
                    Ok(Linear { weight: self.large_transposed(slot(Part::Weight))?, bias })
                };
                let expert = |e| -> Result<GatedMlp, SourceError> {
                    Ok(GatedMlp {
                        gate: linear(&|part| LayerSlot::ExpertGate(e, part))?,
                        up: linear(&|part| LayerSlot::ExpertUp(e, part))?,
                        down: linear(&|part| LayerSlot::ExpertDown(e, part))?,
                        activation,
                    })
                };
                let experts: Result<_, _> = (0..n_experts).map(expert).collect();
                let router = |part| Slot::Layer(layer, LayerSlot::Router(part));
                let router_bias = biased.then(|| self.vector(router(Part::Bias))).transpose()?;
                let router = self.matrix(router(Part::Weight))?;
                Mlp::Experts(Experts { router, router_bias, experts: experts?, top_k, renormalised })
            }
        })
    }
}

/// A matrix transposed, and laid out anew rather than viewed: with a transposed view a decode step's one-row products took 15 to 25 times
/// longer on the CPU backend (1×576×1536: 2.0 ms against 0.07).
fn turned(matrix: Tensor<2>) -> Param<Tensor<2>> {
    let (device, dtype) = (matrix.device(), matrix.dtype());
    frozen(Tensor::from_data(matrix.transpose().into_data(), (&device, dtype)))
}

/// Wraps loaded weights as parameters that do not train until someone asks them to.
fn frozen<const D: usize>(tensor: Tensor<D>) -> Param<Tensor<D>> {
    Param::from_tensor(tensor).set_require_grad(false)
}
