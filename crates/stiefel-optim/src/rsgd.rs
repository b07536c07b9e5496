//! Riemannian gradient descent (Bonnabel 2013), with momentum.

use burn::config::Config;
use burn::optim::{LearningRate, ModuleOptimizer, Optimizer, RecordState};
use burn::tensor::{Device, Tensor};

use crate::manifold::{Carried, Manifold};
use crate::matrix::length;

/// Configures [`RiemannianSgd`].
#[derive(Config, Debug, PartialEq)]
pub struct RiemannianSgdConfig {
    /// How much of the velocity is kept in a step; 0 for none.
    #[config(default = 0.0)]
    pub momentum: f64,
    /// How little of a new gradient goes into the velocity.
    #[config(default = 0.0)]
    pub dampening: f64,
    /// Looks a step ahead (Sutskever et al. 2013).
    #[config(default = false)]
    pub nesterov: bool,
    /// Times the point, added to its gradient. On a Stiefel manifold that has no tangent part and does nothing.
    #[config(default = 0.0)]
    pub weight_decay: f64,
    /// How far a point may drift from its manifold before it is set right, see [`Manifold::advance`]; 0 sets it right in
    /// every step.
    #[config(default = 1e-6)]
    pub drift_bound: f64,
}

/// Gradient descent along a manifold.
///
/// A step from `X` with the gradient `G` of the space around:
///
/// 1. `R` = the Riemannian gradient of `G` at `X`.
/// 2. `V ← μ · transport(V) + (1 − dampening) · R`, in the first step `V = R`.
/// 3. `U = −lr · V`, with Nesterov's momentum `−lr · (R + μV)`.
/// 4. `X ←` the retraction of `U` at `X`.
///
/// geoopt starts the velocity from `G` in place of `R`, so that its first step is not tangent; this one is.
#[derive(Clone, Debug)]
pub struct RiemannianSgd<M> {
    manifold: M,
    config: RiemannianSgdConfig,
}

/// What [`RiemannianSgd`] remembers of a parameter.
#[derive(RecordState, Clone, Debug)]
pub struct RiemannianSgdState<const D: usize> {
    /// V, tangent at the point of the last step.
    pub velocity: Option<Tensor<D>>,
    /// The length of the last step.
    pub length: f64,
    /// How far the point may be off its manifold.
    pub drift: f64,
}

impl RiemannianSgdConfig {
    /// The optimiser of single parameters, for [`ModuleOptimizer::with_group`].
    pub fn build<M: Manifold>(&self, manifold: M) -> RiemannianSgd<M> {
        RiemannianSgd { manifold, config: self.clone() }
    }

    /// The optimiser of a module all of whose parameters lie on one manifold.
    pub fn init<M: Manifold>(&self, manifold: M) -> ModuleOptimizer {
        self.build(manifold).into()
    }
}

impl<M: Manifold> Optimizer for RiemannianSgd<M> {
    type State<const D: usize> = RiemannianSgdState<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        x: Tensor<D>,
        grad: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let RiemannianSgdConfig { momentum, dampening, nesterov, weight_decay, drift_bound } = self.config;
        let grad = match weight_decay {
            0.0 => grad,
            decay => grad + x.clone() * decay,
        };
        let (old, drift) = match state {
            Some(state) => (state.velocity.map(|vector| Carried { vector, step: state.length }), state.drift),
            None => (None, self.manifold.residual(&x)),
        };
        // 1. and 2.
        let weights = [momentum, if old.is_some() { 1.0 - dampening } else { 1.0 }];
        let fresh = nesterov.then(|| self.manifold.accumulate(&x, None, grad.clone(), [0.0, 1.0]));
        let velocity = self.manifold.accumulate(&x, old, grad, weights);
        // 3.
        let along = match &fresh {
            Some(fresh) => fresh.vector.clone() + velocity.vector.clone() * momentum,
            None => velocity.vector.clone(),
        };
        // 4.
        let (step, scale) = (along * -lr, velocity.square.zeros_like() - lr);
        let length = length(&step);
        // The normal parts of the two that Nesterov's momentum adds make a drift grow together.
        let grown = fresh.map_or(drift, |fresh| fresh.drift(drift, scale.clone(), 0.0));
        let drift = velocity.drift(grown, scale, length);
        let (x, drift) = self.manifold.advance(&x, step, drift, drift_bound);
        let velocity = (momentum > 0.0).then_some(velocity.vector);
        (x, Some(RiemannianSgdState { velocity, length, drift }))
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        RiemannianSgdState { velocity: state.velocity.map(|velocity| velocity.to_device(device)), ..state }
    }
}
