//! Dense linear algebra in f64 on the host, behind a handful of calls.
//!
//! By default `faer` (pure Rust, nothing to install); with the feature `lapack`, LAPACK through `ndarray-linalg`. The
//! tests at the end hold whichever is compiled in to the same answers.

use mla_core::Matrix;

use crate::error::Error;

#[cfg(not(feature = "lapack"))]
#[path = "linalg/faer.rs"]
mod backend;
#[cfg(feature = "lapack")]
#[path = "linalg/lapack.rs"]
mod backend;

mod blocks;
mod complex;

pub use complex::{Complex, pair_moments};

/// A dense f64 matrix, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Mat64 {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// `rows · cols` numbers.
    pub data: Vec<f64>,
}

impl Mat64 {
    /// All zeros.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self { rows, cols, data: vec![0.0; rows * cols] }
    }

    /// The identity.
    pub fn identity(size: usize) -> Self {
        let mut eye = Self::zeros(size, size);
        for i in 0..size {
            eye.data[i * size + i] = 1.0;
        }
        eye
    }

    /// Widens a host matrix.
    pub fn from_matrix(matrix: &Matrix) -> Self {
        Self {
            rows: matrix.rows,
            cols: matrix.cols,
            data: matrix.data.iter().map(|&x| f64::from(x)).collect(),
        }
    }

    /// Rounds to f32.
    pub fn to_matrix(&self) -> Matrix {
        Matrix::new(self.rows, self.cols, self.data.iter().map(|&x| x as f32).collect())
    }

    /// Element of row `r`, column `c`.
    pub fn at(&self, r: usize, c: usize) -> f64 {
        self.data[r * self.cols + c]
    }

    /// The transpose.
    pub fn transpose(&self) -> Self {
        let data = (0..self.cols).flat_map(|c| (0..self.rows).map(move |r| self.at(r, c))).collect();
        Self { rows: self.cols, cols: self.rows, data }
    }

    /// The first `count` columns.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn leading_columns(&self, count: usize) -> Self {
        assert!(count <= self.cols, "{count} columns of {}", self.cols);
        let data = self.data.chunks_exact(self.cols.max(1)).flat_map(|row| &row[..count]).copied().collect();
        Self { rows: self.rows, cols: count, data }
    }

    /// The matrix product.
    ///
    /// # Panics
    /// If the inner sizes differ.
    pub fn dot(&self, other: &Self) -> Self {
        assert_eq!(self.cols, other.rows, "inner sizes of a product");
        backend::matmul(self, other)
    }

    /// The largest absolute deviation of `selfᵀ · self` from the identity.
    pub fn orthonormality_residual(&self) -> f64 {
        let gram = self.transpose().dot(self);
        let entries = gram.data.iter().enumerate();
        entries.fold(0.0, |worst, (i, &x)| {
            let target = if i / gram.cols == i % gram.cols { 1.0 } else { 0.0 };
            f64::max(worst, (x - target).abs())
        })
    }
}

/// Adds `hᵀ h` to the lower triangle of `sum`.
///
/// # Shapes
/// - `h`: row-major `[tokens, d]`, `sum`: `[d, d]`
///
/// # Panics
/// If the sizes disagree.
pub fn add_gram(sum: &mut Mat64, h: &[f64]) {
    assert!(sum.rows == sum.cols && h.len().is_multiple_of(sum.cols), "rows of h are as wide as the sum");
    backend::add_gram(sum, h);
}

/// Adds `aᵀ b` to `sum`.
///
/// # Shapes
/// - `a`: row-major `[tokens, rows]`, `b`: `[tokens, cols]`, `sum`: `[rows, cols]`
///
/// # Panics
/// If the sizes disagree.
pub fn add_cross(sum: &mut Mat64, a: &[f64], b: &[f64]) {
    assert!(a.len() * sum.cols == b.len() * sum.rows, "as many rows of a as of b");
    backend::add_cross(sum, a, b);
}

/// `A⁻¹ B` for a symmetric positive definite `A`, of which the lower triangle is read.
///
/// # Errors
/// When A is not positive definite.
///
/// # Panics
/// If the sizes disagree.
pub fn solve(a: &Mat64, b: &Mat64) -> Result<Mat64, Error> {
    assert!(a.rows == a.cols && a.rows == b.rows, "as many unknowns as equations");
    if a.rows == 0 {
        return Ok(b.clone());
    }
    let solved = backend::solve(a, b).filter(|x| x.data.iter().all(|v| v.is_finite()));
    solved.ok_or(Error::NotPositive { size: a.rows })
}

/// Eigenvalues, largest first, and the eigenvectors as columns.
///
/// Reads the lower triangle only.
///
/// # Errors
/// When the iteration does not converge (NaN in the input, for one).
pub fn eigh(symmetric: &Mat64) -> Result<(Vec<f64>, Mat64), Error> {
    let size = symmetric.rows;
    if !symmetric.data.iter().all(|x| x.is_finite()) {
        return Err(Error::NoConvergence { size });
    }
    let (values, vectors) = backend::eigh(symmetric).ok_or(Error::NoConvergence { size })?;
    let mut order: Vec<usize> = (0..size).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    let data =
        (0..size).flat_map(|r| order.iter().map(move |&c| (r, c))).map(|(r, c)| vectors.at(r, c)).collect();
    Ok((order.iter().map(|&i| values[i]).collect(), Mat64 { rows: size, cols: size, data }))
}

