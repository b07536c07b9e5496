//! Riemannian Adam (Bécigneul & Ganea 2019).

use burn::config::Config;
use burn::optim::{LearningRate, ModuleOptimizer, Optimizer, RecordState};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::manifold::{Carried, Manifold, Tangent};
use crate::matrix::length;

/// What the step is divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SecondMoment {
    /// One number a point: the mean of `⟨r, r⟩`, in the metric (Bécigneul & Ganea 2019, eq. 7; geoopt). It keeps the
    /// step's direction.
    #[default]
    Point,
    /// One number an element, as in Adam; the step is projected onto the tangent space again.
    Element,
}

/// Configures [`RiemannianAdam`].
#[derive(Config, Debug, PartialEq)]
pub struct RiemannianAdamConfig {
    /// How much of the first moment is kept in a step.
    #[config(default = 0.9)]
    pub beta_1: f64,
    /// How much of the second moment is kept in a step.
    #[config(default = 0.999)]
    pub beta_2: f64,
    /// Added to the root of the second moment.
    #[config(default = 1e-8)]
    pub epsilon: f64,
    /// Times the point, added to its gradient. On a Stiefel manifold that has no tangent part and does nothing.
    #[config(default = 0.0)]
    pub weight_decay: f64,
    /// Divides by the largest second moment so far (Reddi, Kale & Kumar 2018).
    #[config(default = false)]
    pub amsgrad: bool,
    /// What the step is divided by.
    #[config(default = "SecondMoment::Point")]
    pub second_moment: SecondMoment,
    /// How far a point may drift from its manifold before it is set right, see [`Manifold::advance`]; 0 sets it right in
    /// every step.
    #[config(default = 1e-6)]
    pub drift_bound: f64,
}

/// Adam whose moments and steps are tangent to a manifold.
///
/// A step from `X` with the gradient `G` of the space around:
///
/// 1. `R` = the Riemannian gradient of `G` at `X`.
/// 2. `M ← β₁ · transport(M) + (1 − β₁) · R`, transported from the last point to `X`.
/// 3. `v ← β₂ · v + (1 − β₂) · ⟨R, R⟩ₓ`, and with AMSGrad `v̂ = max(v̂, v)`.
/// 4. `U = −lr · M / (1 − β₁ᵗ) / (√(v / (1 − β₂ᵗ)) + ε)`, tangent since M is.
/// 5. `X ←` the retraction of `U` at `X`.
///
/// It differs from geoopt's in nothing but the order: there M is transported at the end of a step, here at the start of the
/// next one, where it shares the projection with the gradient ([`Manifold::accumulate`]).
#[derive(Clone, Debug)]
pub struct RiemannianAdam<M> {
    manifold: M,
    config: RiemannianAdamConfig,
}

/// What [`RiemannianAdam`] remembers of a parameter.
#[derive(RecordState, Clone, Debug)]
pub struct RiemannianAdamState<const D: usize> {
    /// Steps so far.
    pub time: usize,
    /// M, tangent at the point of the last step.
    pub moment_1: Tensor<D>,
    /// v.
    pub moment_2: Tensor<D>,
    /// v̂ of AMSGrad.
    pub max_moment_2: Option<Tensor<D>>,
    /// The length of the last step.
    pub length: f64,
    /// How far the point may be off its manifold.
    pub drift: f64,
}

impl RiemannianAdamConfig {
    /// The optimiser of single parameters, for [`ModuleOptimizer::with_group`].
    pub fn build<M: Manifold>(&self, manifold: M) -> RiemannianAdam<M> {
        RiemannianAdam { manifold, config: self.clone() }
    }

    /// The optimiser of a module all of whose parameters lie on one manifold.
    pub fn init<M: Manifold>(&self, manifold: M) -> ModuleOptimizer {
        self.build(manifold).into()
    }
}

impl<M: Manifold> Optimizer for RiemannianAdam<M> {
    type State<const D: usize> = RiemannianAdamState<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        x: Tensor<D>,
        grad: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let RiemannianAdamConfig { beta_1, beta_2, epsilon, .. } = self.config;
        let manifold = &self.manifold;
        let grad = match self.config.weight_decay {
            0.0 => grad,
            decay => grad + x.clone() * decay,
        };
        let (time, moment_1, old) = match state {
            Some(state) => (
                state.time + 1,
                Some(Carried { vector: state.moment_1, step: state.length }),
                Some((state.moment_2, state.max_moment_2, state.drift)),
            ),
            None => (1, None, None),
        };
        let weights = [beta_1, 1.0 - beta_1];
        // 1. and 2.
        let tangent = match self.config.second_moment {
            SecondMoment::Point => manifold.accumulate(&x, moment_1, grad, weights),
            SecondMoment::Element => {
                let r = manifold.gradient(&x, grad);
                let carried = moment_1.map(|m| manifold.transport(&x, m.vector) * weights[0]);
                let fresh = r.clone() * weights[1];
                let vector = carried.map_or(fresh.clone(), |carried| carried + fresh);
                Tangent { vector, square: r.clone() * r, normal: None }
            }
        };
        // 3.
        let fresh = tangent.square.clone() * (1.0 - beta_2);
        let (moment_2, largest, drift) = match old {
            Some((old, largest, drift)) => (old * beta_2 + fresh, largest, drift),
            None => (fresh, None, manifold.residual(&x)),
        };
        let max_moment_2 = self.config.amsgrad.then(|| match largest {
            Some(largest) => largest.max_pair(moment_2.clone()),
            None => moment_2.clone(),
        });
        // 4.
        let corrected =
            max_moment_2.clone().unwrap_or_else(|| moment_2.clone()) / (1.0 - beta_2.powi(time as i32));
        let scale = (corrected.sqrt() + epsilon).recip() * (-lr / (1.0 - beta_1.powi(time as i32)));
        let step = tangent.vector.clone() * scale.clone();
        let step = match self.config.second_moment {
            SecondMoment::Point => step,
            SecondMoment::Element => manifold.to_tangent(&x, step),
        };
        // 5.
        let length = length(&step);
        let drift = tangent.drift(drift, scale, length);
        let (x, drift) = manifold.advance(&x, step, drift, self.config.drift_bound);
        let moment_1 = tangent.vector;
        (x, Some(RiemannianAdamState { time, moment_1, moment_2, max_moment_2, length, drift }))
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        RiemannianAdamState {
            moment_1: state.moment_1.to_device(device),
            moment_2: state.moment_2.to_device(device),
            max_moment_2: state.max_moment_2.map(|moment| moment.to_device(device)),
            ..state
        }
    }
}
