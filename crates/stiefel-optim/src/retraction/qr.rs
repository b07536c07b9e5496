//! The orthogonal factor of `Y = QR` with a positive diagonal of R, which makes it unique.

use burn::tensor::{Tensor, TensorData};

use crate::matrix::{axes, cross};

/// Q by Cholesky QR, twice.
///
/// R is the Cholesky factor of `YᵀY`, so that `Q = Y R⁻¹`, and its diagonal is positive without a choice of signs. Doing it
/// again removes what the first pass lost to the condition of Y (CholeskyQR2, Yamamoto et al. 2015): up to a condition of
/// about 1e3 in f32, far from what a step of sensible length makes, since `(X + U)ᵀ(X + U) = I + UᵀU`. `YᵀY` and the last
/// product are done on the device, the factorisation of `p × p` numbers on the host in f64.
///
/// # Shapes
/// - `y`: `[.., n, p]`, `n ≥ p` → the same
pub(crate) fn factor<const D: usize>(y: Tensor<D>) -> Tensor<D> {
    pass(pass(y))
}

fn pass<const D: usize>(y: Tensor<D>) -> Tensor<D> {
    let gram = cross(&y, y.clone());
    let p = gram.dims()[axes::<D>()[1]];
    let mut host = gram.clone().into_data().try_into_vec_as::<f64>().expect("converted to f64");
    host.chunks_exact_mut(p * p).for_each(|matrix| invert_cholesky(matrix, p));
    let inverse = TensorData::new(host, gram.dims());
    y.matmul(Tensor::from_data(inverse, (&gram.device(), gram.dtype())))
}

/// Turns `G = RᵀR`, row by row, into `R⁻¹`, R upper triangular with a positive diagonal.
///
/// A pivot that rounding made negative is a column without a direction of its own: it becomes NaN, which no residual
/// misses.
fn invert_cholesky(g: &mut [f64], p: usize) {
    // L = Rᵀ in the lower triangle, a row after the other (Golub & Van Loan 2013, alg. 4.2.2).
    for i in 0..p {
        let (above, rest) = g.split_at_mut(i * p);
        let row = &mut rest[..p];
        for j in 0..i {
            let other = &above[j * p..j * p + p];
            let dot: f64 = row[..j].iter().zip(&other[..j]).map(|(a, b)| a * b).sum();
            row[j] = (row[j] - dot) / other[j];
        }
        let dot: f64 = row[..i].iter().map(|a| a * a).sum();
        row[i] = (row[i] - dot).sqrt();
    }
    // L⁻¹ in its place by forward substitution: row i of it is (e_i − Σ_j L_ij row_j) / L_ii.
    for i in 0..p {
        let (above, rest) = g.split_at_mut(i * p);
        let row = &mut rest[..p];
        let factors = row[..i].to_vec();
        let diagonal = row[i];
        row.fill(0.0);
        for (other, factor) in above.chunks_exact(p).zip(factors) {
            row[..i].iter_mut().zip(other).for_each(|(x, y)| *x -= factor * y);
        }
        row[i] = 1.0;
        row[..=i].iter_mut().for_each(|x| *x /= diagonal);
    }
    // R⁻¹ = (L⁻¹)ᵀ.
    for i in 0..p {
        for j in 0..i {
            g.swap(i * p + j, j * p + i);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::{largest, off_identity};
    use burn::tensor::{DType, Device, Distribution};

    #[test]
    fn q_is_orthonormal_and_r_upper_triangular_with_a_positive_diagonal() {
        let device = Device::flex();
        device.seed(3);
        let y = Tensor::<3>::random([2, 7, 4], Distribution::Normal(0.0, 1.0), &device).cast(DType::F64);
        let q = factor(y.clone());
        assert!(off_identity(&cross(&q, q.clone())) < 1e-13);
        let r = cross(&q, y.clone());
        assert!(largest((q.matmul(r.clone()) - y).abs()) < 1e-12);
        for matrix in r.into_data().try_into_vec::<f64>().expect("f64").chunks(16) {
            for i in 0..4 {
                assert!(matrix[i * 4 + i] > 0.0);
                assert!((0..i).all(|j| matrix[i * 4 + j].abs() < 1e-12), "{matrix:?}");
            }
        }
    }

    #[test]
    fn a_column_without_a_direction_of_its_own_is_not_hidden() {
        let y = Tensor::<2>::from_data([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0]], &Device::flex());
        assert!(factor(y).into_data().iter::<f64>().any(f64::is_nan));
    }
}
