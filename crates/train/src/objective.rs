//! What training minimises.

use std::collections::HashSet;

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};
use mla_core::attention::Keys;
use mla_core::{LayerSlot, Part, Slot, SourceError, WeightSource, linear};

use crate::factors::Track;

/// What training minimises. Means are over all windows of a batch: of logits over the tokens that have a next one, of K and V
/// over all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Objective {
    /// The cross-entropy of the next token.
    LanguageModel,
    /// `KL(teacher ‖ model)`: no labels at all.
    Kl,
    /// `α T² KL(teacher ‖ model at temperature T) + (1 − α) LM` (Hinton, Vinyals & Dean 2015).
    Distillation {
        /// α, the teacher's share.
        alpha: f64,
        /// T, by which both sides' logits are divided.
        temperature: f64,
    },
    /// `(1 − α) LM + α · mean over layers of ½ (MSE_K + MSE_V)`, of K and V before RoPE, against what the original `W_k`
    /// and `W_v` make of the same hidden states.
    Reconstruction {
        /// α, the share of the reconstruction.
        alpha: f64,
    },
}

/// The weights of an objective's parts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Weights {
    pub(crate) lm: f64,
    /// Of the KL at `temperature`.
    pub(crate) kl: f64,
    pub(crate) temperature: f64,
    pub(crate) reconstruction: f64,
}

impl Objective {
    /// The name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Objective::LanguageModel => "lm",
            Objective::Kl => "kl",
            Objective::Distillation { .. } => "distillation",
            Objective::Reconstruction { .. } => "reconstruction",
        }
    }

    /// Whether a teacher is asked.
    pub fn needs_teacher(&self) -> bool {
        self.weights().kl > 0.0
    }

    /// Whether the original `W_k` and `W_v` are needed.
    pub fn needs_originals(&self) -> bool {
        self.weights().reconstruction > 0.0
    }

    pub(crate) fn weights(&self) -> Weights {
        let none = Weights { lm: 0.0, kl: 0.0, temperature: 1.0, reconstruction: 0.0 };
        match *self {
            Objective::LanguageModel => Weights { lm: 1.0, ..none },
            Objective::Kl => Weights { kl: 1.0, ..none },
            Objective::Distillation { alpha, temperature } => {
                Weights { lm: 1.0 - alpha, kl: alpha * temperature * temperature, temperature, ..none }
            }
            Objective::Reconstruction { alpha } => Weights { lm: 1.0 - alpha, reconstruction: alpha, ..none },
        }
    }
}

/// A loss and the parts it is made of, before their weights.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossParts {
    /// What is minimised.
    pub total: f64,
    /// The cross-entropy of the next token, whether it is minimised or not.
    pub lm: f64,
    /// `KL(teacher ‖ model)` at the objective's temperature, in nats a token; `None` without a teacher.
    pub kl: Option<f64>,
    /// Mean over layers of `½ (MSE_K + MSE_V)`; `None` unless it is minimised.
    pub reconstruction: Option<f64>,
}

impl LossParts {
    /// With another's parts, weighed by `share`.
    pub(crate) fn plus(self, other: &Self, share: f64) -> Self {
        let add =
            |sum: Option<f64>, part: Option<f64>| part.map(|part| sum.unwrap_or(0.0) + share * part).or(sum);
        Self {
            total: self.total + share * other.total,
            lm: self.lm + share * other.lm,
            kl: add(self.kl, other.kl),
            reconstruction: add(self.reconstruction, other.reconstruction),
        }
    }
}

/// The donor's `W_k` and `W_v` of every layer that has latents now, biases and norms included.
#[derive(Clone, Debug)]
pub struct Originals {
    layers: Vec<Option<Original>>,
}

#[derive(Module, Debug)]
struct Original {
    keys: Keys,
    v_proj: Linear,
}

impl Originals {
    /// Reads them from the donor, or from a folder that stores them.
    ///
    /// # Errors
    /// When the source has not got them, or fails.
    pub fn load<S: WeightSource>(source: &S, latent: &[bool], device: &Device) -> Result<Self, SourceError> {
        let biased = source.config().biases.qkv;
        let load = |(layer, &latent): (usize, &bool)| {
            if !latent {
                return Ok(None);
            }
            let slot = |part| Slot::Layer(layer, LayerSlot::Value(part));
            let weight = source.matrix(slot(Part::Weight), device)?.transpose();
            let bias = biased.then(|| source.vector(slot(Part::Bias), device)).transpose()?;
            let v_proj = Linear {
                weight: Param::from_tensor(weight).set_require_grad(false),
                bias: bias.map(|bias| Param::from_tensor(bias).set_require_grad(false)),
            };
            Ok(Some(Original { keys: Keys::load(source, layer, device)?, v_proj }))
        };
        Ok(Self { layers: latent.iter().enumerate().map(load).collect::<Result<_, SourceError>>()? })
    }

    /// K and V of a layer as the donor makes them, on the tape.
    ///
    /// # Shapes
    /// - `h`: `[batch, t, d_model]` → both `[batch, t, d_kv]`
    pub(crate) fn project(&self, layer: usize, h: Tensor<3>) -> Option<[Tensor<3>; 2]> {
        let original = self.layers[layer].as_ref()?;
        let original = original.clone().map(&mut Track { ids: &HashSet::new() });
        Some([original.keys.project(h.clone()), linear(&original.v_proj, h)])
    }

    /// The shape of the first matrix that has not this one, as burn multiplies it.
    pub(crate) fn unlike(&self, shape: [usize; 2]) -> Option<[usize; 2]> {
        let layers = self.layers.iter().flatten();
        let shapes = layers
            .flat_map(|original| [&original.keys.proj, &original.v_proj].map(|linear| linear.weight.dims()));
        shapes.into_iter().find(|found| *found != shape)
    }

    /// Layers that have latents.
    pub(crate) fn count(&self) -> usize {
        self.layers.iter().flatten().count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_weigh_what_the_formula_says() {
        let distillation = Objective::Distillation { alpha: 0.9, temperature: 2.0 }.weights();
        assert!((distillation.kl - 3.6).abs() < 1e-12 && (distillation.lm - 0.1).abs() < 1e-12);
        let reconstruction = Objective::Reconstruction { alpha: 0.3 }.weights();
        assert_eq!((reconstruction.lm, reconstruction.reconstruction, reconstruction.kl), (0.7, 0.3, 0.0));
        assert_eq!(Objective::Kl.weights().lm, 0.0);
    }

    #[test]
    fn an_objective_asks_for_what_it_needs_and_no_more() {
        let kind = |objective: Objective| (objective.needs_teacher(), objective.needs_originals());
        assert_eq!(kind(Objective::LanguageModel), (false, false));
        assert_eq!(kind(Objective::Kl), (true, false));
        assert_eq!(kind(Objective::Distillation { alpha: 0.9, temperature: 2.0 }), (true, false));
        assert_eq!(kind(Objective::Reconstruction { alpha: 0.3 }), (false, true));
    }
}
