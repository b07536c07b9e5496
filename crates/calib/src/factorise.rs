//! The one routine every method calls: the best rank-r approximation of `W` under a metric.
//!
//! Minimises `E‖M^{1/2} (W − Ŵ) h‖²` over `Ŵ = W_u W_d` of rank r, for `C = E[h hᵀ]` and a positive definite `M`:
//!
//! 1. `S = M^{1/2}`;
//! 2. `S W C Wᵀ S = U Λ Uᵀ`, Λ descending: the loss of rank r is exactly `Σ_{j>r} Λ_j` (Eckart & Young 1936 in the
//!    whitened space);
//! 3. `Ŵ = S⁻¹ U_r U_rᵀ S W`; with the QR of `S⁻¹ U_r = Q R`: `W_u = Q`, `W_d = R U_rᵀ S W`. The columns of `W_u` are
//!    orthonormal at no cost, since `W_d` is free, and the first r' of them are the answer at rank r' < r.
//!
//! `M = I` is PCA of the true keys, `C = I` and `M = I` the plain SVD of the weights.

use mla_core::Matrix;

use crate::error::Error;
use crate::linalg::{Mat64, eigh, qr};

/// Share of the mean diagonal added to a metric, so that its root can be inverted.
const RIDGE: f64 = 1e-4;

/// The metric a factorisation minimises in.
#[derive(Clone, Debug)]
pub enum Metric {
    /// `M = I`: the squared error of K (or V) itself.
    Identity,
    /// Any other positive definite `M`.
    Roots {
        /// `S = M^{1/2}`.
        root: Mat64,
        /// `S⁻¹`.
        inverse_root: Mat64,
    },
}

impl Metric {
    /// The roots of a positive semidefinite `M`, with a ridge of `1e-4 · mean(diag M)`.
    ///
    /// # Errors
    /// When the eigendecomposition does not converge.
    pub fn new(m: &Mat64) -> Result<Self, Error> {
        let d = m.rows;
        let ridge = RIDGE * (0..d).map(|i| m.at(i, i)).sum::<f64>() / d as f64;
        let mut ridged = m.clone();
        (0..d).for_each(|i| ridged.data[i * d + i] += ridge.max(f64::MIN_POSITIVE));
        let (values, vectors) = eigh(&ridged)?;
        let power = |p: f64| {
            let mut scaled = vectors.clone();
            for (i, x) in scaled.data.iter_mut().enumerate() {
                *x *= values[i % d].max(f64::MIN_POSITIVE).powf(p);
            }
            scaled.dot(&vectors.transpose())
        };
        Ok(Metric::Roots { root: power(0.5), inverse_root: power(-0.5) })
    }

    /// `S x`.
    fn whiten(&self, x: Mat64) -> Mat64 {
        match self {
            Metric::Identity => x,
            Metric::Roots { root, .. } => root.dot(&x),
        }
    }

    /// `S⁻¹ x`.
    fn unwhiten(&self, x: Mat64) -> Mat64 {
        match self {
            Metric::Identity => x,
            Metric::Roots { inverse_root, .. } => inverse_root.dot(&x),
        }
    }
}

/// A spectrum and its basis, from which the factors of every rank follow.
#[derive(Clone, Debug)]
pub struct Factorisation {
    /// `Λ`, descending, one for each of d_kv dimensions: the loss each dimension prevents.
    pub spectrum: Vec<f64>,
    /// `S⁻¹ U`.
    basis: Mat64,
    /// `Uᵀ S W`.
    coefficients: Mat64,
}

/// Factorises `w` (`[d_kv, d_model]`) for inputs of second moment `c` (`[d_model, d_model]`, `None` for the identity).
///
/// # Errors
/// When the eigendecomposition does not converge.
pub fn factorise(w: &Matrix, c: Option<&Mat64>, metric: &Metric) -> Result<Factorisation, Error> {
    let sw = metric.whiten(Mat64::from_matrix(w));
    let gram = match c {
        Some(c) => sw.dot(c).dot(&sw.transpose()),
        None => sw.dot(&sw.transpose()),
    };
    let (spectrum, u) = eigh(&gram)?;
    // Rounding can leave tiny negative values in a rank-deficient spectrum.
    let spectrum = spectrum.into_iter().map(|lambda| lambda.max(0.0)).collect();
    let coefficients = u.transpose().dot(&sw);
    Ok(Factorisation { spectrum, basis: metric.unwhiten(u), coefficients })
}

impl Factorisation {
    /// `W_u` (`[d_kv, rank]`, orthonormal columns) and `W_d` (`[rank, d_model]`).
    ///
    /// # Panics
    /// If `rank` exceeds d_kv.
    pub fn factors(&self, rank: usize) -> (Matrix, Matrix) {
        let (q, r) = qr(&self.basis.leading_columns(rank));
        let d_model = self.coefficients.cols;
        let kept =
            Mat64 { rows: rank, cols: d_model, data: self.coefficients.data[..rank * d_model].to_vec() };
        (q.to_matrix(), r.dot(&kept).to_matrix())
    }

