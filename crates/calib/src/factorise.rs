//! The one routine every method calls: the best rank-r approximation of `W` under a metric.
//!
//! Minimises `E‖M^{1/2} (W − Ŵ) h‖²` over `Ŵ = W_u W_d` of rank r, for a positive definite `M` and
//! `E[K Kᵀ] = W C Wᵀ`, the second moment of what W gives on real inputs (`C = E[h hᵀ]`):
//!
//! 1. `S = M^{1/2}`;
//! 2. `S W C Wᵀ S = U Λ Uᵀ`, Λ descending: the loss of rank r is exactly `Σ_{j>r} Λ_j` (Eckart & Young 1936 in the
//!    whitened space);
//! 3. `Ŵ = S⁻¹ U_r U_rᵀ S W`; with the QR of `S⁻¹ U_r = Q R`: `W_u = Q`, `W_d = R U_rᵀ S W`. The columns of `W_u` are
//!    orthonormal at no cost, since `W_d` is free, and the first r' of them are the answer at rank r' < r.
//!
//! `M = I` is PCA of the true keys, `C = I` and `M = I` the plain SVD of the weights. Nothing here knows whether `W` is
//! `W_k`, `W_v`, both stacked (`joint`) or some rows of them (`decoupled_rope`).

use crate::error::Error;
use crate::linalg::{Mat64, eigh, qr};
use crate::metric::Metric;
use crate::scratch::{Scratch, StoredMatrix};

/// A spectrum and its basis, from which the factors of every rank follow.
#[derive(Clone, Debug)]
pub struct Factorisation {
    /// `Λ`, descending, one for each output of W: the loss each dimension prevents.
    pub spectrum: Vec<f64>,
    /// `S⁻¹ U`, a column a dimension.
    basis: Mat64,
    /// `Uᵀ S`, a row a dimension.
    projection: Mat64,
}

/// `W_u` and `W_d`.
#[derive(Clone, Debug)]
pub struct Factors {
    /// `[d_out, rank]`, orthonormal columns.
    pub w_up: Mat64,
    /// `[rank, d_in]`.
    pub w_down: Mat64,
}

/// The second moment of what `w` (`[d_out, d_in]`) gives for inputs of second moment `c` (`[d_in, d_in]`; `None` for
/// the identity): `W C Wᵀ`.
pub fn output_moment(w: &Mat64, c: Option<&Mat64>) -> Mat64 {
    match c {
        Some(c) => w.dot(c).dot(&w.transpose()),
        None => w.dot(&w.transpose()),
    }
}

impl Factorisation {
    /// Steps 1 and 2: the spectrum of outputs with second moment `moment` (`[d_out, d_out]`) under a metric.
    ///
    /// # Errors
    /// When the eigendecomposition does not converge.
    pub fn new(moment: &Mat64, metric: &Metric) -> Result<Self, Error> {
        let (spectrum, u) = eigh(&metric.whiten_moment(moment))?;
        // Rounding can leave tiny negative values in a rank-deficient spectrum.
        let spectrum = spectrum.into_iter().map(|lambda| lambda.max(0.0)).collect();
        Ok(Self { spectrum, basis: metric.unwhiten(&u), projection: metric.whiten_right(&u.transpose()) })
    }

    /// Step 3: the factors of `w` (`[d_out, d_in]`) at a rank.
    ///
    /// # Panics
    /// If `rank` exceeds d_out.
    pub fn factors(&self, w: &Mat64, rank: usize) -> Factors {
        let (w_up, r) = qr(&self.basis.leading_columns(rank));
        let w_down = r.dot(&self.projection.row_block(0..rank).dot(w));
        Factors { w_up, w_down }
    }

    /// `W_u` alone, for a basis that several weights share.
    ///
    /// # Panics
    /// If `rank` exceeds d_out.
    pub fn orthonormal_basis(&self, rank: usize) -> Mat64 {
        qr(&self.basis.leading_columns(rank)).0
    }

