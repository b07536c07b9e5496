//! The metric an error of K or V is weighed in: whose loss `E‖M^{1/2}(K − K̂)‖²` a factorisation minimises.

use std::fmt;

use mla_core::DecoderConfig;

use crate::error::Error;
use crate::linalg::{Mat64, eigh};
use crate::scratch::{Scratch, StoredMatrix};

/// Share of the mean diagonal added to a metric, so that its root can be inverted.
const RIDGE: f64 = 1e-4;

/// What a factorisation minimises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Objective {
    /// The squared error of K and of V: `M = I`.
    Mse,
    /// The error of the attention scores, and of what the values add to the residual stream (forward pass only).
    Attention,
    /// The loss itself, to second order: the Fisher information at the outputs of k_proj and v_proj.
    Fisher,
}

impl Objective {
    /// The name on the command line and in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Objective::Mse => "mse",
            Objective::Attention => "attention",
            Objective::Fisher => "fisher",
        }
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A positive definite `M` as its roots.
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
        // Where nothing is read of K or V (an expanded model's new blocks), no error of them is worse than another.
        if m.trace() <= 0.0 {
            return Ok(Metric::Identity);
        }
        let mut ridged = m.clone();
        ridged.add_ridge(RIDGE);
        Self::exact(&ridged)
    }

    /// The roots of a positive definite `M` as it is.
    fn exact(m: &Mat64) -> Result<Self, Error> {
        let (values, vectors) = eigh(m)?;
        let power = |p: f64| {
            let mut scaled = vectors.clone();
            for (i, x) in scaled.data.iter_mut().enumerate() {
                *x *= values[i % m.rows].max(f64::MIN_POSITIVE).powf(p);
            }
            scaled.dot(&vectors.transpose())
        };
        Ok(Metric::Roots { root: power(0.5), inverse_root: power(-0.5) })
    }

    /// The metric of two parts that do not weigh on each other, of `d` dimensions each.
    pub fn block_diagonal(parts: [&Self; 2], d: usize) -> Self {
        match parts {
            [Metric::Identity, Metric::Identity] => Metric::Identity,
            [first, second] => {
                let eye = Mat64::identity(d);
                let blocks = |pick: fn(&Self) -> Option<&Mat64>| {
                    let [a, b] = [first, second].map(|metric| pick(metric).unwrap_or(&eye));
                    Mat64::diagonal_blocks(a, b)
                };
                Metric::Roots { root: blocks(Self::root), inverse_root: blocks(Self::inverse_root) }
            }
        }
    }

    /// The metric of an error that is confined to some dimensions.
    ///
    /// # Errors
    /// When the eigendecomposition does not converge.
    pub fn restricted(&self, dimensions: &[usize]) -> Result<Self, Error> {
        match self.matrix() {
            None => Ok(Metric::Identity),
            Some(m) => Self::exact(&m.select(dimensions)),
        }
    }

    /// `M`; `None` for the identity.
    pub fn matrix(&self) -> Option<Mat64> {
        self.root().map(|root| root.dot(root))
    }

    fn root(&self) -> Option<&Mat64> {
        match self {
            Metric::Identity => None,
            Metric::Roots { root, .. } => Some(root),
        }
    }

    fn inverse_root(&self) -> Option<&Mat64> {
        match self {
            Metric::Identity => None,
            Metric::Roots { inverse_root, .. } => Some(inverse_root),
        }
    }

    /// `S x`.
    pub fn whiten(&self, x: &Mat64) -> Mat64 {
        self.root().map_or_else(|| x.clone(), |root| root.dot(x))
    }

    /// `x S`.
    pub fn whiten_right(&self, x: &Mat64) -> Mat64 {
        self.root().map_or_else(|| x.clone(), |root| x.dot(root))
    }

    /// `S x S`.
    pub fn whiten_moment(&self, x: &Mat64) -> Mat64 {
        self.whiten_right(&self.whiten(x)).symmetrised()
    }

    /// `S⁻¹ x`.
    pub fn unwhiten(&self, x: &Mat64) -> Mat64 {
        self.inverse_root().map_or_else(|| x.clone(), |root| root.dot(x))
    }
}

/// A [`Metric`] that waits in a [`Scratch`].
#[derive(Debug)]
pub(crate) struct KeptMetric {
    /// `S` and `S⁻¹`; `None` for the identity.
    roots: Option<[StoredMatrix; 2]>,
}

impl KeptMetric {
    pub(crate) fn keep(metric: Metric, scratch: &Scratch) -> Result<Self, Error> {
        let roots = match metric {
            Metric::Identity => None,
            Metric::Roots { root, inverse_root } => {
                Some([scratch.keep_matrix(root)?, scratch.keep_matrix(inverse_root)?])
            }
        };
        Ok(Self { roots })
    }