    /// `Σ_{j>rank} Λ_j`: the expected loss of rank `rank`.
    pub fn discarded(&self, rank: usize) -> f64 {
        self.spectrum[rank..].iter().sum()
    }

    /// The share of the whole spectrum that rank `rank` keeps, from 0 to 1.
    pub fn energy_kept(&self, rank: usize) -> f64 {
        let total: f64 = self.spectrum.iter().sum();
        if total > 0.0 { 1.0 - self.discarded(rank) / total } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `trace(M E C Eᵀ)` for the error `E = W − W_u W_d`: the loss, computed the long way.
    fn loss(w: &Mat64, factors: &(Matrix, Matrix), c: &Mat64, m: &Mat64) -> f64 {
        let product = Mat64::from_matrix(&factors.0).dot(&Mat64::from_matrix(&factors.1));
        let error = Mat64 {
            rows: w.rows,
            cols: w.cols,
            data: w.data.iter().zip(&product.data).map(|(a, b)| a - b).collect(),
        };
        let full = m.dot(&error).dot(c).dot(&error.transpose());
        (0..w.rows).map(|i| full.at(i, i)).sum()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn the_loss_is_the_tail_of_the_spectrum(
            d_kv in 2usize..12, d_model in 2usize..16, tokens in 1usize..30, cut in 0.0f64..1.0, seed in 0u64..500,
        ) {
            let w = Mat64::from_matrix(&Mat64::random(d_kv, d_model, seed).to_matrix());
            let h = Mat64::random(tokens, d_model, seed + 1);
            let c = h.transpose().dot(&h);
            let half = Mat64::random(d_kv, d_kv, seed + 2);
            let rank = 1 + (cut * (d_kv - 1) as f64) as usize;
            for m in [None, Some(half.dot(&half.transpose()))] {
                let metric = m.as_ref().map_or(Ok(Metric::Identity), Metric::new).unwrap();
                let found = factorise(&w.to_matrix(), Some(&c), &metric).unwrap();
                let ridged = match &metric {
                    Metric::Identity => Mat64::identity(d_kv),
                    Metric::Roots { root, .. } => root.dot(root),
                };
                let factors = found.factors(rank);
                let total: f64 = found.spectrum.iter().sum();
                let gap = (loss(&w, &factors, &c, &ridged) - found.discarded(rank)).abs();
                prop_assert!(gap <= 1e-5 * total.max(1e-9), "rank {rank}: {gap} of {total}");
                prop_assert!(Mat64::from_matrix(&factors.0).orthonormality_residual() < 1e-6);
            }
        }

        #[test]
        fn full_rank_reproduces_the_weights(d_kv in 1usize..12, d_model in 1usize..16, seed in 0u64..500) {
            let w = Mat64::random(d_kv, d_model, seed).to_matrix();
            let half = Mat64::random(d_kv, d_kv, seed + 2);
            let metric = Metric::new(&half.dot(&half.transpose())).unwrap();
            for metric in [Metric::Identity, metric] {
                let (up, down) = factorise(&w, None, &metric).unwrap().factors(d_kv);
                let product = Mat64::from_matrix(&up).dot(&Mat64::from_matrix(&down)).to_matrix();
                let gap = product.data.iter().zip(&w.data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                prop_assert!(gap < 1e-5, "{gap}");
            }
        }

        #[test]
        fn bases_are_nested(d_kv in 2usize..10, d_model in 10usize..16, seed in 0u64..500) {
            let w = Mat64::random(d_kv, d_model, seed).to_matrix();
            let half = Mat64::random(d_kv, d_kv, seed + 2);
            let found = factorise(&w, None, &Metric::new(&half.dot(&half.transpose())).unwrap()).unwrap();
            let (wide, _) = found.factors(d_kv);
            let (narrow, _) = found.factors(d_kv / 2);
            for r in 0..d_kv {
                for c in 0..d_kv / 2 {
                    prop_assert!((wide.data[r * d_kv + c] - narrow.data[r * (d_kv / 2) + c]).abs() < 1e-5);
                }
            }
        }
    }

    #[test]
    fn a_direction_the_inputs_never_take_is_dropped_first() {
        // h has energy only along the first axis, so rank 1 is lossless although W has rank 2.
        let w = Matrix::new(2, 2, vec![1.0, 5.0, 2.0, -3.0]);
        let c = Mat64 { rows: 2, cols: 2, data: vec![1.0, 0.0, 0.0, 0.0] };
        let found = factorise(&w, Some(&c), &Metric::Identity).unwrap();
        assert!(found.discarded(1) < 1e-12);
        assert!((found.spectrum[0] - 5.0).abs() < 1e-12);
        assert_eq!(found.energy_kept(1), 1.0);
    }
}
