//! `St(n, p) = { X ∈ R^{n×p} : XᵀX = I }` (Edelman, Arias & Smith 1998).

use burn::tensor::{Device, Distribution, Tensor};
use serde::{Deserialize, Serialize};

use crate::manifold::{Carried, Manifold, Tangent, apart};
use crate::matrix::{axes, cross, epsilon, largest, norm_squared, off_identity, sum, symmetric, transpose};
use crate::retraction::{self, Retraction};

/// Which vectors of a matrix are orthonormal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Frame {
    /// The columns: `XᵀX = I`, no more columns than rows.
    #[default]
    Columns,
    /// The rows: `XXᵀ = I`, no more rows than columns.
    Rows,
}

/// How tangent vectors are measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Metric {
    /// `⟨U, V⟩ = tr UᵀV`, as in the space around.
    #[default]
    Euclidean,
    /// `⟨U, V⟩ₓ = tr Uᵀ(I − ½XXᵀ)V`, which counts a rotation within the frame as much as one out of it (Edelman et al.
    /// 1998, §2.4.1).
    Canonical,
}

/// The manifold of matrices with orthonormal columns (or rows): a metric on it and a way to move along it.
///
/// ```
/// use stiefel_optim::{Manifold, Retraction, Stiefel};
/// # use burn::tensor::{Device, Distribution, Tensor};
///
/// let device = Device::flex();
/// let stiefel = Stiefel::columns().with_retraction(Retraction::Qr);
/// let x = stiefel.random([16, 4], &device);
/// let along = stiefel.to_tangent(&x, Tensor::random([16, 4], Distribution::Normal(0.0, 1.0), &device));
/// assert!(stiefel.residual(&stiefel.retract(&x, along)) < 1e-5);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stiefel {
    frame: Frame,
    metric: Metric,
    retraction: Retraction,
}

impl Stiefel {
    /// Orthonormal columns, the Euclidean metric, the polar retraction.
    pub fn columns() -> Self {
        Self::default()
    }

    /// Orthonormal rows, the Euclidean metric, the polar retraction.
    pub fn rows() -> Self {
        Self { frame: Frame::Rows, ..Self::default() }
    }

    /// With another metric.
    pub fn with_metric(self, metric: Metric) -> Self {
        Self { metric, ..self }
    }

    /// With another retraction.
    pub fn with_retraction(self, retraction: Retraction) -> Self {
        Self { retraction, ..self }
    }

    /// A point drawn uniformly (Chikuse 2003, theorem 2.2.1: the polar factor of a Gaussian matrix). The draw is the
    /// device's: seed it there.
    ///
    /// # Panics
    /// If the last two dimensions are too few for the frame.
    pub fn random<const D: usize>(&self, shape: [usize; D], device: &Device) -> Tensor<D> {
        self.project(Tensor::random(shape, Distribution::Normal(0.0, 1.0), device))
    }

    /// With orthonormal columns, and back again.
    fn turned<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match self.frame {
            Frame::Columns => x,
            Frame::Rows => transpose(x),
        }
    }

    /// Turned to columns; there must not be more of them than rows.
    fn point<const D: usize>(&self, x: &Tensor<D>) -> Tensor<D> {
        let x = self.turned(x.clone());
        let [n, p] = axes::<D>().map(|axis| x.dims()[axis]);
        assert!(p <= n, "{p} vectors of {n} numbers cannot be orthonormal");
        x
    }
}

