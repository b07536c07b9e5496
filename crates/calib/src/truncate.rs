//! A converted model at a larger ratio than it was converted at, from its folder alone.
//!
//! The columns of `W_u` come in the order of what they prevent, so the first r' of them are the basis of rank r'. The best
//! `W_down` for those is not the first r' rows of the one for all: what the others carried of the same keys and values is
//! shared out anew. The balanced basis B knows how, since it is the triangle that whitens the cost up to a factor a row
//! ([`balance`](crate::balance)): `W_d' = B'⁻¹ (B W_d)[..r']` with the leading block B' of B. That is what a conversion at
//! the larger ratio would have written.

use burn::tensor::Device;
use mla_core::decoder::{AttentionKind, LatentConfig};
use mla_core::{DecoderConfig, Matrix, Slot, WeightSource};

use crate::error::Error;
use crate::factors::Factors;
use crate::linalg::Mat64;
use crate::plan::Plan;
use crate::ranks::{Ranks, Unit, within};
use crate::scratch::Scratch;

/// The ranks that a plan gives to layers whose spectra are known: for each layer those of its parts. `beside` numbers a token
/// are cached beside the latents, by all layers together.
///
/// # Errors
/// When the plan's width is out of range.
pub fn ranks_of(
    plan: &Plan,
    donor: &DecoderConfig,
    spectra: &[Vec<Vec<f64>>],
    beside: usize,
) -> Result<Vec<Vec<usize>>, Error> {
    let uniform = plan.d_latent(donor)?;
    let flat: Vec<usize> = match plan.ranks {
        Ranks::Uniform => spectra.iter().flatten().map(|_| uniform).collect(),
        Ranks::Global => {
            let units: Vec<Unit<'_>> =
                spectra.iter().flatten().map(|spectrum| Unit { spectrum, cost: 1 }).collect();
            within(&units, plan.budget(donor, spectra.len())?.saturating_sub(beside))?
        }
    };
    let mut flat = flat.into_iter();
    Ok(spectra.iter().map(|parts| flat.by_ref().take(parts.len()).collect()).collect())
}

/// The factors of a converted model whose latents are cut to `ranks`, a list of parts a layer.
///
/// # Errors
/// When a layer's latents are not in the order of what they prevent, are narrower already, or cannot be read.
pub fn truncate<S: WeightSource>(
    source: &S,
    ranks: &[Vec<usize>],
    device: &Device,
    scratch: &Scratch,
) -> Result<Factors, Error> {
    let mut config = source.config().clone();
    let mut places = Vec::new();
    for (layer, ranks) in ranks.iter().enumerate() {
        let latent = nested(source.config(), layer)?;
        let width = latent.width.with(ranks).ok_or(Error::NotNested { layer })?;
        let found = latent.width.widths();
        if ranks.iter().zip(&found).any(|(rank, found)| rank > found) {
            return Err(Error::Wider { layer, wanted: ranks.iter().sum(), found: found.iter().sum() });
        }
        config.layers[layer].attention = AttentionKind::Latent(LatentConfig { width, ..latent.clone() });
        places.extend(width.parts().into_iter().map(|part| (layer, part)));
    }
    let mut factors = Factors::new(config, scratch);
    for (layer, part) in places {
        let rank = part.width;
        let read = |slot| -> Result<Mat64, Error> {
            let matrix = source.matrix(Slot::Layer(layer, slot), device)?;
            Ok(Mat64::from_matrix(&Matrix::from_tensor(&matrix)))
        };
        let triangle = read(part.balance())?;
        let leading = triangle.block(0..rank, 0..rank);
        let told = triangle.row_block(0..rank).dot(&read(part.down())?);
        factors.insert(layer, part.down(), &back_substituted(&leading, told))?;
        factors.insert(layer, part.up(), &read(part.up())?.leading_columns(rank))?;
        factors.insert(layer, part.balance(), &leading)?;
    }
    Ok(factors)
}

/// A layer's latents, where the first of them are those of a larger ratio.
fn nested(config: &DecoderConfig, layer: usize) -> Result<&LatentConfig, Error> {
    let alone =
        |latent: &&LatentConfig| latent.balanced && latent.reads_from.is_none() && latent.up_of == layer;
    config.latent(layer).filter(alone).ok_or(Error::NotNested { layer })
}

/// `T⁻¹ y` for an upper triangle T.
fn back_substituted(triangle: &Mat64, mut y: Mat64) -> Mat64 {
    let width = y.cols;
    for row in (0..triangle.rows).rev() {
        let (head, tail) = y.data.split_at_mut((row + 1) * width);
        let own = &mut head[row * width..];
        for (below, x) in tail.chunks_exact(width).enumerate() {
            let factor = triangle.at(row, row + 1 + below);
            own.iter_mut().zip(x).for_each(|(own, x)| *own -= factor * x);
        }
        own.iter_mut().for_each(|own| *own /= triangle.at(row, row));
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::qr;

    #[test]
    fn a_triangle_is_undone() {
        let (_, triangle) = qr(&Mat64::random(5, 5, 1));
        let x = Mat64::random(5, 3, 2);
        let mut gap = back_substituted(&triangle, triangle.dot(&x));
        gap.subtract(&x);
        assert!(gap.data.iter().all(|x| x.abs() < 1e-10));
    }
}
