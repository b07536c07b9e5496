//! `joint`: one latent a layer, from which K and V are both rebuilt.
//!
//! The routine of [`factorise`](crate::factorise) on `[W_k; W_v]` under a metric of two blocks. `separate` is the special
//! case whose latent dimensions each serve K or V only, so at equal bytes and under the same metric this is never worse.
//! The stacked `[W_uk; W_uv]` has orthonormal columns; the halves have not, and need not.

use mla_core::decoder::{LatentConfig, LatentWidth, Serves};
use mla_core::{LayerSlot, WeightSource};

use super::{Fitted, Job};
use crate::error::Error;
use crate::factorise::{Factorisation, Factors as Pair};
use crate::metric::Metric;
use crate::ranks::Unit;
use crate::report::{LayerReport, SpectrumReport};
use crate::statistics::stacked;
use crate::sweep::Observer;

/// Factorises every layer's `[W_k; W_v]`.
pub(super) fn fit<S: WeightSource>(job: &Job<'_, S>, observer: &mut dyn Observer) -> Result<Fitted, Error> {
    let (n_layers, d_kv) = (job.n_layers(), job.d_kv());
    observer.phase("spectra", n_layers);
    let mut kept = Vec::with_capacity(n_layers);
    for layer in 0..n_layers {
        let [key, value] = job.statistics.metrics(job.source, job.plan.objective, layer, job.device)?;
        let metric = Metric::block_diagonal([&key, &value], d_kv);
        let found = Factorisation::new(&job.statistics.moment(layer, layer)?, &metric)?;
        kept.push(found.keep(job.statistics.scratch())?);
        observer.step(layer + 1);
    }
    let units: Vec<Unit<'_>> = kept.iter().map(|unit| Unit { spectrum: &unit.spectrum, cost: 1 }).collect();
    let uniform = job.plan.d_latent(job.statistics.config())?;
    let ranks = job.ranks(&units, n_layers, 0, uniform)?;
    let width = |layer: usize| LatentWidth::Joint { d_latent: ranks[layer] };
    let mut factors = job.factors(|layer| Some(LatentConfig::alone(layer, width(layer))));
    observer.phase("factors", n_layers);
    let mut layers = Vec::with_capacity(n_layers);
    for (layer, kept) in kept.iter().enumerate() {
        let found = kept.load()?;
        let Pair { w_up, w_down } = found.factors(&stacked(job.source, layer, job.device)?, ranks[layer]);
        factors.insert_down(layer, Serves::Both, &w_down)?;
        factors.insert(layer, LayerSlot::UpJoint, &w_up)?;
        let total = found.spectrum.iter().sum();
        let joint = Some(SpectrumReport::new(found.spectrum, ranks[layer], total));
        layers.push(LayerReport { layer, joint, ..LayerReport::default() });
        observer.step(layer + 1);
    }
    Ok(Fitted { plan: job.plan, factors, layers, noise: 0.0 })
}
