//! The LAPACK backend.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use ndarray_linalg::cholesky::{CholeskyFactorized, FactorizeC};
use ndarray_linalg::{Eigh, QR, SolveC, UPLO};

use super::Mat64;

fn view(m: &Mat64) -> ArrayView2<'_, f64> {
    ArrayView2::from_shape((m.rows, m.cols), &m.data).expect("a Mat64 holds rows · cols numbers")
}

fn collect(a: Array2<f64>) -> Mat64 {
    let (rows, cols) = a.dim();
    Mat64 { rows, cols, data: a.iter().copied().collect() }
}

pub(super) fn matmul(a: &Mat64, b: &Mat64) -> Mat64 {
    collect(view(a).dot(&view(b)))
}

pub(super) fn add_gram(sum: &mut Mat64, h: &[f64]) {
    let d = sum.cols;
    let h = ArrayView2::from_shape((h.len() / d, d), h).expect("rows of h are as wide as the sum");
    let mut dst =
        ArrayViewMut2::from_shape((d, d), &mut sum.data).expect("a Mat64 holds rows · cols numbers");
    general_mat_mul(1.0, &h.t(), &h, 1.0, &mut dst);
}

pub(super) fn add_cross(sum: &mut Mat64, a: &[f64], b: &[f64]) {
    let (rows, cols) = (sum.rows, sum.cols);
    let a =
        ArrayView2::from_shape((a.len() / rows, rows), a).expect("rows of a are as wide as the sum is tall");
    let b = ArrayView2::from_shape((b.len() / cols, cols), b).expect("rows of b are as wide as the sum");
    let mut dst =
        ArrayViewMut2::from_shape((rows, cols), &mut sum.data).expect("a Mat64 holds rows · cols numbers");
    general_mat_mul(1.0, &a.t(), &b, 1.0, &mut dst);
}

pub(super) fn solve(a: &Mat64, b: &Mat64) -> Option<Mat64> {
    // The matrix is symmetric, so row-major lower is column-major upper.
    let factor: CholeskyFactorized<_> = view(a).factorizec(UPLO::Upper).ok()?;
    let mut x = Mat64::zeros(b.rows, b.cols);
    for c in 0..b.cols {
        let column: ndarray::Array1<f64> = (0..b.rows).map(|r| b.at(r, c)).collect();
        let solved = factor.solvec(&column).ok()?;
        solved.iter().enumerate().for_each(|(r, &v)| x.data[r * b.cols + c] = v);
    }
    Some(x)
}

pub(super) fn eigh(m: &Mat64) -> Option<(Vec<f64>, Mat64)> {
    let (values, vectors) = view(m).eigh(UPLO::Lower).ok()?;
    Some((values.to_vec(), collect(vectors)))
}

pub(super) fn qr(m: &Mat64) -> (Mat64, Mat64) {
    let (q, r) = view(m).qr().expect("LAPACK's QR fails on invalid sizes only");
    (collect(q), collect(r))
}