    /// The least rank that keeps a share of the spectrum, at least 1.
    pub fn rank_for_energy(&self, share: f64) -> usize {
        let kept = |&rank: &usize| self.energy_kept(rank) >= share;
        (1..=self.spectrum.len()).find(kept).unwrap_or(self.spectrum.len())
    }

    /// Puts the matrices into a scratch, to be taken up again by [`KeptFactorisation::load`].
    ///
    /// # Errors
    /// When the temporary file cannot be written.
    pub fn keep(self, scratch: &Scratch) -> Result<KeptFactorisation, Error> {
        Ok(KeptFactorisation {
            basis: scratch.keep_matrix(self.basis)?,
            projection: scratch.keep_matrix(self.projection)?,
            spectrum: self.spectrum,
        })
    }

    /// `Σ_{j>rank} Λ_j`: the expected loss of rank `rank`.
    pub fn discarded(&self, rank: usize) -> f64 {
        // An empty sum is −0.
        self.spectrum[rank..].iter().sum::<f64>() + 0.0
    }

    /// The share of the whole spectrum that rank `rank` keeps, from 0 to 1.
    pub fn energy_kept(&self, rank: usize) -> f64 {
        energy_kept(self.spectrum.iter().sum(), self.discarded(rank))
    }
}

/// A [`Factorisation`] whose matrices wait in a [`Scratch`] until its rank is known.
#[derive(Debug)]
pub struct KeptFactorisation {
    /// `Λ`, descending.
    pub spectrum: Vec<f64>,
    basis: StoredMatrix,
    projection: StoredMatrix,
}

impl KeptFactorisation {
    /// The factorisation as it was.
    ///
    /// # Errors
    /// When the temporary file cannot be read.
    pub fn load(&self) -> Result<Factorisation, Error> {
        let (basis, projection) = (self.basis.load()?, self.projection.load()?);
        Ok(Factorisation { spectrum: self.spectrum.clone(), basis, projection })
    }
}

/// The share of a loss that is prevented, from 0 to 1; a loss of nothing is wholly prevented.
pub(crate) fn energy_kept(total: f64, discarded: f64) -> f64 {
    if total > 0.0 { (1.0 - discarded / total).clamp(0.0, 1.0) } else { 1.0 }
}

/// The `W_d` that serves a given basis best: `(W_uᵀ M W_u)⁻¹ W_uᵀ M W`.
///
/// # Errors
/// When the basis is degenerate under the metric.
pub fn down_for(w_up: &Mat64, w: &Mat64, metric: &Metric) -> Result<Mat64, Error> {
    let su = metric.whiten(w_up);
    let sw = metric.whiten(w);
    crate::linalg::solve(&su.transpose().dot(&su), &su.transpose().dot(&sw))
}

