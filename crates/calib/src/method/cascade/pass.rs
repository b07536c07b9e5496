//! One walk through the layers: what each adds to what the layers before it have told (steps 1 to 3).

use std::collections::BTreeMap;
use std::ops::Range;

use crate::error::Error;
use crate::linalg::{Mat64, eigh, solve};
use crate::metric::Metric;
use crate::plan::{Cascade, Latents};
use crate::scratch::StoredMatrix;
use crate::statistics::Statistics;

/// Share of the mean diagonal added to `E[c cᵀ]` before it is inverted.
pub(super) const RIDGE: f64 = 1e-6;

/// Which latent a layer gets. K and V have a part each, or one together.
#[derive(Clone, Debug)]
pub(super) enum Rule {
    /// So many eigenvectors of each part's innovation.
    Ranks(Vec<usize>),
    /// All whose eigenvalue exceeds the threshold, and at least `floor` a part.
    Above { threshold: f64, floor: usize },
    /// This one.
    Given { projection: Mat64, ranks: Vec<usize> },
}

/// The innovation of a layer, part by part.
pub(super) struct Found {
    /// Its eigenvalues, descending; empty where the latent was given.
    pub(super) spectra: Vec<Vec<f64>>,
    /// The loss of dropping the part altogether.
    pub(super) totals: Vec<f64>,
    /// What was kept.
    pub(super) ranks: Vec<usize>,
}

/// The latents of the layers in the window, and their moments.
pub(super) struct Pass<'a> {
    statistics: &'a Statistics,
    cascade: Cascade,
    latents: BTreeMap<usize, Latent>,
    /// `E[c_a c_bᵀ]` for `b ≤ a`.
    moments: BTreeMap<(usize, usize), Mat64>,
    /// `E[y_i c_jᵀ]`, whitened, for the layer at hand and what it reads.
    targets: Vec<Mat64>,
    /// The layers that the layer at hand reads, with the ranks of their parts.
    reads: Vec<(usize, Vec<usize>)>,
    /// What the last decoder leaves of keys and of values.
    left: [f64; 2],
    /// The second moments of the errors with which latents are read.
    noise: &'a [StoredMatrix],
}

struct Latent {
    /// `P S`: `[r, 2 · d_kv]`.
    projection: Mat64,
    ranks: Vec<usize>,
}

impl Latents {
    /// Parts of a layer's latent.
    pub(super) fn parts(self) -> usize {
        match self {
            Latents::Together => 1,
            Latents::Apart => 2,
        }
    }

    /// The rows of `[K; V]` that each part is fitted to.
    fn ranges(self, d_kv: usize) -> Vec<Range<usize>> {
        match self {
            Latents::Together => std::iter::once(0..2 * d_kv).collect(),
            Latents::Apart => vec![0..d_kv, d_kv..2 * d_kv],
        }
    }
}

impl<'a> Pass<'a> {
    pub(super) fn new(statistics: &'a Statistics, cascade: Cascade) -> Self {
        Self {
            statistics,
            cascade,
            latents: BTreeMap::new(),
            moments: BTreeMap::new(),
            targets: Vec::new(),
            reads: Vec::new(),
            left: [0.0; 2],
            noise: &[],
        }
    }

    /// For latents that are read with errors of these second moments, one a layer: decoders then lean on them less.
    pub(super) fn with_noise(self, noise: &'a [StoredMatrix]) -> Self {
        Self { noise, ..self }
    }

    /// Steps 1 and 2: the innovation of a layer and its own latent.
    pub(super) fn layer(&mut self, i: usize, metrics: &[Metric; 2], rule: Rule) -> Result<Found, Error> {
        let first = self.cascade.first_read(i);
        self.reads = (first..i).map(|j| (j, self.latents[&j].ranks.clone())).collect();
        self.targets.clear();
        let mut crossed = Vec::with_capacity(self.reads.len());
        for j in first..i {
            let raw = self.statistics.moment(i, j)?.dot(&self.latents[&j].projection.transpose());
            self.targets.push(whiten(metrics, &raw));
            crossed.push(raw);
        }
        let own = self.statistics.moment(i, i)?;
        let (projection, found) = match rule {
            Rule::Given { projection, ranks } => {
                let found = Found { spectra: Vec::new(), totals: Vec::new(), ranks: ranks.clone() };
                (projection, found)
            }
            rule => self.innovation(first..i, &own, metrics, &rule)?,
        };
        for (j, raw) in (first..i).zip(crossed) {
            self.moments.insert((i, j), projection.dot(&raw));
        }
        let mut moment = projection.dot(&own).dot(&projection.transpose()).symmetrised();
        if let Some(noise) = self.noise.get(i) {
            moment.add(&noise.load()?);
        }
        self.moments.insert((i, i), moment);
        self.latents.insert(i, Latent { projection, ranks: found.ranks.clone() });
        Ok(found)
    }

