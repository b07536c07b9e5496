//! Flat space, on which the Riemannian optimisers are those everybody knows.

use burn::tensor::Tensor;

use crate::manifold::Manifold;

/// Tensors without a constraint.
///
/// It is a product of lines: [`inner`](Manifold::inner) is taken of every number by itself, so that
/// [`RiemannianAdam`](crate::RiemannianAdam) on it is Adam (Kingma & Ba 2015).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Euclidean;

impl Manifold for Euclidean {
    fn project<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        x
    }

    fn to_tangent<const D: usize>(&self, _x: &Tensor<D>, u: Tensor<D>) -> Tensor<D> {
        u
    }

    fn gradient<const D: usize>(&self, _x: &Tensor<D>, g: Tensor<D>) -> Tensor<D> {
        g
    }

    fn inner<const D: usize>(&self, _x: &Tensor<D>, u: Tensor<D>, v: Tensor<D>) -> Tensor<D> {
        u * v
    }

    fn retract<const D: usize>(&self, x: &Tensor<D>, u: Tensor<D>) -> Tensor<D> {
        x.clone() + u
    }

    fn residual<const D: usize>(&self, _x: &Tensor<D>) -> f64 {
        0.0
    }
}
