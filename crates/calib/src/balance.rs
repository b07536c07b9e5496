//! The basis in which each latent is best quantised.
//!
//! Quantised numbers get errors of one size, whatever they mean. With latents `c` of second moment Σ, and errors that cost
//! `eᵀ A e` (A is what the metric makes of an error once all that read the latent have multiplied it), the loss of quantising
//! `z = B c` in place of c is proportional to `tr(B Σ Bᵀ) · tr(B⁻ᵀ A B⁻¹)`, which is least, at `(Σ √eig(ΣA))²`, where both
//! are the same: in the balanced realisation (Moore 1981). Measured, that is a fifth of the loss in the basis that W_u's
//! orthonormal columns give (docs/quantisation.md). The spreading of `z` over all its numbers follows at load time.
//!
//! Σ is taken over all tokens but each window's first: an attention sink is quantised by its own scale, and its size says
//! nothing of the others'.

use burn::tensor::Device;
use mla_core::decoder::{LatentConfig, LatentWidth};
use mla_core::{LayerSlot, Patch, Slot, WeightSource};

use crate::error::Error;
use crate::factors::Factors;
use crate::linalg::{Mat64, eigh, qr, solve};
use crate::metric::{Metric, Objective};
use crate::statistics::Targets;

/// Of the largest variance, or cost: what is smaller counts as this.
const LEAST: f64 = 1e-8;

/// Adds the balanced basis of every latent that has a `W_up` of its own, and returns the loss of errors in all their numbers
/// that vary as much as the numbers do.
///
/// # Errors
/// When the source or the temporary file fails, or the statistics are degenerate.
pub(crate) fn balance<S: WeightSource>(
    factors: &mut Factors,
    source: &S,
    targets: Targets<'_>,
    objective: Objective,
    device: &Device,
) -> Result<f64, Error> {
    let config = factors.config().clone();
    let shared = |layer: usize| {
        (0..config.n_layers())
            .any(|other| other != layer && config.latent(other).is_some_and(|o| o.up_of == layer))
    };
    // What an error in a latent costs, layer by layer as the layers that read it are met.
    let mut costs: Vec<Option<Mat64>> = vec![None; config.n_layers()];
    for layer in 0..config.n_layers() {
        let Some(latent) = config.latent(layer) else { continue };
        let metrics = targets.metrics(source, objective, layer, device)?;
        let mut column = 0;
        let (own, crossed) = readings(factors, layer, latent, &metrics)?;
        add(&mut costs[layer], &own);
        for j in config.reads(layer) {
            let width = config.cached_numbers(j);
            let part = crossed.block(0..crossed.rows, column..column + width);
            add(&mut costs[j], &part);
            column += width;
        }
    }
    let mut noise = 0.0;
    for (layer, cost) in costs.into_iter().enumerate() {
        let (Some(latent), Some(cost)) = (config.latent(layer), cost) else { continue };
        if latent.up_of != layer || shared(layer) {
            continue;
        }
        let moment = latent_moment(factors, source, targets, layer, device)?;
        let mut first = 0;
        for part in latent.width.parts() {
            let place = first..first + part.width;
            let (moment, cost) =
                (moment.block(place.clone(), place.clone()), cost.block(place.clone(), place));
            let (basis, loss) = match latent.reads_from {
                None => scaled_triangle(&moment, &cost)?,
                Some(_) => balanced(&moment, &cost)?,
            };
            factors.insert(layer, part.balance(), &basis)?;
            noise += loss / part.width as f64;
            first += part.width;
        }
        factors.set_balanced(layer);
    }
    Ok(noise)
}

/// `B` for a latent that its own layer alone reads, whose directions come in the order of what they prevent: the triangle
/// that whitens the cost, scaled row by row. Triangular, so that its leading block is the basis of a latent cut short. Beside
/// it `tr(B Σ Bᵀ) · tr(B⁻ᵀ A B⁻¹)`.
fn scaled_triangle(moment: &Mat64, cost: &Mat64) -> Result<(Mat64, f64), Error> {
    let mut basis = root(cost)?;
    let variances = basis.dot(moment).dot(&basis.transpose()).diagonal();
    let largest = variances.iter().fold(0f64, |largest, &x| largest.max(x)).max(f64::MIN_POSITIVE);
    let width = basis.cols;
    let (mut varying, mut costing) = (0.0, 0.0);
    for (row, variance) in basis.data.chunks_exact_mut(width).zip(variances) {
        let scale = (variance / largest).max(LEAST).powf(-0.25);
        row.iter_mut().for_each(|x| *x *= scale);
        varying += scale * scale * variance;
        costing += 1.0 / (scale * scale);
    }
    Ok((basis, varying * costing))
}

/// The upper triangle R with `A = Rᵀ R`.
fn root(cost: &Mat64) -> Result<Mat64, Error> {
    let (values, vectors) = eigh(cost)?;
    Ok(qr(&powered(&vectors.transpose(), &values, 0.5)).1)
}

