//! One step of all factors: AdamW for the free ones, Riemannian Adam for those with orthonormal columns.

use std::collections::HashMap;

use burn::module::ParamId;
use burn::optim::{AdamW, AdamWConfig, AdamWState, AdaptiveMomentumState, Optimizer};
use burn::tensor::{Device, Tensor, TensorData};
use mla_core::{Attention, Decoder};
use serde::{Deserialize, Serialize};
use stiefel_optim::{Manifold, RiemannianAdam, RiemannianAdamConfig, RiemannianAdamState, Stiefel};

use crate::factors::{Constraint, Factor, replace};

/// Rounding in Adam's quotient; PyTorch's default.
const EPSILON: f32 = 1e-8;

/// The learning rates of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Of free factors.
    pub euclidean: f64,
    /// Of orthonormal ones.
    pub riemannian: f64,
}

/// The optimisers and what they remember of every factor.
#[derive(Clone, Debug)]
pub struct Optimiser {
    adamw: AdamW2,
    radam: RiemannianAdam<Stiefel>,
    max_grad_norm: f64,
    states: Vec<Option<Memory>>,
}

/// burn's AdamW says nothing of itself.
#[derive(Clone)]
struct AdamW2(AdamW);

impl std::fmt::Debug for AdamW2 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AdamW")
    }
}

/// What an optimiser remembers of one factor.
#[derive(Clone)]
enum Memory {
    Free(AdamWState<2>),
    Orthonormal(RiemannianAdamState<2>),
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Memory::Free(_) => "Free",
            Memory::Orthonormal(_) => "Orthonormal",
        })
    }
}

/// A factor's memory as numbers, for a snapshot.
#[derive(Clone, Debug, PartialEq)]
pub struct Remembered {
    /// What is no tensor.
    pub scalars: Scalars,
    /// By name: `moment_1`, `moment_2`.
    pub tensors: Vec<(&'static str, TensorData)>,
}

/// The numbers of a [`Remembered`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scalars {
    /// Steps so far.
    pub time: usize,
    /// The length of the last step along a manifold.
    pub length: f64,
    /// How far the factor may be off its manifold.
    pub drift: f64,
}

impl Optimiser {
    /// Optimisers that have not seen any of `factors` yet. A gradient longer than `max_grad_norm`, over all factors
    /// together, is shortened to it; 0 for no bound. `weight_decay` is for free factors: on a Stiefel manifold it would have no
    /// tangent part.
    pub fn new(factors: &[Factor], weight_decay: f64, max_grad_norm: f64) -> Self {
        let adamw = AdamWConfig::new().with_epsilon(EPSILON).with_weight_decay(weight_decay as f32);
        Self {
            adamw: AdamW2(adamw.build()),
            radam: RiemannianAdamConfig::new().with_epsilon(f64::from(EPSILON)).build(manifold()),
            max_grad_norm,
            states: vec![None; factors.len()],
        }
    }

    /// Moves every factor against its gradient; the gradient's norm before it was shortened.
    ///
    /// Sums of squares are f64 over factors and f32 within one.
    pub fn step(
        &mut self,
        decoder: Decoder,
        factors: &[Factor],
        gradients: Vec<Tensor<2>>,
        rates: Rates,
    ) -> (Decoder, f64) {
        let square = |g: &Tensor<2>| (g.clone() * g.clone()).sum().into_scalar::<f64>();
        let norm = gradients.iter().map(square).sum::<f64>().sqrt();
        let scale = match self.max_grad_norm > 0.0 && norm > self.max_grad_norm {
            true => self.max_grad_norm / norm,
            false => 1.0,
        };
        let mut values = values(&decoder);
        for ((factor, gradient), state) in factors.iter().zip(gradients).zip(&mut self.states) {
            let x = values.remove(&factor.id).expect("a factor of this decoder");
            let gradient = gradient * scale;
            let (x, memory) = match (factor.constraint, state.take()) {
                (Constraint::Free, memory) => {
                    let memory = match memory {
                        Some(Memory::Free(memory)) => Some(memory),
                        _ => None,
                    };
                    let (x, memory) = self.adamw.0.step(rates.euclidean, x, gradient, memory);
                    (x, memory.map(Memory::Free))
                }
                (Constraint::Orthonormal, memory) => {
                    let memory = match memory {
                        Some(Memory::Orthonormal(memory)) => Some(memory),
                        _ => None,
                    };
                    let (x, memory) = self.radam.step(rates.riemannian, x, gradient, memory);
                    (x, memory.map(Memory::Orthonormal))
                }
            };
            *state = memory;
            values.insert(factor.id, x);
        }
        (replace(decoder, values), norm)
    }

