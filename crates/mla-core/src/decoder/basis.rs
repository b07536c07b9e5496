//! The basis in which latents are quantised, folded into the matrices on either side of them.
//!
//! A latent is cached as `z = T c` where its numbers are quantised; `W_down` becomes `T W_down` and whatever is made of the
//! latent `W T⁻¹`, so that it costs nothing at run time. `T = F B`:
//!
//! - **B balances** (balanced realisation, Moore 1981): every direction of `B c` varies as much as an error in it costs, which
//!   makes the expected loss of equal noise in all numbers the least that any basis allows. It comes with a conversion that
//!   knew both; without it B is the identity;
//! - **F spreads**: an orthogonal matrix with entries of one size, so that all numbers of `z` vary alike and one scale fits
//!   them (QuaRot, Ashkboos et al. 2024). Hadamard's where the width is a power of two, Hartley's elsewhere.

use burn::tensor::{Device, Tensor, TensorData};

use crate::weights::Matrix;

/// `T` and its inverse, both `[r, r]`.
pub(super) struct Basis {
    pub(super) to: Tensor<2>,
    pub(super) from: Tensor<2>,
}

impl Basis {
    /// # Errors
    /// When `balance` is singular.
    pub(super) fn new(width: usize, balance: Option<&Matrix>, device: &Device) -> Result<Self, String> {
        let spread = spread_tensor(width, device);
        let (to, from) = (spread.clone(), spread.transpose());
        let Some(balance) = balance else { return Ok(Self { to, from }) };
        let inverse = inverse(balance).ok_or("it is singular")?;
        let [balance, inverse] = [balance, &inverse].map(|matrix| matrix.to_tensor(device));
        Ok(Self { to: to.matmul(balance), from: inverse.matmul(from) })
    }
}

/// An orthogonal `[n, n]` that spreads each number over all.
pub(super) fn spread_tensor(n: usize, device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(spread(n), [n, n]), device)
}

/// An orthogonal matrix whose entries are of one size, at most √2 apart from it; row-major.
fn spread(n: usize) -> Vec<f32> {
    let size = 1.0 / (n as f64).sqrt();
    let entry = |row: usize, column: usize| match n.is_power_of_two() {
        // Sylvester's construction.
        true if (row & column).count_ones() % 2 == 1 => -size,
        true => size,
        // Hartley 1942: cos + sin.
        false => {
            let angle = std::f64::consts::TAU * (row * column % n) as f64 / n as f64;
            size * (angle.cos() + angle.sin())
        }
    };
    (0..n).flat_map(|row| (0..n).map(move |column| entry(row, column) as f32)).collect()
}

/// By Gauss and Jordan, with the largest pivot of each column; `None` for a singular matrix.
fn inverse(matrix: &Matrix) -> Option<Matrix> {
    let n = matrix.rows;
    let mut rows: Vec<Vec<f64>> = (0..n)
        .map(|row| {
            let own = matrix.data[row * n..(row + 1) * n].iter().map(|&x| f64::from(x));
            own.chain((0..n).map(|column| f64::from(u8::from(row == column)))).collect()
        })
        .collect();
    for pivot in 0..n {
        let size = |row: &Vec<f64>| row[pivot].abs();
        let best = (pivot..n).max_by(|&a, &b| size(&rows[a]).total_cmp(&size(&rows[b])))?;
        rows.swap(pivot, best);
        let scale = rows[pivot][pivot];
        if scale == 0.0 || !scale.is_finite() {
            return None;
        }
        rows[pivot].iter_mut().for_each(|x| *x /= scale);
        let pivot_row = std::mem::take(&mut rows[pivot]);
        for (at, row) in rows.iter_mut().enumerate().filter(|&(at, _)| at != pivot) {
            debug_assert_ne!(at, pivot);
            let factor = row[pivot];
            if factor != 0.0 {
                row.iter_mut().zip(&pivot_row).for_each(|(x, y)| *x -= factor * y);
            }
        }
        rows[pivot] = pivot_row;
    }
    let data = rows.iter().flat_map(|row| row[n..].iter().map(|&x| x as f32)).collect();
    Some(Matrix::new(n, n, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap_to_identity(product: Tensor<2>) -> f32 {
        let n = product.dims()[0];
        let identity = Tensor::eye(n, &product.device());
        (product - identity).abs().max().into_scalar()
    }

    #[test]
    fn spreading_is_orthogonal_and_its_entries_are_of_one_size() {
        let device = Device::default();
        for n in [1, 2, 3, 12, 32, 45, 96] {
            let matrix = spread(n);
            let largest = matrix.iter().fold(0f32, |largest, x| largest.max(x.abs()));
            assert!(largest <= 1.4143 / (n as f32).sqrt(), "{n}: {largest}");
            let tensor = Tensor::<2>::from_data(TensorData::new(matrix, [n, n]), &device);
            assert!(gap_to_identity(tensor.clone().matmul(tensor.transpose())) < 1e-5, "{n}");
        }
    }

    #[test]
    fn a_basis_and_its_inverse_undo_each_other() {
        let device = Device::default();
        // Upper triangular with a pivot that has to be looked for.
        let balance = Matrix::new(3, 3, vec![0.0, 2.0, 1.0, 4.0, 1.0, 0.0, 0.0, 0.0, 0.5]);
        let basis = Basis::new(3, Some(&balance), &device).expect("regular");
        assert!(gap_to_identity(basis.to.matmul(basis.from)) < 1e-5);
        let singular = Matrix::new(2, 2, vec![1.0, 2.0, 2.0, 4.0]);
        assert!(Basis::new(2, Some(&singular), &device).is_err());
    }
}
