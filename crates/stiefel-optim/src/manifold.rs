//! What an optimiser needs to know of a manifold.

use std::fmt::Debug;

use burn::tensor::Tensor;

use crate::matrix::largest;

/// A tangent vector of the point before.
#[derive(Clone, Debug)]
pub struct Carried<const D: usize> {
    /// The vector, tangent there.
    pub vector: Tensor<D>,
    /// The length of the step that was taken from there.
    pub step: f64,
}

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
        m: Option<Carried<D>>,
        g: Tensor<D>,
        [a, b]: [f64; 2],
    ) -> Tangent<D> {
        apart(self, x, m, g, [a, b])
    }

    /// [`retract`](Self::retract), or less where less will do: `x + u` is off by `drift` at most, and the new point may be off
    /// by `bound`. Returns the point with its own drift.
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
    /// How far `x + u` is off at most, for `u` of `scale` times this vector and of this length, if x is off by `drift`.
    ///
    /// `XᵀX = I + E` and `U = c (V − XS)` with `S = sym(XᵀV)` give `(X + U)ᵀ(X + U) = I + E − 2c sym(ES) + UᵀU`.
    pub(crate) fn drift(&self, drift: f64, scale: Tensor<D>, length: f64) -> f64 {
        let Some(normal) = self.normal.clone() else { return f64::INFINITY };
        drift * (1.0 + 2.0 * largest(scale.abs() * normal.sqrt())) + length * length
    }
}

/// [`Manifold::accumulate`] with the gradient and the transport each by itself.
pub(crate) fn apart<M: Manifold, const D: usize>(
    manifold: &M,
    x: &Tensor<D>,
    m: Option<Carried<D>>,
    g: Tensor<D>,
    [a, b]: [f64; 2],
) -> Tangent<D> {
    let r = manifold.gradient(x, g);
    let square = manifold.inner(x, r.clone(), r.clone());
    let vector = match m {
        Some(m) => manifold.transport(x, m.vector) * a + r * b,
        None => r * b,
    };
    Tangent { vector, square, normal: None }
}