    /// What is remembered of each factor, in their order; `None` before the first step.
    pub fn remembered(&self) -> Vec<Option<Remembered>> {
        let read = |memory: &Memory| {
            let (scalars, moments) = match memory {
                Memory::Free(state) => {
                    let state = &state.momentum;
                    (Scalars { time: state.time, ..Scalars::default() }, [&state.moment_1, &state.moment_2])
                }
                Memory::Orthonormal(state) => {
                    let RiemannianAdamState { time, length, drift, .. } = *state;
                    (Scalars { time, length, drift }, [&state.moment_1, &state.moment_2])
                }
            };
            let [moment_1, moment_2] = moments.map(|moment| moment.clone().into_data());
            Remembered { scalars, tensors: vec![("moment_1", moment_1), ("moment_2", moment_2)] }
        };
        self.states.iter().map(|state| state.as_ref().map(read)).collect()
    }

    /// Puts back what [`remembered`](Self::remembered) gave.
    ///
    /// # Panics
    /// If it is of other factors.
    pub fn remember(&mut self, factors: &[Factor], remembered: Vec<Option<Remembered>>, device: &Device) {
        assert_eq!(remembered.len(), factors.len(), "one memory a factor");
        let write = |(factor, remembered): (&Factor, Option<Remembered>)| {
            let Remembered { scalars, tensors } = remembered?;
            let mut tensors = tensors.into_iter().map(|(_, data)| Tensor::<2>::from_data(data, device));
            let mut next = || tensors.next().expect("two moments");
            let (moment_1, moment_2) = (next(), next());
            let Scalars { time, length, drift } = scalars;
            Some(match factor.constraint {
                Constraint::Free => Memory::Free(AdamWState {
                    momentum: AdaptiveMomentumState { time, moment_1, moment_2, max_moment_2: None },
                }),
                Constraint::Orthonormal => Memory::Orthonormal(RiemannianAdamState {
                    time,
                    moment_1,
                    moment_2,
                    max_moment_2: None,
                    length,
                    drift,
                }),
            })
        };
        self.states = factors.iter().zip(remembered).map(write).collect();
    }
}

/// Where a `W_up` lies, as burn multiplies it.
fn manifold() -> Stiefel {
    Stiefel::rows()
}

/// The matrices that train, by their parameters.
pub fn values(decoder: &Decoder) -> HashMap<ParamId, Tensor<2>> {
    let mut found = HashMap::new();
    for block in &decoder.blocks {
        if let Attention::Latent(attention) = &block.attention {
            found.extend(
                attention.factors().into_iter().map(|(_, linear)| (linear.weight.id, linear.weight.val())),
            );
        }
    }
    found
}

/// `max |W_upᵀ W_up − I|` over all factors that have to be orthonormal.
pub fn orthonormality(decoder: &Decoder, factors: &[Factor]) -> f64 {
    let values = values(decoder);
    let orthonormal = factors.iter().filter(|factor| factor.constraint == Constraint::Orthonormal);
    orthonormal.map(|factor| manifold().residual(&values[&factor.id])).fold(0.0, f64::max)
}
