//! The pure-Rust backend.

use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::solvers::Solve;
use faer::{Accum, MatMut, MatRef, Par, Side};

use super::Mat64;

fn view(m: &Mat64) -> MatRef<'_, f64> {
    MatRef::from_row_major_slice(&m.data, m.rows, m.cols)
}

fn collect(m: MatRef<'_, f64>) -> Mat64 {
    let (rows, cols) = (m.nrows(), m.ncols());
    let data = (0..rows).flat_map(|r| (0..cols).map(move |c| (r, c))).map(|(r, c)| m[(r, c)]).collect();
    Mat64 { rows, cols, data }
}

pub(super) fn matmul(a: &Mat64, b: &Mat64) -> Mat64 {
    let mut out = Mat64::zeros(a.rows, b.cols);
    let dst = MatMut::from_row_major_slice_mut(&mut out.data, a.rows, b.cols);
    faer::linalg::matmul::matmul(dst, Accum::Replace, view(a), view(b), 1.0, Par::rayon(0));
    out
}

/// All cores, or the one at hand where others are busy with products of the same kind.
fn par() -> Par {
    match rayon::current_thread_index() {
        Some(_) => Par::Seq,
        None => Par::rayon(0),
    }
}

pub(super) fn add_gram(sum: &mut Mat64, h: &[f64]) {
    let d = sum.cols;
    let h = MatRef::from_row_major_slice(h, h.len() / d, d);
    let dst = MatMut::from_row_major_slice_mut(&mut sum.data, d, d);
    let (full, lower) = (BlockStructure::Rectangular, BlockStructure::TriangularLower);
    triangular::matmul(dst, lower, Accum::Add, h.transpose(), full, h, full, 1.0, par());
}

pub(super) fn add_cross(sum: &mut Mat64, a: &[f64], b: &[f64]) {
    let (rows, cols) = (sum.rows, sum.cols);
    let a = MatRef::from_row_major_slice(a, a.len() / rows, rows);
    let b = MatRef::from_row_major_slice(b, b.len() / cols, cols);
    let dst = MatMut::from_row_major_slice_mut(&mut sum.data, rows, cols);
    faer::linalg::matmul::matmul(dst, Accum::Add, a.transpose(), b, 1.0, par());
}

pub(super) fn solve(a: &Mat64, b: &Mat64) -> Option<Mat64> {
    Some(collect(view(a).llt(Side::Lower).ok()?.solve(view(b)).as_ref()))
}

pub(super) fn eigh(m: &Mat64) -> Option<(Vec<f64>, Mat64)> {
    let eigen = view(m).self_adjoint_eigen(Side::Lower).ok()?;
    let values = eigen.S().column_vector().iter().copied().collect();
    Some((values, collect(eigen.U())))
}

pub(super) fn qr(m: &Mat64) -> (Mat64, Mat64) {
    let qr = view(m).qr();
    (collect(qr.compute_thin_Q().as_ref()), collect(qr.thin_R()))
}
