//! The LAPACK backend.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use ndarray_linalg::{Eigh, QR, UPLO};

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

pub(super) fn eigh(m: &Mat64) -> Option<(Vec<f64>, Mat64)> {
    let (values, vectors) = view(m).eigh(UPLO::Lower).ok()?;
    Some((values.to_vec(), collect(vectors)))
}

pub(super) fn qr(m: &Mat64) -> (Mat64, Mat64) {
    let (q, r) = view(m).qr().expect("LAPACK's QR fails on invalid sizes only");
    (collect(q), collect(r))
}
