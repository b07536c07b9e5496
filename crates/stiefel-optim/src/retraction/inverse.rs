//! An inverse by matrix products alone.

use burn::tensor::Tensor;

use crate::matrix::{axes, epsilon, identity, largest, norm_squared, off_identity, transpose};

/// Steps at most: the start's residual, at worst `1 − 1/cond²`, is squared each time.
const STEPS: usize = 60;

/// `A⁻¹` by Newton–Schulz, `Z ← Z (2I − AZ)` (Schulz 1933).
///
/// It starts from I where that converges, `‖I − A‖ < 1`, and else from `Aᵀ / (‖A‖₁ ‖A‖_∞)`, from where it converges for
/// every regular A (Ben-Israel & Cohen 1966).
///
/// # Shapes
/// - `a`: `[.., k, k]` → the same
pub(crate) fn inverse<const D: usize>(a: Tensor<D>) -> Tensor<D> {
    let one = identity(&a);
    let mut z = match largest(norm_squared(a.clone() - one.clone())).sqrt() < 0.9 {
        true => one.clone().expand(a.dims()),
        false => {
            let [row, column] = axes::<D>();
            let sums = |axis: usize| a.clone().abs().sum_dim(axis);
            transpose(a.clone()) / (sums(row).max_dim(column) * sums(column).max_dim(row))
        }
    };
    let enough = 4.0 * epsilon(&a);
    let mut off = f64::INFINITY;
    for _ in 0..STEPS {
        let product = a.clone().matmul(z.clone());
        let found = off_identity(&product);
        if found <= enough || (found < 1e-3 && found >= off) || found.is_nan() {
            break;
        }
        off = found;
        z = z.matmul(one.clone() * 2.0 - product);
    }
    z
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{DType, Device, Distribution};

    #[test]
    fn near_and_far_from_the_identity_it_is_the_inverse() {
        let device = Device::flex();
        for (seed, (scale, shift)) in
            [(0.01, 1.0), (1.0, 1.0), (5.0, 0.0), (1.0, -40.0)].into_iter().enumerate()
        {
            device.seed(seed as u64);
            let a = Tensor::<3>::random([2, 5, 5], Distribution::Normal(0.0, 1.0), &device).cast(DType::F64)
                * scale;
            let a = a.clone() + identity(&a) * shift;
            let off = off_identity(&a.clone().matmul(inverse(a)));
            assert!(off < 1e-9, "{scale} {shift}: {off:e}");
        }
    }
}
