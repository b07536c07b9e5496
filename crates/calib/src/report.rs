//! What a conversion found, layer by layer.

use serde::{Deserialize, Serialize};

use crate::factorise::energy_kept;

/// One layer of a conversion.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LayerReport {
    /// Index of the layer.
    pub layer: usize,
    /// The keys' latent, where keys have one of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<SpectrumReport>,
    /// The values' latent, where values have one of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<SpectrumReport>,
    /// The latent of both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub joint: Option<SpectrumReport>,
    /// The predicted loss a token, under the metric, of the rotations that are given up beside a shared key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotation: Option<f64>,
    /// What became of K and V on held-back text; `None` for a layer that keeps its attention, and where nothing was
    /// measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured: Option<MeasuredError>,
}

/// The spectrum of one latent and what was kept of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SpectrumReport {
    /// Latent width chosen.
    pub d_latent: usize,
    /// Share of the loss prevented, from 0 to 1.
    pub energy_kept: f64,
    /// The predicted loss a token under the metric: `Σ_{j>d_latent} Λ_j` where the latent is all that is read.
    pub discarded: f64,
    /// The whole spectrum, largest first; for cascade, of what the layers before do not tell.
    pub spectrum: Vec<f64>,
}

/// The relative squared error of K and V in the converted model as it runs, `E‖K − K̂‖² / E‖K‖²`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeasuredError {
    /// Of keys, before RoPE; `None` where they are not rotated head by head, and so stand for something else than the donor's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<f64>,
    /// Of values.
    pub value: f64,
}

impl SpectrumReport {
    /// A spectrum of which the first `d_latent` dimensions are kept, out of a loss of `total`.
    pub fn new(spectrum: Vec<f64>, d_latent: usize, total: f64) -> Self {
        let discarded = spectrum[d_latent..].iter().sum();
        Self::measured(spectrum, d_latent, total, discarded)
    }

    /// A spectrum whose tail is not what is lost.
    pub(crate) fn measured(spectrum: Vec<f64>, d_latent: usize, total: f64, discarded: f64) -> Self {
        Self { d_latent, energy_kept: energy_kept(total, discarded), discarded, spectrum }
    }
}

impl LayerReport {
    /// The latents of the layer; none if it keeps its attention.
    pub fn latents(&self) -> impl Iterator<Item = &SpectrumReport> {
        [&self.key, &self.value, &self.joint].into_iter().flatten()
    }

    /// Share of the loss prevented in keys; of both together for `joint`.
    pub fn key_energy(&self) -> Option<f64> {
        self.key.as_ref().or(self.joint.as_ref()).map(|report| report.energy_kept)
    }

    /// Share of the loss prevented in values; of both together for `joint`.
    pub fn value_energy(&self) -> Option<f64> {
        self.value.as_ref().or(self.joint.as_ref()).map(|report| report.energy_kept)
    }

    /// Replaces the losses that the spectra foretell by those that are left of keys and of values after all: a decoder may
    /// read more than its own latent. `totals` are what dropping each part would lose.
    pub(crate) fn foretell(&mut self, left: [f64; 2], totals: &[f64]) {
        let set = |report: &mut Option<SpectrumReport>, left: f64, total: f64| {
            if let Some(report) = report {
                report.discarded = left;
                report.energy_kept = energy_kept(total, left);
            }
        };
        let total = |part: usize| totals.get(part).copied().unwrap_or_default();
        set(&mut self.key, left[0], total(0));
        set(&mut self.value, left[1], total(1));
        set(&mut self.joint, left[0] + left[1], total(0));
    }

    /// The predicted loss of the layer.
    pub fn discarded(&self) -> f64 {
        self.rotation.unwrap_or(0.0) + self.latents().map(|latent| latent.discarded).sum::<f64>()
    }
}