    pub(crate) fn load(&self) -> Result<Metric, Error> {
        let Some([root, inverse_root]) = &self.roots else { return Ok(Metric::Identity) };
        Ok(Metric::Roots { root: root.load()?, inverse_root: inverse_root.load()? })
    }
}

/// The metric of keys under [`Objective::Attention`]: what a key's error does to the scores of the queries that read it.
///
/// A key is read at every distance, and RoPE turns it each time; the average over distances leaves one weight a
/// frequency pair, `λ_j = ½(B_jj + B_{j+d/2,j+d/2})` with `B = Σ_{h∈g} E[q_h q_hᵀ]`. Of dimensions that do not turn, all
/// of them without a rotary embedding, B itself is the metric.
///
/// # Shapes
/// - `queries`: for each kv head, B `[d_head, d_head]` → `[d_kv, d_kv]`, block-diagonal
pub fn key_scores(config: &DecoderConfig, layer: usize, queries: &[Mat64]) -> Mat64 {
    let (d_head, d_kv) = (config.d_head, config.d_kv());
    let mut m = Mat64::zeros(d_kv, d_kv);
    for (head, b) in queries.iter().enumerate() {
        let d_rotary = config.rope(layer).map_or(0, |rope| rope.d_rotary);
        let mut weights = Mat64::zeros(d_head, d_head);
        weights.place(d_rotary, d_rotary, &b.block(d_rotary..d_head, d_rotary..d_head));
        for pair in rotary_pairs(d_rotary) {
            let weight = 0.5 * pair.iter().map(|&j| b.at(j, j)).sum::<f64>();
            pair.iter().for_each(|&j| weights.data[j * d_head + j] = weight);
        }
        m.place(head * d_head, head * d_head, &weights);
    }
    m
}

/// The dimensions of a head that turn together, of `d_rotary` that turn.
pub(crate) fn rotary_pairs(d_rotary: usize) -> impl Iterator<Item = [usize; 2]> {
    (0..d_rotary / 2).map(move |j| [j, j + d_rotary / 2])
}

/// The metric of values under [`Objective::Attention`]: what a value's error adds to the residual stream through the
/// heads that read it, `Σ_{h∈g} W_{O,h}ᵀ W_{O,h}`.
///
/// # Shapes
/// - `w_o`: `[d_model, n_heads · d_head]` → `[d_kv, d_kv]`, block-diagonal
pub fn value_outputs(config: &DecoderConfig, w_o: &Mat64) -> Mat64 {
    let (d_head, d_kv) = (config.d_head, config.d_kv());
    let group = config.n_heads / config.n_kv_heads;
    let mut m = Mat64::zeros(d_kv, d_kv);
    for head in 0..config.n_kv_heads {
        let mut sum = Mat64::zeros(d_head, d_head);
        for query in head * group..(head + 1) * group {
            let out = w_o.block(0..w_o.rows, query * d_head..(query + 1) * d_head);
            sum.add(&out.transpose().dot(&out));
        }
        m.place(head * d_head, head * d_head, &sum);
    }
    m
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(a: &Mat64, b: &Mat64) -> f64 {
        a.data.iter().zip(&b.data).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
    }

    fn metric(d: usize, seed: u64) -> Metric {
        let half = Mat64::random(d, d, seed);
        Metric::new(&half.dot(&half.transpose())).expect("finite")
    }

    #[test]
    fn whitening_is_undone_by_unwhitening() {
        let (metric, x) = (metric(6, 1), Mat64::random(6, 3, 2));
        assert!(gap(&metric.unwhiten(&metric.whiten(&x)), &x) < 1e-10);
        assert_eq!(Metric::Identity.whiten(&x), x);
    }

    #[test]
    fn a_metric_of_nothing_is_the_identity() {
        assert!(matches!(Metric::new(&Mat64::zeros(3, 3)), Ok(Metric::Identity)));
    }

    #[test]
    fn a_restricted_metric_weighs_an_error_as_the_whole_does() {
        let whole = metric(5, 3);
        let part = whole.restricted(&[1, 4]).expect("finite");
        let m = whole.matrix().expect("no identity");
        assert!(gap(&part.matrix().expect("no identity"), &m.select(&[1, 4])) < 1e-12);
    }

    #[test]
    fn two_metrics_stand_side_by_side() {
        let (a, b) = (metric(3, 4), Metric::Identity);
        let both = Metric::block_diagonal([&a, &b], 3);
        let x = Mat64::random(6, 2, 5);
        let apart = [a.whiten(&x.row_block(0..3)), x.row_block(3..6)];
        assert!(gap(&both.whiten(&x), &Mat64::stack(&[&apart[0], &apart[1]])) < 1e-12);
        assert!(matches!(Metric::block_diagonal([&b, &b], 3), Metric::Identity));
    }
}
