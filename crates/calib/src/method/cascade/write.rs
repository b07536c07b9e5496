//! Step 7, layer by layer: what K and V read from their own latent becomes orthonormal by QR; its R goes into the latent
//! and out of what others read of it. The cross terms stay free.

use std::collections::BTreeMap;

use mla_core::LayerSlot;
use mla_core::decoder::Serves;

use crate::error::Error;
use crate::factors::Factors;
use crate::linalg::{Mat64, qr};
use crate::metric::Metric;

/// Takes decoders in layer order.
pub(in crate::method) struct Writer {
    pub(in crate::method) factors: Factors,
    /// `R` of each part of each layer's latent: what is cached is `R` times the whitened latent.
    triangles: BTreeMap<usize, Vec<Mat64>>,
    d_kv: usize,
}

impl Writer {
    pub(in crate::method) fn new(factors: Factors, d_kv: usize) -> Self {
        Self { factors, triangles: BTreeMap::new(), d_kv }
    }

    /// Drops what no layer from `first` on can read.
    pub(in crate::method) fn forget(&mut self, first: usize) {
        self.triangles.retain(|&layer, _| layer >= first);
    }

    /// Inserts a layer's factors.
    ///
    /// # Shapes
    /// - `decoder`: `[2 · d_kv, ranks of reads and own]`, whitened; `down`: `[own ranks, d_latent_input]`
    pub(in crate::method) fn layer(
        &mut self,
        layer: usize,
        ranks: &[usize],
        reads: &[(usize, Vec<usize>)],
        decoder: &Mat64,
        down: &Mat64,
        metrics: &[Metric; 2],
    ) -> Result<(), Error> {
        let d_kv = self.d_kv;
        let half = |part: usize| metrics[part].unwhiten(&decoder.row_block(part * d_kv..(part + 1) * d_kv));
        let halves = [half(0), half(1)];
        let own = decoder.cols - down.rows;
        match *ranks {
            [rank] => {
                let both = Mat64::stack(&[&halves[0], &halves[1]]).block(0..2 * d_kv, own..own + rank);
                let (w_up, triangle) = qr(&both);
                self.factors.insert(layer, LayerSlot::UpJoint, &w_up)?;
                self.factors.insert_down(layer, Serves::Both, &triangle.dot(down))?;
                self.triangles.insert(layer, vec![triangle]);
            }
            [r_k, r_v] => {
                let places = [own..own + r_k, own + r_k..own + r_k + r_v];
                let slots = [(LayerSlot::UpKey, Serves::Keys), (LayerSlot::UpValue, Serves::Values)];
                let mut triangles = Vec::with_capacity(2);
                for (part, (up, serves)) in slots.into_iter().enumerate() {
                    let (w_up, triangle) = qr(&halves[part].block(0..d_kv, places[part].clone()));
                    let rows = places[part].start - own..places[part].end - own;
                    self.factors.insert(layer, up, &w_up)?;
                    self.factors.insert_down(layer, serves, &triangle.dot(&down.row_block(rows)))?;
                    triangles.push(triangle);
                }
                self.triangles.insert(layer, triangles);
            }
            _ => unreachable!("a latent has one part or two"),
        }
        for (part, slot) in [LayerSlot::CrossKey, LayerSlot::CrossValue].into_iter().enumerate() {
            let mut terms = Vec::new();
            // First the other half of the layer's own latent, then the layers of the window.
            if let [r_k, r_v] = *ranks {
                let other = [own + r_k..own + r_k + r_v, own..own + r_k][part].clone();
                terms.push(
                    halves[part].block(0..d_kv, other).over_triangle(&self.triangles[&layer][1 - part]),
                );
            }
            let mut column = 0;
            for (earlier, ranks) in reads {
                for (triangle, rank) in self.triangles[earlier].iter().zip(ranks) {
                    terms.push(halves[part].block(0..d_kv, column..column + rank).over_triangle(triangle));
                    column += rank;
                }
            }
            // A first layer with one latent for both has nothing else to read.
            if !terms.is_empty() {
                self.factors.insert(layer, slot, &Mat64::beside(d_kv, &terms))?;
            }
        }
        Ok(())
    }
}
