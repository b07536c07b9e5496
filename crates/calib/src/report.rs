//! What a conversion found, layer by layer.

use serde::Serialize;

use crate::factorise::Factorisation;

/// One layer of a conversion.
#[derive(Clone, Debug, Serialize)]
pub struct LayerReport {
    /// Index of the layer.
    pub layer: usize,
    /// The keys' factorisation.
    pub key: SpectrumReport,
    /// The values' factorisation.
    pub value: SpectrumReport,
}

/// One factorisation.
#[derive(Clone, Debug, Serialize)]
pub struct SpectrumReport {
    /// Latent width chosen.
    pub d_latent: usize,
    /// Share of the spectrum kept, from 0 to 1.
    pub energy_kept: f64,
    /// `Σ_{j>d_latent} Λ_j`: expected squared error a token under the metric.
    pub discarded: f64,
    /// The whole spectrum, largest first.
    pub spectrum: Vec<f64>,
}

impl SpectrumReport {
    pub(crate) fn new(found: &Factorisation, d_latent: usize) -> Self {
        Self {
            d_latent,
            energy_kept: found.energy_kept(d_latent),
            discarded: found.discarded(d_latent),
            spectrum: found.spectrum.clone(),
        }
    }
}