/// Thin QR with a positive diagonal of R, which makes it unique.
///
/// # Shapes
/// - `tall`: `[rows, cols]`, `rows ≥ cols` → Q `[rows, cols]`, R `[cols, cols]`
///
/// # Panics
/// If there are more columns than rows.
pub fn qr(tall: &Mat64) -> (Mat64, Mat64) {
    assert!(tall.rows >= tall.cols, "a thin QR needs a tall matrix, not {}x{}", tall.rows, tall.cols);
    let (mut q, mut r) = backend::qr(tall);
    for c in 0..r.cols {
        if r.at(c, c) < 0.0 {
            (0..q.rows).for_each(|row| q.data[row * q.cols + c] *= -1.0);
            (0..r.cols).for_each(|col| r.data[c * r.cols + col] *= -1.0);
        }
    }
    (q, r)
}

#[cfg(test)]
impl Mat64 {
    /// Numbers from −0.5 to 0.5 by a small linear congruential generator: the same on every platform.
    pub(crate) fn random(rows: usize, cols: usize, seed: u64) -> Self {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
        };
        Self { rows, cols, data: (0..rows * cols).map(|_| next()).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn gap(a: &Mat64, b: &Mat64) -> f64 {
        assert_eq!((a.rows, a.cols), (b.rows, b.cols));
        a.data.iter().zip(&b.data).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn a_product_is_what_it_is_by_hand() {
        let a = Mat64 { rows: 2, cols: 3, data: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0] };
        assert_eq!(a.dot(&a.transpose()).data, [14.0, 32.0, 32.0, 77.0]);
    }

    #[test]
    fn what_is_not_positive_definite_is_not_solved() {
        let a = Mat64 { rows: 2, cols: 2, data: vec![1.0, 2.0, 2.0, 1.0] };
        assert!(matches!(solve(&a, &Mat64::identity(2)), Err(Error::NotPositive { size: 2 })));
    }

    #[test]
    fn nan_does_not_converge() {
        let mut bad = Mat64::identity(3);
        bad.data[4] = f64::NAN;
        assert!(matches!(eigh(&bad), Err(Error::NoConvergence { size: 3 })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn eigenvectors_are_orthonormal_ordered_and_recompose(n in 1usize..40, rank in 1usize..40, seed in 0u64..1000) {
            let half = Mat64::random(n, rank.min(n), seed);
            let symmetric = half.dot(&half.transpose());
            let (values, vectors) = eigh(&symmetric).unwrap();
            let scaled = {
                let mut v = vectors.clone();
                for (i, x) in v.data.iter_mut().enumerate() {
                    *x *= values[i % n];
                }
                v
            };
            prop_assert!(vectors.orthonormality_residual() < 1e-12);
            prop_assert!(gap(&scaled.dot(&vectors.transpose()), &symmetric) < 1e-12 * n as f64);
            prop_assert!(values.windows(2).all(|pair| pair[0] >= pair[1]));
        }

        #[test]
        fn qr_recomposes_with_a_positive_diagonal(cols in 1usize..20, extra in 0usize..20, seed in 0u64..1000) {
            let a = Mat64::random(cols + extra, cols, seed);
            let (q, r) = qr(&a);
            prop_assert!(q.orthonormality_residual() < 1e-12);
            prop_assert!(gap(&q.dot(&r), &a) < 1e-12);
            for i in 0..cols {
                prop_assert!(r.at(i, i) >= 0.0);
                prop_assert!((0..i).all(|j| r.at(i, j).abs() < 1e-15));
            }
        }

        #[test]
        fn a_system_is_solved(n in 1usize..30, rhs in 1usize..8, seed in 0u64..1000) {
            let half = Mat64::random(n, n + 5, seed);
            let mut a = half.dot(&half.transpose());
            (0..n).for_each(|i| a.data[i * n + i] += 0.1);
            let x = Mat64::random(n, rhs, seed + 1);
            prop_assert!(gap(&solve(&a, &a.dot(&x)).unwrap(), &x) < 1e-9);
        }

        #[test]
        fn a_cross_gram_is_a_product(m in 1usize..20, n in 1usize..20, tokens in 1usize..40, seed in 0u64..1000) {
            let (a, b) = (Mat64::random(tokens, m, seed), Mat64::random(tokens, n, seed + 1));
            let mut sum = Mat64::zeros(m, n);
            add_cross(&mut sum, &a.data, &b.data);
            add_cross(&mut sum, &a.data, &b.data);
            let mut twice = a.transpose().dot(&b);
            twice.scale(2.0);
            prop_assert!(gap(&sum, &twice) < 1e-12);
        }

        #[test]
        fn a_gram_adds_up_over_batches(d in 1usize..30, tokens in 1usize..50, seed in 0u64..1000) {
            let h = Mat64::random(tokens, d, seed);
            let mut sum = Mat64::zeros(d, d);
            let cut = tokens / 2 * d;
            add_gram(&mut sum, &h.data[..cut]);
            add_gram(&mut sum, &h.data[cut..]);
            let whole = h.transpose().dot(&h);
            for r in 0..d {
                for c in 0..=r {
                    prop_assert!((sum.at(r, c) - whole.at(r, c)).abs() < 1e-12);
                }
            }
        }
    }
}