/// The loss `trace(M E[e eᵀ])` of keeping `P K` in place of K, for outputs K of second moment `moment`.
///
/// # Shapes
/// - `moment`, `projector`: `[d_out, d_out]`; `projector` is `W_u p` for a `W_d = p W`
pub fn projection_loss(moment: &Mat64, projector: &Mat64, metric: &Metric) -> f64 {
    let mut rest = Mat64::identity(moment.rows);
    rest.subtract(projector);
    let rest = metric.whiten(&rest);
    rest.dot(moment).dot(&rest.transpose()).trace()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `trace(M E C Eᵀ)` for the error `E = W − W_u W_d`: the loss, computed the long way.
    fn loss(w: &Mat64, factors: &Factors, c: &Mat64, m: &Mat64) -> f64 {
        let mut error = w.clone();
        error.subtract(&factors.w_up.dot(&factors.w_down));
        m.dot(&error).dot(c).dot(&error.transpose()).trace()
    }

    fn random_metric(d: usize, seed: u64) -> Metric {
        let half = Mat64::random(d, d, seed);
        Metric::new(&half.dot(&half.transpose())).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn the_loss_is_the_tail_of_the_spectrum(
            d_kv in 2usize..12, d_model in 2usize..16, tokens in 1usize..30, cut in 0.0f64..1.0, seed in 0u64..500,
        ) {
            let w = Mat64::random(d_kv, d_model, seed);
            let h = Mat64::random(tokens, d_model, seed + 1);
            let c = h.transpose().dot(&h);
            let moment = output_moment(&w, Some(&c));
            let rank = 1 + (cut * (d_kv - 1) as f64) as usize;
            for metric in [Metric::Identity, random_metric(d_kv, seed + 2)] {
                let found = Factorisation::new(&moment, &metric).unwrap();
                let m = metric.matrix().unwrap_or_else(|| Mat64::identity(d_kv));
                let factors = found.factors(&w, rank);
                let total: f64 = found.spectrum.iter().sum();
                let gap = (loss(&w, &factors, &c, &m) - found.discarded(rank)).abs();
                prop_assert!(gap <= 1e-9 * total.max(1e-9), "rank {rank}: {gap} of {total}");
                prop_assert!(factors.w_up.orthonormality_residual() < 1e-10);
                prop_assert!(Mat64::from_matrix(&factors.w_up.to_matrix()).orthonormality_residual() < 1e-6);
                let projector = factors.w_up.dot(&down_for(&factors.w_up, &Mat64::identity(d_kv), &metric).unwrap());
                let again = projection_loss(&moment, &projector, &metric);
                prop_assert!((again - found.discarded(rank)).abs() <= 1e-8 * total.max(1e-9));
            }
        }

        #[test]
        fn full_rank_reproduces_the_weights(d_kv in 1usize..12, d_model in 1usize..16, seed in 0u64..500) {
            let w = Mat64::random(d_kv, d_model, seed);
            for metric in [Metric::Identity, random_metric(d_kv, seed + 2)] {
                let found = Factorisation::new(&output_moment(&w, None), &metric).unwrap();
                let Factors { w_up, w_down } = found.factors(&w, d_kv);
                let mut error = w_up.dot(&w_down);
                error.subtract(&w);
                let gap = error.data.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
                prop_assert!(gap < 1e-10, "{gap}");
            }
        }

        #[test]
        fn bases_are_nested(d_kv in 2usize..10, d_model in 10usize..16, seed in 0u64..500) {
            let w = Mat64::random(d_kv, d_model, seed);
            let metric = random_metric(d_kv, seed + 2);
            let found = Factorisation::new(&output_moment(&w, None), &metric).unwrap();
            let wide = found.orthonormal_basis(d_kv);
            let narrow = found.orthonormal_basis(d_kv / 2);
            for r in 0..d_kv {
                for c in 0..d_kv / 2 {
                    prop_assert!((wide.at(r, c) - narrow.at(r, c)).abs() < 1e-9);
                }
            }
        }

        #[test]
        fn the_down_projection_of_the_best_basis_is_the_best(d_kv in 2usize..10, seed in 0u64..500) {
            let w = Mat64::random(d_kv, d_kv + 4, seed);
            let metric = random_metric(d_kv, seed + 2);
            let found = Factorisation::new(&output_moment(&w, None), &metric).unwrap();
            let Factors { w_up, w_down } = found.factors(&w, d_kv / 2 + 1);
            let mut gap = down_for(&w_up, &w, &metric).unwrap();
            gap.subtract(&w_down);
            prop_assert!(gap.data.iter().all(|x| x.abs() < 1e-8));
        }
    }

    #[test]
    fn a_direction_the_inputs_never_take_is_dropped_first() {
        // h has energy only along the first axis, so rank 1 is lossless although W has rank 2.
        let w = Mat64 { rows: 2, cols: 2, data: vec![1.0, 5.0, 2.0, -3.0] };
        let c = Mat64 { rows: 2, cols: 2, data: vec![1.0, 0.0, 0.0, 0.0] };
        let found = Factorisation::new(&output_moment(&w, Some(&c)), &Metric::Identity).unwrap();
        assert!(found.discarded(1) < 1e-12);
        assert!((found.spectrum[0] - 5.0).abs() < 1e-12);
        assert_eq!(found.energy_kept(1), 1.0);
        assert_eq!(found.rank_for_energy(0.99), 1);
    }
}
