//! Complex matrices of the size of a model's kv heads: what commutes with a rotation of pairs.
//!
//! A pair of dimensions that turns by an angle is a complex number that is multiplied by `exp(i · angle)`. Matrices here are a
//! few heads wide, so `faer` serves whatever backend is compiled in.

use faer::{MatRef, Side, c64};

use super::Mat64;
use crate::error::Error;

/// A square complex matrix, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Complex {
    /// Rows, and columns.
    pub size: usize,
    /// `size · size` numbers.
    pub data: Vec<c64>,
}

impl Complex {
    /// All zeros.
    pub fn zeros(size: usize) -> Self {
        Self { size, data: vec![c64::new(0.0, 0.0); size * size] }
    }

    /// Element of row `r`, column `c`.
    pub fn at(&self, r: usize, c: usize) -> c64 {
        self.data[r * self.size + c]
    }

    /// The matrix product.
    ///
    /// # Panics
    /// If the sizes differ.
    pub fn dot(&self, other: &Self) -> Self {
        assert_eq!(self.size, other.size, "square matrices of one size");
        let n = self.size;
        let entry = |r: usize, c: usize| (0..n).map(|k| self.at(r, k) * other.at(k, c)).sum();
        let data = (0..n).flat_map(|r| (0..n).map(move |c| (r, c))).map(|(r, c)| entry(r, c)).collect();
        Self { size: n, data }
    }

    /// The conjugate transpose.
    pub fn adjoint(&self) -> Self {
        let n = self.size;
        let data = (0..n).flat_map(|r| (0..n).map(move |c| self.at(c, r).conj())).collect();
        Self { size: n, data }
    }

    /// Eigenvalues of a Hermitian matrix, largest first, and the eigenvectors as columns.
    ///
    /// # Errors
    /// When the iteration does not converge.
    pub fn eigh(&self) -> Result<(Vec<f64>, Self), Error> {
        let n = self.size;
        let failed = || Error::NoConvergence { size: n };
        if !self.data.iter().all(|x| x.re.is_finite() && x.im.is_finite()) {
            return Err(failed());
        }
        let eigen = MatRef::from_row_major_slice(&self.data, n, n).self_adjoint_eigen(Side::Lower);
        let eigen = eigen.map_err(|_| failed())?;
        let values: Vec<f64> = eigen.S().column_vector().iter().map(|value| value.re).collect();
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
        let mut vectors = Self::zeros(n);
        for (place, x) in vectors.data.iter_mut().enumerate() {
            *x = eigen.U()[(place / n, order[place % n])];
        }
        Ok((order.into_iter().map(|at| values[at]).collect(), vectors))
    }
}

/// The second moment of the pairs `(j, j + d_rotary / 2)` of all heads as complex numbers, from that of the dimensions:
/// `E[z zᴴ]`, a matrix a pair.
///
/// # Shapes
/// - `moment`: `[heads · d_head, heads · d_head]` → `d_rotary / 2` matrices of the size `heads`
pub fn pair_moments(moment: &Mat64, d_head: usize, d_rotary: usize) -> Vec<Complex> {
    let (heads, half) = (moment.rows / d_head, d_rotary / 2);
    let entry = |j: usize, g: usize, h: usize| {
        let (a, b) = (g * d_head + j, h * d_head + j);
        c64::new(
            moment.at(a, b) + moment.at(a + half, b + half),
            moment.at(a + half, b) - moment.at(a, b + half),
        )
    };
    let matrix = |j: usize| Complex {
        size: heads,
        data: (0..heads * heads).map(|at| entry(j, at / heads, at % heads)).collect(),
    };
    (0..half).map(matrix).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(size: usize, seed: u64) -> Complex {
        let (re, im) = (Mat64::random(size, size, seed), Mat64::random(size, size, seed + 1));
        Complex { size, data: re.data.iter().zip(&im.data).map(|(&re, &im)| c64::new(re, im)).collect() }
    }

    #[test]
    fn eigenvectors_diagonalise() {
        for size in [1, 2, 5] {
            let half = random(size, 3);
            let hermitian = half.dot(&half.adjoint());
            let (values, vectors) = hermitian.eigh().expect("finite");
            let turned = vectors.adjoint().dot(&hermitian).dot(&vectors);
            for (r, &value) in values.iter().enumerate() {
                for c in 0..size {
                    let right = if r == c { value } else { 0.0 };
                    assert!((turned.at(r, c) - c64::new(right, 0.0)).norm() < 1e-12);
                }
            }
            assert!(values.windows(2).all(|pair| pair[0] >= pair[1]));
        }
    }

    #[test]
    fn the_moment_of_pairs_is_that_of_complex_numbers() {
        // Two heads of two pairs and one dimension that does not turn; 7 tokens.
        let x = Mat64::random(7, 10, 5);
        let moments = pair_moments(&x.transpose().dot(&x), 5, 4);
        for (j, moment) in moments.iter().enumerate() {
            let z = |token: usize, head: usize| {
                c64::new(x.at(token, 5 * head + j), x.at(token, 5 * head + j + 2))
            };
            for (g, h) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let right: c64 = (0..7).map(|token| z(token, g) * z(token, h).conj()).sum();
                assert!((moment.at(g, h) - right).norm() < 1e-12);
            }
        }
    }
}
