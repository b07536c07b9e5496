//! `St(n, p) = { X ∈ R^{n×p} : XᵀX = I }` with the Euclidean metric (Edelman, Arias & Smith 1998).

use burn::tensor::Tensor;

/// Newton–Schulz steps to convergence in f32 from the starting scale of [`Stiefel::project`]: the smallest singular
/// value grows by 1.5 a step until the iteration turns quadratic.
const POLAR_STEPS: usize = 40;

/// The manifold of matrices with orthonormal columns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stiefel;

impl Stiefel {
    /// `max |XᵀX − I|`.
    ///
    /// # Shapes
    /// - `x`: `[n, p]`, `n ≥ p`
    pub fn residual(&self, x: &Tensor<2>) -> f64 {
        let [_, p] = x.dims();
        let gram = x.clone().transpose().matmul(x.clone());
        (gram - Tensor::eye(p, &x.device())).abs().max().into_scalar::<f64>()
    }

    /// The nearest point of the manifold: the orthogonal factor of the polar decomposition.
    ///
    /// Newton–Schulz iteration `Y ← 1.5 Y − 0.5 Y (YᵀY)` (Higham 2008, §8.3) on `X / √‖XᵀX‖_∞`, whose singular values
    /// are at most 1, where it converges for every matrix of full rank. Ill-conditioned input (condition number above
    /// about 1e6 in f32) does not reach the manifold: look at [`residual`](Self::residual).
    ///
    /// # Shapes
    /// - `x`: `[n, p]`, `n ≥ p` → the same
    pub fn project(&self, x: Tensor<2>) -> Tensor<2> {
        let gram = x.clone().transpose().matmul(x.clone());
        let bound = gram.abs().sum_dim(1).max().sqrt().unsqueeze::<2>();
        let mut y = x / bound;
        for _ in 0..POLAR_STEPS {
            let gram = y.clone().transpose().matmul(y.clone());
            y = y.clone() * 1.5 - y.matmul(gram) * 0.5;
        }
        y
    }

    /// The part of `g` that is tangent at `x`: `G − X sym(XᵀG)`.
    ///
    /// # Shapes
    /// - `x`, `g`: `[n, p]` → the same
    pub fn to_tangent(&self, x: &Tensor<2>, g: Tensor<2>) -> Tensor<2> {
        let inner = x.clone().transpose().matmul(g.clone());
        let symmetric = (inner.clone() + inner.transpose()) * 0.5;
        g - x.clone().matmul(symmetric)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution};
    use proptest::prelude::*;

    fn random(shape: [usize; 2], seed: u64) -> Tensor<2> {
        let device = Device::flex();
        device.seed(seed);
        Tensor::random(shape, Distribution::Normal(0.0, 1.0), &device)
    }

    fn gap(a: Tensor<2>, b: Tensor<2>) -> f64 {
        (a - b).abs().max().into_scalar::<f64>()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn a_projection_lies_on_the_manifold_and_stays(p in 1usize..12, extra in 4usize..40, seed in 0u64..1000) {
            let on = Stiefel.project(random([p + extra, p], seed));
            prop_assert!(Stiefel.residual(&on) < 1e-5);
            prop_assert!(gap(Stiefel.project(on.clone()), on) < 1e-5);
        }

        #[test]
        fn a_tangent_is_tangent_and_its_own_projection(p in 1usize..12, extra in 4usize..40, seed in 0u64..1000) {
            let x = Stiefel.project(random([p + extra, p], seed));
            let tangent = Stiefel.to_tangent(&x, random([p + extra, p], seed + 1));
            let skew = x.clone().transpose().matmul(tangent.clone());
            prop_assert!(gap(skew.clone(), skew.transpose() * -1.0) < 1e-4);
            prop_assert!(gap(Stiefel.to_tangent(&x, tangent.clone()), tangent) < 1e-4);
        }
    }

    #[test]
    fn a_matrix_off_the_manifold_has_a_residual() {
        let device = Device::flex();
        let scaled = Tensor::<2>::eye(3, &device) * 2.0;
        assert_eq!(Stiefel.residual(&scaled), 3.0);
    }
}
