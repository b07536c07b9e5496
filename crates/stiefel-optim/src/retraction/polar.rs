//! The orthogonal factor `Y (YᵀY)^{-1/2}` of the polar decomposition: the nearest point (Higham 2008, §8).

use burn::tensor::Tensor;

use crate::matrix::{cross, epsilon, identity, largest, norm_squared, off_identity, symmetric};

/// Steps of an iteration at most. The smallest singular value grows by half a step until convergence turns quadratic, so
/// this reaches the manifold from a condition number of 1e7.
const STEPS: usize = 60;

/// The factor of any matrix of full rank.
///
/// Newton–Schulz, `Y ← Y (3I − YᵀY) / 2` (Higham 2008, eq. 8.20), on `Y / ‖Y‖_F`, whose singular values are at most 1, where
/// it converges. A matrix without full rank, or with a condition number beyond 1e6 in f32, does not reach the manifold: look
/// at [`residual`](crate::Manifold::residual).
///
/// # Shapes
/// - `y`: `[.., n, p]`, `n ≥ p` → the same
pub(crate) fn factor<const D: usize>(y: Tensor<D>) -> Tensor<D> {
    let enough = 8.0 * epsilon(&y);
    let norm = norm_squared(y.clone()).sqrt();
    let mut y = y / norm;
    let mut off = f64::INFINITY;
    for _ in 0..STEPS {
        let gram = cross(&y, y.clone());
        let found = off_identity(&gram);
        // Near the end rounding takes over, and another step would change nothing.
        if found <= enough || (found < 1e-3 && found >= off) || found.is_nan() {
            break;
        }
        off = found;
        y = y.clone() * 1.5 - y.matmul(gram) * 0.5;
    }
    y
}

/// The factor of a matrix near the manifold.
///
/// `(I + E)^{-1/2}` with `E = YᵀY − I` is a matrix of `p × p`, so all but two products are small ones. Within `‖E‖ < 1/4` it
/// is the binomial series `I − E/2 + 3E²/8 − …`, as far as `‖E‖` asks for; beyond, a coupled Newton–Schulz iteration.
///
/// # Shapes
/// - `y`: `[.., n, p]`, `n ≥ p` → the same
pub(crate) fn near<const D: usize>(y: Tensor<D>) -> Tensor<D> {
    let gram = symmetric(cross(&y, y.clone()));
    let e = gram.clone() - identity(&gram);
    let size = largest(norm_squared(e.clone())).sqrt();
    let inverse_root = if size < 0.25 { series(e, size) } else { inverse_root(gram) };
    y.matmul(inverse_root)
}

/// `(I + E)^{-1/2}` by Horner's rule, for `‖E‖ = size < 1/4`.
fn series<const D: usize>(e: Tensor<D>, size: f64) -> Tensor<D> {
    let one = identity(&e);
    let enough = 0.25 * epsilon(&e);
    let mut degree = 1;
    while size.powi(degree + 1) > enough {
        degree += 1;
    }
    // binomial(−1/2, k) / binomial(−1/2, k − 1) = −(2k − 1) / 2k.
    let ratio = |k: i32| -f64::from(2 * k - 1) / f64::from(2 * k);
    let mut sum = one.clone() + e.clone() * ratio(degree);
    for k in (1..degree).rev() {
        sum = one.clone() + e.clone().matmul(sum) * ratio(k);
    }
    sum
}

/// `A^{-1/2}` of a symmetric positive definite matrix: the coupled iteration `T = (3I − ZY) / 2`, `Y ← YT`, `Z ← TZ` from
/// `Y = A / ‖A‖_F`, `Z = I`, with `Z → (A / ‖A‖_F)^{-1/2}` (Higham 2008, eq. 6.35).
fn inverse_root<const D: usize>(a: Tensor<D>) -> Tensor<D> {
    let enough = 8.0 * epsilon(&a);
    let norm = norm_squared(a.clone()).sqrt();
    let (mut y, mut z) = (a.clone() / norm.clone(), identity(&a).expand(a.dims()));
    let mut off = f64::INFINITY;
    for _ in 0..STEPS {
        let product = z.clone().matmul(y.clone());
        let found = off_identity(&product);
        if found <= enough || (found < 1e-3 && found >= off) || found.is_nan() {
            break;
        }
        off = found;
        let t = identity(&product) * 1.5 - product * 0.5;
        y = y.matmul(t.clone());
        z = t.matmul(z);
    }
    z / norm.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::sum;
    use burn::tensor::{DType, Device, Distribution};

    fn random(shape: [usize; 3], seed: u64) -> Tensor<3> {
        let device = Device::flex();
        device.seed(seed);
        Tensor::<3>::random(shape, Distribution::Normal(0.0, 1.0), &device).cast(DType::F64)
    }

    #[test]
    fn near_the_manifold_series_and_iterations_agree() {
        for (seed, length) in [1e-6, 1e-3, 0.05, 0.1, 0.6, 3.0].into_iter().enumerate() {
            let y =
                factor(random([2, 9, 4], seed as u64)) + random([2, 9, 4], 50 + seed as u64) * length / 6.0;
            let gap = largest((near(y.clone()) - factor(y)).abs());
            assert!(gap < 1e-12, "step {length}: {gap:e}");
        }
    }

    #[test]
    fn a_matrix_of_each_batch_has_its_own_factor() {
        let y = random([3, 6, 2], 5)
            * Tensor::<3>::from_data([[[1e-3]], [[1.0]], [[1e3]]], &Device::flex()).cast(DType::F64);
        let on = factor(y.clone());
        assert!(off_identity(&cross(&on, on.clone())) < 1e-13);
        for batch in 0..3 {
            let alone = factor(y.clone().narrow(0, batch, 1));
            assert!(largest((alone - on.clone().narrow(0, batch, 1)).abs()) < 1e-12);
        }
        // YᵀQ is symmetric and positive: what makes Q the nearest.
        let h = cross(&y, on);
        assert!(largest((h.clone() - symmetric(h.clone())).abs()) < 1e-9);
        assert!(sum(h).min().into_scalar::<f64>() > 0.0);
    }
}
