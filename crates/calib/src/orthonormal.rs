//! Latents whose `W_up` was moved off the Stiefel manifold, in coordinates in which its columns are orthonormal again.
//!
//! Another program trains `W_up` as any matrix. With `W_up = Q R` the same keys and values come of the latent `c' = R c`:
//! `W_up' = Q` and `W_down' = R W_down`. Whatever else reads the latent takes the inverse on that side: cross terms `X' = X R⁻¹`,
//! of its own layer and of later ones, and the basis for quantising `B' = B R⁻¹`. Layers that share a `W_up` share R.

use std::collections::BTreeMap;

use burn::tensor::Device;
use mla_core::decoder::{LatentPart, LatentWidth, Serves};
use mla_core::{LayerSlot, Matrix, Slot, WeightSource};

use crate::error::Error;
use crate::factors::Factors;
use crate::linalg::{Mat64, qr};
use crate::scratch::Scratch;

/// The factors of a converted model with every `W_up` orthonormal: the same function, but for rounding.
///
/// # Errors
/// When a `W_up` has columns that depend on each other, or a tensor cannot be read.
pub fn orthonormalise<S: WeightSource>(
    source: &S,
    device: &Device,
    scratch: &Scratch,
) -> Result<Factors, Error> {
    let config = source.config();
    let read = |layer, slot| -> Result<Mat64, Error> {
        let matrix = source.matrix(Slot::Layer(layer, slot), device)?;
        Ok(Mat64::from_matrix(&Matrix::from_tensor(&matrix)))
    };
    let mut factors = Factors::new(config.clone(), scratch);
    // Of each layer, the triangles of its parts: those of the layer whose `W_up` it uses.
    let mut triangles: BTreeMap<usize, Vec<Mat64>> = BTreeMap::new();
    for layer in 0..config.n_layers() {
        let Some(latent) = config.latent(layer) else { continue };
        let parts = latent.width.parts();
        if latent.up_of == layer {
            let mut own = Vec::new();
            for part in &parts {
                let (q, r) = qr(&read(layer, part.up())?);
                let (least, most) = diagonal(&r);
                if least <= most * f64::from(f32::EPSILON) {
                    return Err(Error::Dependent { layer, rank: part.width });
                }
                factors.insert(layer, part.up(), &q)?;
                own.push(r);
            }
            triangles.insert(layer, own);
        } else {
            triangles.insert(layer, triangles[&latent.up_of].clone());
        }
        for (part, r) in parts.iter().zip(&triangles[&layer]) {
            factors.insert(layer, part.down(), &r.dot(&read(layer, part.down())?))?;
            if latent.balanced {
                let mut basis = read(layer, part.balance())?;
                divide_columns(&mut basis, 0, r);
                factors.insert(layer, part.balance(), &basis)?;
            }
        }
        if config.cross_columns(layer).is_none() {
            continue;
        }
        for (slot, serves) in [(LayerSlot::CrossKey, Serves::Keys), (LayerSlot::CrossValue, Serves::Values)] {
            let mut column = 0;
            let mut cross = read(layer, slot)?;
            let mut undo = |r: &Mat64| {
                divide_columns(&mut cross, column, r);
                column += r.cols;
            };
            if let LatentWidth::Split { .. } = latent.width {
                let other = |part: &&LatentPart| part.serves != serves;
                let at =
                    parts.iter().position(|part| other(&part)).expect("keys and values have a latent each");
                undo(&triangles[&layer][at]);
            }
            for earlier in config.reads(layer) {
                triangles[&earlier].iter().for_each(&mut undo);
            }
            factors.insert(layer, slot, &cross)?;
        }
    }
    Ok(factors)
}

/// The least and the largest of a diagonal.
fn diagonal(r: &Mat64) -> (f64, f64) {
    (0..r.cols)
        .map(|i| r.at(i, i).abs())
        .fold((f64::MAX, 0.0), |(least, most), x| (least.min(x), most.max(x)))
}

/// `X[:, start..] R⁻¹` in place, for an upper triangle R and as many columns as it has.
fn divide_columns(x: &mut Mat64, start: usize, r: &Mat64) {
    let width = x.cols;
    for row in x.data.chunks_exact_mut(width) {
        let row = &mut row[start..start + r.cols];
        for column in 0..r.cols {
            let before: f64 = (0..column).map(|i| row[i] * r.at(i, column)).sum();
            row[column] = (row[column] - before) / r.at(column, column);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_triangle_on_the_right_is_undone() {
        let (_, r) = qr(&Mat64::random(5, 5, 1));
        let x = Mat64::random(3, 5, 2);
        let mut gap = x.dot(&r);
        divide_columns(&mut gap, 0, &r);
        gap.subtract(&x);
        assert!(gap.data.iter().all(|x| x.abs() < 1e-10));
    }
}