/// Rows scaled by a power of the eigenvalues that belong to them, none of which counts as less than a share of the largest.
fn powered(rows: &Mat64, values: &[f64], power: f64) -> Mat64 {
    let floor = LEAST * values[0].max(f64::MIN_POSITIVE);
    let mut rows = rows.clone();
    let width = rows.cols;
    for (row, value) in rows.data.chunks_exact_mut(width).zip(values) {
        let scale = value.max(floor).powf(power);
        row.iter_mut().for_each(|x| *x *= scale);
    }
    rows
}

/// `Σ = L Lᵀ`; `Lᵀ A L = U S² Uᵀ`.
struct Realisation {
    /// `Σ`'s eigenvalues and its eigenvectors as rows.
    values: Vec<f64>,
    vectors: Mat64,
    /// The diagonal of `S²`.
    squares: Vec<f64>,
    /// `Uᵀ`.
    rotation: Mat64,
}

impl Realisation {
    fn new(moment: &Mat64, cost: &Mat64) -> Result<Self, Error> {
        let (values, vectors) = eigh(moment)?;
        let vectors = vectors.transpose();
        let half = powered(&vectors, &values, 0.5);
        let (squares, rotation) = eigh(&half.dot(cost).dot(&half.transpose()).symmetrised())?;
        Ok(Self { values, vectors, squares, rotation: rotation.transpose() })
    }
}

/// `B` with `B Σ Bᵀ = B⁻ᵀ A B⁻¹`, diagonal, and the product of their traces.
fn balanced(moment: &Mat64, cost: &Mat64) -> Result<(Mat64, f64), Error> {
    let Realisation { values, vectors, squares, rotation } = Realisation::new(moment, cost)?;
    // B = S^½ Uᵀ L⁻¹, up to a factor, which is chosen so that the largest entry of S is 1.
    let mut basis = powered(&rotation.dot(&powered(&vectors, &values, -0.5)), &squares, 0.25);
    basis.scale(squares[0].max(f64::MIN_POSITIVE).powf(-0.25));
    let trace: f64 = squares.iter().map(|square| square.max(0.0).sqrt()).sum();
    Ok((basis, trace * trace))
}

/// The second moment of the errors that even steps make of a latent in its balanced basis, where each number's error varies
/// as much as the number does: `mean(S) · B⁻¹ B⁻ᵀ`.
///
/// # Errors
/// When an eigendecomposition does not converge.
pub(crate) fn rounding_moment(moment: &Mat64, cost: &Mat64) -> Result<Mat64, Error> {
    let Realisation { values, vectors, squares, rotation } = Realisation::new(moment, cost)?;
    let floor = LEAST * squares[0].max(f64::MIN_POSITIVE);
    let mean = squares.iter().map(|square| square.max(floor).sqrt()).sum::<f64>() / squares.len() as f64;
    // B⁻ᵀ = S^{−½} Uᵀ Lᵀ, a row a direction.
    let rows = powered(&rotation.dot(&powered(&vectors, &values, 0.5)), &squares, -0.25);
    let mut found = rows.transpose().dot(&rows);
    found.scale(mean);
    Ok(found)
}

/// Adds `partᵀ part`.
fn add(cost: &mut Option<Mat64>, part: &Mat64) {
    let gram = part.transpose().dot(part);
    match cost {
        None => *cost = Some(gram),
        Some(cost) => cost.add(&gram),
    }
}

/// Whitened, what the layer's K and V read of its own latent (`[2 · d_kv, width]`) and of those of earlier layers.
fn readings(
    factors: &Factors,
    layer: usize,
    latent: &LatentConfig,
    metrics: &[Metric; 2],
) -> Result<(Mat64, Mat64), Error> {
    let get = |layer, slot| -> Result<Option<Mat64>, Error> {
        Ok(factors.get(Slot::Layer(layer, slot))?.map(|matrix| Mat64::from_matrix(&matrix)))
    };
    let up = |slot| Ok::<_, Error>(get(latent.up_of, slot)?.expect("a latent layer has a W_up"));
    let cross = [get(layer, LayerSlot::CrossKey)?, get(layer, LayerSlot::CrossValue)?];
    let (own, columns) = match latent.width {
        LatentWidth::Joint { .. } => {
            let up = up(LayerSlot::UpJoint)?;
            let d_kv = up.rows / 2;
            ([up.row_block(0..d_kv), up.row_block(d_kv..2 * d_kv)], [0, 0])
        }
        LatentWidth::Split { d_latent_k: k, d_latent_v: v } => {
            let (up_k, up_v) = (up(LayerSlot::UpKey)?, up(LayerSlot::UpValue)?);
            let d_kv = up_k.rows;
            // The other half of the layer's own latent is what the cross terms read first.
            let other = |cross: &Option<Mat64>, width| match cross {
                Some(cross) => cross.block(0..d_kv, 0..width),
                None => Mat64::zeros(d_kv, width),
            };
            let rows_k = Mat64::beside(d_kv, &[up_k, other(&cross[0], v)]);
            let rows_v = Mat64::beside(d_kv, &[other(&cross[1], k), up_v]);
            ([rows_k, rows_v], if cross[0].is_some() { [v, k] } else { [0, 0] })
        }
    };
    let d_kv = own[0].rows;
    let earlier = [0, 1].map(|part| match &cross[part] {
        Some(cross) => cross.block(0..d_kv, columns[part]..cross.cols),
        None => Mat64::zeros(d_kv, 0),
    });
    let whitened = |[k, v]: [Mat64; 2]| Mat64::stack(&[&metrics[0].whiten(&k), &metrics[1].whiten(&v)]);
    Ok((whitened(own), whitened(earlier)))
}

