//! Step 5: latents that serve every layer that reads them.
//!
//! Steps 1 and 2 choose a latent for its own layer alone, although up to `window` later layers read it too. The loss of
//! the whole model, `Σ_l E‖y_l − Σ_j D_lj c_j‖²` with `c_j = P_j y_j`, is a least-squares problem in the decoders when
//! the latents are fixed, and in one latent when all else is:
//!
//! `P_i = (Σ_l D_liᵀ D_li)⁻¹ (Σ_l D_liᵀ E[e_l y_iᵀ]) Σ_ii⁻¹`, with `e_l = y_l − Σ_{j≠i} D_lj c_j` over the readers l of i.
//!
//! Alternating between the two never raises the loss (but for a ridge that keeps the systems solvable). Latents of K and V apart keep to their halves, so only one that is
//! fitted to both is refined.

use std::collections::BTreeMap;

use super::pass::{Pass, RIDGE, whiten, whiten_moment};
use super::{Projection, Roots};
use crate::balance::rounding_moment;
use crate::error::Error;
use crate::linalg::{Mat64, solve};
use crate::plan::{Cascade, Latents};
use crate::scratch::StoredMatrix;
use crate::statistics::{Statistics, Targets};
use crate::sweep::Observer;

/// A layer's decoder that waits in a scratch: `D_lj`, `[2 · d_kv, width of j]`, of each layer j that it reads.
struct Decoder {
    blocks: BTreeMap<usize, StoredMatrix>,
}

impl Decoder {
    /// `D_lj` for a layer j that is read.
    fn block(&self, j: usize) -> Result<Option<Mat64>, Error> {
        self.blocks.get(&j).map(StoredMatrix::load).transpose()
    }
}

/// Improves the projections in place.
pub(super) fn refine(
    statistics: &Statistics,
    roots: &[Roots],
    cascade: Cascade,
    projections: &mut [Projection],
    observer: &mut dyn Observer,
) -> Result<(), Error> {
    if cascade.latents == Latents::Apart || cascade.rounds == 0 {
        return Ok(());
    }
    observer.phase("refining latents", cascade.rounds * roots.len());
    let full = 2 * statistics.config().d_kv();
    for round in 0..cascade.rounds {
        let decoders = decoders(statistics, roots, cascade, projections)?;
        for i in 0..roots.len() {
            let ranks = projections[i].ranks.clone();
            // A latent as wide as K and V tells all already.
            if ranks.iter().sum::<usize>() < full {
                let better = latent(statistics, roots, cascade, projections, &decoders, i)?;
                projections[i] = Projection::keep(better, ranks, statistics.scratch())?;
            }
            observer.step(round * roots.len() + i + 1);
        }
    }
    Ok(())
}

/// The second moments of the errors that rounding makes of each latent, where a number's error varies `share` as much as the
/// number does.
pub(super) fn rounding_moments(
    statistics: &Statistics,
    roots: &[Roots],
    cascade: Cascade,
    projections: &[Projection],
    share: f64,
) -> Result<Vec<StoredMatrix>, Error> {
    let decoders = decoders(statistics, roots, cascade, projections)?;
    let mut noise = Vec::with_capacity(roots.len());
    for (i, projection) in projections.iter().enumerate() {
        let p = projection.load()?;
        let mut cost = Mat64::zeros(p.rows, p.rows);
        for l in (i..roots.len().min(i + cascade.window + 1)).filter(|&l| cascade.first_read(l) <= i) {
            if let Some(block) = decoders[l].block(i)? {
                cost.add(&block.transpose().dot(&block));
            }
        }
        let moment =
            p.dot(&Targets::of_donor(statistics).typical_moment(i)?).dot(&p.transpose()).symmetrised();
        let mut found = Mat64::zeros(p.rows, p.rows);
        let mut first = 0;
        for &rank in &projection.ranks {
            let place = first..first + rank;
            let [moment, cost] = [&moment, &cost].map(|matrix| matrix.block(place.clone(), place.clone()));
            found.place(first, first, &rounding_moment(&moment, &cost)?);
            first += rank;
        }
        found.scale(share);
        noise.push(statistics.scratch().keep_matrix(found)?);
    }
    Ok(noise)
}

/// The best decoder of every layer for the latents as they are.
fn decoders(
    statistics: &Statistics,
    roots: &[Roots],
    cascade: Cascade,
    projections: &[Projection],
) -> Result<Vec<Decoder>, Error> {
    let mut pass = Pass::new(statistics, cascade);
    let mut decoders = Vec::with_capacity(roots.len());
    for (layer, roots) in roots.iter().enumerate() {
        let metrics = roots.load()?;
        pass.layer(layer, &metrics, projections[layer].rule()?)?;
        let decoder = pass.decoder(layer, &metrics)?;
        let mut blocks = BTreeMap::new();
        let mut column = 0;
        let first = cascade.first_read(layer);
        for (j, projection) in (first..).zip(&projections[first..=layer]) {
            let width: usize = projection.ranks.iter().sum();
            let block = decoder.block(0..decoder.rows, column..column + width);
            blocks.insert(j, statistics.scratch().keep_matrix(block)?);
            column += width;
        }
        decoders.push(Decoder { blocks });
        pass.forget(layer);
    }
    Ok(decoders)
}

/// The best latent of layer `i` for the decoders and the other latents as they are: `P S`.
fn latent(
    statistics: &Statistics,
    roots: &[Roots],
    cascade: Cascade,
    projections: &[Projection],
    decoders: &[Decoder],
    i: usize,
) -> Result<Mat64, Error> {
    let rows = 2 * statistics.config().d_kv();
    let metrics = roots[i].load()?;
    let readers: Vec<usize> =
        (i..roots.len().min(i + cascade.window + 1)).filter(|&l| cascade.first_read(l) <= i).collect();
    let first = readers.iter().map(|&l| cascade.first_read(l)).min().unwrap_or(i);
    let last = readers.last().copied().unwrap_or(i);
    // `E[c_j y_iᵀ]`, whitened, of every layer that a reader of i reads too.
    let mut crossed = Vec::with_capacity(last + 1 - first);
    for (j, projection) in (first..).zip(&projections[first..=last]) {
        let raw = match j >= i {
            true => statistics.moment(j, i)?,
            false => statistics.moment(i, j)?.transpose(),
        };
        crossed.push(whiten(&metrics, &projection.load()?.dot(&raw).transpose()).transpose());
    }
    let rank = projections[i].ranks.iter().sum();
    let (mut square, mut wanted) = (Mat64::zeros(rank, rank), Mat64::zeros(rank, rows));
    for &l in &readers {
        let Some(own) = decoders[l].block(i)? else { continue };
        let own = own.transpose();
        square.add(&own.dot(&own.transpose()));
        // `D_liᵀ E[e_l y_iᵀ]`, the narrow side first.
        let target = whiten(&roots[l].load()?, &statistics.moment(l, i)?);
        wanted.add(&own.dot(&whiten(&metrics, &target.transpose()).transpose()));
        for j in (cascade.first_read(l)..=l).filter(|&j| j != i) {
            if let Some(decoder) = decoders[l].block(j)? {
                wanted.subtract(&own.dot(&decoder).dot(&crossed[j - first]));
            }
        }
    }
    square.add_ridge(RIDGE);
    let mut moment = whiten_moment(&metrics, &statistics.moment(i, i)?);
    moment.add_ridge(RIDGE);
    let p = solve(&moment, &solve(&square, &wanted)?.transpose())?;
    Ok(whiten(&metrics, &p).transpose())
}