impl Manifold for Stiefel {
    /// The orthogonal factor of the polar decomposition, see [`Retraction::Polar`].
    fn project<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.turned(retraction::polar::factor(self.point(&x)))
    }

    /// `U − X sym(XᵀU)` (Edelman et al. 1998, eq. 2.4).
    fn to_tangent<const D: usize>(&self, x: &Tensor<D>, u: Tensor<D>) -> Tensor<D> {
        let (x, u) = (self.point(x), self.turned(u));
        let normal = symmetric(cross(&x, u.clone()));
        self.turned(u - x.matmul(normal))
    }

    /// Euclidean `G − X sym(XᵀG)`, canonical `G − XGᵀX` (Edelman et al. 1998, eq. 2.53).
    fn gradient<const D: usize>(&self, x: &Tensor<D>, g: Tensor<D>) -> Tensor<D> {
        match self.metric {
            Metric::Euclidean => self.to_tangent(x, g),
            Metric::Canonical => {
                let (x, g) = (self.point(x), self.turned(g));
                self.turned(g.clone() - x.clone().matmul(cross(&g, x)))
            }
        }
    }

    fn inner<const D: usize>(&self, x: &Tensor<D>, u: Tensor<D>, v: Tensor<D>) -> Tensor<D> {
        let whole = sum(u.clone() * v.clone());
        match self.metric {
            Metric::Euclidean => whole,
            Metric::Canonical => {
                let (x, u, v) = (self.point(x), self.turned(u), self.turned(v));
                whole - sum(cross(&x, u) * cross(&x, v)) * 0.5
            }
        }
    }

    fn retract<const D: usize>(&self, x: &Tensor<D>, u: Tensor<D>) -> Tensor<D> {
        let (x, u) = (self.point(x), self.turned(u));
        self.turned(match self.retraction {
            Retraction::Qr => retraction::qr::factor(x + u),
            Retraction::Polar => retraction::polar::near(x + u),
            Retraction::Cayley => retraction::cayley::curve(x, u),
        })
    }

    /// `max |XᵀX − I|`.
    fn residual<const D: usize>(&self, x: &Tensor<D>) -> f64 {
        let x = self.point(x);
        off_identity(&cross(&x, x.clone()))
    }

    /// With the Euclidean metric transport and gradient are one projection at one point, and the projection is linear:
    /// `V − X sym(XᵀV)` with `V = a m + b g`, two products of `n · p²` multiply-adds.
    ///
    /// The gradient in it is what is left without `a m`, but for what the transport took from m. That is
    /// `X sym(Xᵀm)` with `‖sym(Xᵀm)‖ ≤ step · ‖m‖`, and orthogonal to the gradient: in the square it counts by its own
    /// square, which after a short step is less than rounding. After a longer one the square is `‖G‖² − ‖sym(XᵀG)‖²`, one
    /// product more.
    fn accumulate<const D: usize>(
        &self,
        x: &Tensor<D>,
        m: Option<Carried<D>>,
        g: Tensor<D>,
        [a, b]: [f64; 2],
    ) -> Tangent<D> {
        if self.metric != Metric::Euclidean {
            return apart(self, x, m, g, [a, b]);
        }
        let (x, g) = (self.point(x), self.turned(g));
        let m = m.map(|m| (self.turned(m.vector) * a, m.step));
        let sum = match &m {
            Some((m, _)) => m.clone() + g.clone() * b,
            None => g.clone() * b,
        };
        let normal = symmetric(cross(&x, sum.clone()));
        let vector = sum - x.clone().matmul(normal.clone());
        let left = norm_squared(match &m {
            Some((m, _)) => vector.clone() - m.clone(),
            None => vector.clone(),
        });
        // The share of the square that m may have left in it.
        let foreign = match m {
            Some((m, step)) => largest(norm_squared(m) / left.clone()) * step * step,
            None => 0.0,
        };
        let square = match foreign <= 4.0 * epsilon(&x) {
            true => left / (b * b),
            // Rounding may leave a gradient that is all normal a little below zero.
            false => (norm_squared(g.clone()) - norm_squared(symmetric(cross(&x, g)))).clamp_min(0.0),
        };
        Tangent { vector: self.turned(vector), square, normal: Some(norm_squared(normal)) }
    }

    /// `X + U` with a tangent `U` has `(X + U)ᵀ(X + U) = XᵀX + UᵀU`: a short step leaves the manifold by `‖U‖²` at most.
    /// While those of several steps stay below the bound in sum, nothing else is done; the retraction that comes when they
    /// do not sets all of them right at once. Small learning rates thus save two products of `n · p²` in most steps.
    ///
    /// The Cayley curve starts from the point as it is and rights nothing: it is followed in every step, and the point
    /// projected where rounding has brought it past the bound.
    fn advance<const D: usize>(
        &self,
        x: &Tensor<D>,
        u: Tensor<D>,
        drift: f64,
        bound: f64,
    ) -> (Tensor<D>, f64) {
        if self.retraction == Retraction::Cayley {
            let y = self.retract(x, u);
            let far = self.residual(&y) > bound.max(64.0 * epsilon(&y));
            return (if far { self.project(y) } else { y }, 0.0);
        }
        match drift <= bound {
            true => (x.clone() + u, drift),
            false => (self.retract(x, u), 0.0),
        }
    }
}