/// `E[c cᵀ]` over all tokens but each window's first.
fn latent_moment<S: WeightSource>(
    factors: &Factors,
    source: &S,
    targets: Targets<'_>,
    layer: usize,
    device: &Device,
) -> Result<Mat64, Error> {
    let down = factors.down(layer)?;
    // W_down lies in the row space of [W_k; W_v], so that its latent is p [K; V], whose moment is known.
    let w = targets.stacked(source, layer, device)?;
    let mut gram = w.dot(&w.transpose());
    gram.add_ridge(1e-10);
    let p = solve(&gram.symmetrised(), &w.dot(&down.transpose()))?.transpose();
    Ok(p.dot(&targets.typical_moment(layer)?).dot(&p.transpose()).symmetrised())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn positive(size: usize, seed: u64) -> Mat64 {
        let half = Mat64::random(size, size + 2, seed);
        half.dot(&half.transpose())
    }

    /// `tr(B Σ Bᵀ) · tr(B⁻ᵀ A B⁻¹)`.
    fn loss(basis: &Mat64, moment: &Mat64, cost: &Mat64) -> f64 {
        let inverse = solve(&basis.dot(&basis.transpose()), basis).expect("regular").transpose();
        basis.dot(moment).dot(&basis.transpose()).trace()
            * inverse.transpose().dot(cost).dot(&inverse).trace()
    }

    #[test]
    fn the_balanced_basis_makes_variance_and_cost_alike_and_no_other_does_better() {
        for size in [1, 2, 5, 9] {
            let (moment, cost) = (positive(size, 3), positive(size, 4));
            let (basis, foretold) = balanced(&moment, &cost).unwrap();
            let least = loss(&basis, &moment, &cost);
            assert!((foretold / least - 1.0).abs() < 1e-8, "{foretold} {least}");
            let inverse = solve(&basis.dot(&basis.transpose()), &basis).unwrap().transpose();
            let mut gap = basis.dot(&moment).dot(&basis.transpose());
            let mut right = inverse.transpose().dot(&cost).dot(&inverse);
            right.scale(gap.trace() / right.trace());
            gap.subtract(&right);
            assert!(gap.data.iter().all(|x| x.abs() < 1e-8 * right.trace()), "{size}");
            for seed in 10..20 {
                let mut other = Mat64::random(size, size, seed);
                other.scale(0.1);
                other.add(&Mat64::identity(size));
                assert!(loss(&other.dot(&basis), &moment, &cost) >= least * (1.0 - 1e-9));
            }
            assert!(loss(&Mat64::identity(size), &moment, &cost) >= least * (1.0 - 1e-9));
        }
    }

    #[test]
    fn errors_of_rounding_cost_what_the_balanced_basis_foretells() {
        let (moment, cost) = (positive(6, 3), positive(6, 4));
        let (_, foretold) = balanced(&moment, &cost).unwrap();
        let found = rounding_moment(&moment, &cost).unwrap().dot(&cost).trace();
        assert!((found * 6.0 / foretold - 1.0).abs() < 1e-8, "{found} {foretold}");
    }

    #[test]
    fn the_triangle_is_balanced_where_the_directions_are_the_principal_ones() {
        // c = R y for a white cost and a diagonal moment of y: what a factorisation gives.
        let (_, triangle) = qr(&Mat64::random(6, 6, 7));
        let inverse = solve(&triangle.transpose().dot(&triangle), &triangle.transpose()).unwrap();
        let mut moment = Mat64::zeros(6, 6);
        for at in 0..6 {
            moment.data[at * 6 + at] = 0.5f64.powi(at as i32);
        }
        let (moment, cost) =
            (triangle.dot(&moment).dot(&triangle.transpose()), inverse.transpose().dot(&inverse));
        let (found, foretold) = scaled_triangle(&moment, &cost).unwrap();
        assert!((foretold / loss(&found, &moment, &cost) - 1.0).abs() < 1e-8);
        let (best, _) = balanced(&moment, &cost).unwrap();
        assert!((loss(&found, &moment, &cost) / loss(&best, &moment, &cost) - 1.0).abs() < 1e-8);
        for row in 0..6 {
            assert!((0..row).all(|column| found.at(row, column).abs() < 1e-9), "triangular");
        }
    }
}
