//! What an optimiser needs to know of a manifold.

use std::fmt::Debug;

use burn::tensor::Tensor;

use crate::matrix::largest;

/// A sum of tangent vectors at a point, and what came of making it.
#[derive(Clone, Debug)]
pub struct Tangent<const D: usize> {
    /// The sum.
    pub vector: Tensor<D>,
    /// `⟨r, r⟩ₓ` of the gradient in it.
    pub square: Tensor<D>,
    /// The squared norm of what a projection took away from the sum; `None` where that is not known.
    pub normal: Option<Tensor<D>>,
}

/// A Riemannian manifold embedded in a space of tensors.
///
/// A tensor may hold a batch of points: for a manifold of matrices those in its last two dimensions. Points, gradients
/// and tangent vectors have one shape, and every method keeps the tensor's type and device. The suite of laws in
/// `tests/` holds for every implementation here; a manifold of your own needs the first six methods.
///
/// In the words of geoopt these are `projx`, `proju`, `egrad2rgrad`, `inner`, `retr`, `transp` and `check_point`.
pub trait Manifold: Clone + Debug + Send + Sync + 'static {
    /// The nearest point.
    fn project<const D: usize>(&self, x: Tensor<D>) -> Tensor<D>;

    /// The orthogonal projection of `u` onto the tangent space at `x`.
    fn to_tangent<const D: usize>(&self, x: &Tensor<D>, u: Tensor<D>) -> Tensor<D>;

    /// The Riemannian gradient: the tangent vector `r` with `⟨r, u⟩ₓ = Σ g u` for every tangent `u`.
    fn gradient<const D: usize>(&self, x: &Tensor<D>, g: Tensor<D>) -> Tensor<D>;

    /// `⟨u, v⟩ₓ` of each point of the batch, in a shape that broadcasts over it.
    fn inner<const D: usize>(&self, x: &Tensor<D>, u: Tensor<D>, v: Tensor<D>) -> Tensor<D>;

    /// A point reached from `x` by going along the tangent `u`: `x + u + O(‖u‖²)`.
    fn retract<const D: usize>(&self, x: &Tensor<D>, u: Tensor<D>) -> Tensor<D>;

    /// How far `x` is off, in the manifold's own measure; 0 on it.
    fn residual<const D: usize>(&self, x: &Tensor<D>) -> f64;

    /// A tangent vector of a nearby point as one at `x`.
    fn transport<const D: usize>(&self, x: &Tensor<D>, u: Tensor<D>) -> Tensor<D> {
        self.to_tangent(x, u)
    }

    /// `a · transport(m) + b · gradient(g)`, and `⟨r, r⟩ₓ` of the gradient `r`: what an optimiser with momentum does
    /// first. An implementation may share work between the two; this one is what it has to equal.
    fn accumulate<const D: usize>(
        &self,
        x: &Tensor<D>,
        m: Option<Tensor<D>>,
        g: Tensor<D>,
        [a, b]: [f64; 2],
    ) -> Tangent<D> {
        let r = self.gradient(x, g);
        let square = self.inner(x, r.clone(), r.clone());
        let vector = match m {
            Some(m) => self.transport(x, m) * a + r * b,
            None => r * b,
        };
        Tangent { vector, square, normal: None }
    }

    /// [`retract`](Self::retract), or less where less will do: the new point may be off by `bound` at most, of which `drift`
    /// is used up already, how far `x` is off and what an inexact tangent makes of that. Returns the point with its own
    /// drift.
    fn advance<const D: usize>(
        &self,
        x: &Tensor<D>,
        u: Tensor<D>,
        drift: f64,
        bound: f64,
    ) -> (Tensor<D>, f64) {
        let _ = (drift, bound);
        (self.retract(x, u), 0.0)
    }
}

impl<const D: usize> Tangent<D> {
    /// By what factor a drift grows in a step of `scale` times this vector; `None` where that is not known.
    pub(crate) fn growth(&self, scale: Tensor<D>) -> Option<f64> {
        let normal = self.normal.clone()?;
        Some(1.0 + 2.0 * largest(scale.abs() * normal.sqrt()))
    }
}