    /// The eigenvectors of what the layers in `window` do not tell of a layer, as many as the rule says, times S.
    fn innovation(
        &self,
        window: Range<usize>,
        own: &Mat64,
        metrics: &[Metric; 2],
        rule: &Rule,
    ) -> Result<(Mat64, Found), Error> {
        let d_kv = self.statistics.config().d_kv();
        let whole = whiten_moment(metrics, own);
        let mut left = whole.clone();
        if !window.is_empty() {
            let told = self.regress(window)?.0.dot(&Mat64::beside(2 * d_kv, &self.targets).transpose());
            left.subtract(&told);
        }
        let left = left.symmetrised();
        let (mut rows, mut found) =
            (Vec::new(), Found { spectra: Vec::new(), totals: Vec::new(), ranks: Vec::new() });
        for (part, range) in self.cascade.latents.ranges(d_kv).into_iter().enumerate() {
            let (values, vectors) = eigh(&left.block(range.clone(), range.clone()))?;
            let rank = match rule {
                Rule::Ranks(ranks) => ranks[part],
                Rule::Above { threshold, floor } => {
                    let above = values.iter().filter(|&&lambda| lambda > *threshold).count();
                    above.clamp((*floor).min(range.len()), range.len())
                }
                Rule::Given { .. } => unreachable!("a given latent has no innovation to find"),
            };
            let mut p = Mat64::zeros(rank, 2 * d_kv);
            p.place(0, range.start, &vectors.leading_columns(rank).transpose());
            // P S = (S Pᵀ)ᵀ, since S is symmetric.
            rows.push(whiten(metrics, &p.transpose()).transpose());
            found.totals.push(whole.block(range.clone(), range).trace());
            found.spectra.push(values.into_iter().map(|lambda| lambda.max(0.0)).collect());
            found.ranks.push(rank);
        }
        Ok((Mat64::stack(&rows.iter().collect::<Vec<_>>()), found))
    }

    /// Step 3: the whitened decoder of the layer at hand, from what it reads and then its own latent.
    pub(super) fn decoder(&mut self, i: usize, metrics: &[Metric; 2]) -> Result<Mat64, Error> {
        let p = &self.latents[&i].projection;
        if p.rows == p.cols {
            // A latent as wide as K and V tells all by itself, and exactly, where a ridge would shrink it.
            let inverse = solve(&p.dot(&p.transpose()), p)?.transpose();
            let told: usize = self.reads.iter().flat_map(|(_, ranks)| ranks).sum();
            self.left = [0.0; 2];
            return Ok(Mat64::beside(p.rows, &[Mat64::zeros(p.rows, told), whiten(metrics, &inverse)]));
        }
        let moment = self.statistics.moment(i, i)?;
        let own = moment.dot(&p.transpose());
        self.targets.push(whiten(metrics, &own));
        let (decoder, ridge) = self.regress(self.cascade.first_read(i)..i + 1)?;
        // Σ − 2 D Tᵀ + D E[c cᵀ] Dᵀ, where E[c cᵀ] Dᵀ = Tᵀ − ρ Dᵀ.
        let whole = whiten_moment(metrics, &moment).diagonal();
        let targets = Mat64::beside(decoder.rows, &self.targets);
        let left = |row: usize| {
            let place = row * decoder.cols..(row + 1) * decoder.cols;
            let told = decoder.data[place.clone()].iter().zip(&targets.data[place]);
            (whole[row] - told.map(|(d, t)| d * (t + ridge * d)).sum::<f64>()).max(0.0)
        };
        let half = decoder.rows / 2;
        self.left = [0, 1].map(|part| (part * half..(part + 1) * half).map(left).sum());
        Ok(decoder)
    }

    /// The loss that the decoder of the layer at hand leaves of keys and of values, in the unit of the metric.
    pub(super) fn left(&self) -> [f64; 2] {
        self.left
    }

    /// `D = E[y cᵀ] (E[c cᵀ] + ρ I)⁻¹` on the latents of some layers, whose `E[y c_jᵀ]` are in `targets`, and ρ.
    fn regress(&self, layers: Range<usize>) -> Result<(Mat64, f64), Error> {
        let widths: Vec<usize> = layers.clone().map(|j| self.latents[&j].projection.rows).collect();
        let size = widths.iter().sum();
        let mut moment = Mat64::zeros(size, size);
        let mut row = 0;
        for (a, height) in layers.clone().zip(&widths) {
            let mut column = 0;
            for (b, width) in layers.clone().zip(&widths) {
                if b <= a {
                    let block = &self.moments[&(a, b)];
                    moment.place(row, column, block);
                    moment.place(column, row, &block.transpose());
                }
                column += width;
            }
            row += height;
        }
        let ridge = RIDGE * moment.trace() / size.max(1) as f64;
        moment.add_ridge(RIDGE);
        let targets = Mat64::beside(2 * self.statistics.config().d_kv(), &self.targets);
        Ok((solve(&moment, &targets.transpose())?.transpose(), ridge))
    }

    /// `P S` of a layer in the window: its latent is `P S [W_k; W_v] h`.
    pub(super) fn projection(&self, layer: usize) -> &Mat64 {
        &self.latents[&layer].projection
    }

    /// What the layer at hand reads: layers, with the ranks of their parts.
    pub(super) fn reads(&self) -> &[(usize, Vec<usize>)] {
        &self.reads
    }

    /// Drops what no layer after this one reads.
    pub(super) fn forget(&mut self, layer: usize) {
        let first = self.cascade.first_read(layer + 1);
        self.latents.retain(|&j, _| j >= first);
        self.moments.retain(|&(a, b), _| a >= first && b >= first);
    }
}

/// `S x` for the S of keys and of values, side by side.
pub(super) fn whiten(metrics: &[Metric; 2], x: &Mat64) -> Mat64 {
    let half = x.rows / 2;
    let [k, v] = [0, 1].map(|part| metrics[part].whiten(&x.row_block(part * half..(part + 1) * half)));
    Mat64::stack(&[&k, &v])
}

/// `S x S` for a symmetric x.
pub(super) fn whiten_moment(metrics: &[Metric; 2], x: &Mat64) -> Mat64 {
    whiten(metrics, &whiten(metrics, x).transpose()).symmetrised()
}
