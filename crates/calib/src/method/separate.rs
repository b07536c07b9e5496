//! `separate`: each layer's K and V on their own.

use mla_core::LayerSlot;
use mla_core::WeightSource;
use mla_core::decoder::{LatentConfig, Serves};

use super::{Fitted, Job, split};
use crate::error::Error;
use crate::factorise::{Factorisation, Factors as Pair, KeptFactorisation};
use crate::factors::Factors;
use crate::ranks::Unit;
use crate::report::{LayerReport, SpectrumReport};
use crate::statistics::stacked;
use crate::sweep::Observer;

/// Factorises every layer's `W_k` and `W_v` under their own metrics.
pub(super) fn fit<S: WeightSource>(job: &Job<'_, S>, observer: &mut dyn Observer) -> Result<Fitted, Error> {
    let n_layers = job.n_layers();
    observer.phase("spectra", n_layers);
    let mut kept = Vec::with_capacity(n_layers);
    for layer in 0..n_layers {
        kept.push(spectra(job, layer)?);
        observer.step(layer + 1);
    }
    let units: Vec<Unit<'_>> =
        kept.iter().flatten().map(|unit| Unit { spectrum: &unit.spectrum, cost: 1 }).collect();
    let uniform = job.plan.d_latent(job.statistics.config())?;
    let ranks = job.ranks(&units, n_layers, 0, uniform)?;
    let pair = |layer: usize| [ranks[2 * layer], ranks[2 * layer + 1]];
    let alone = |layer| {
        let [k, v] = pair(layer);
        Some(LatentConfig::alone(layer, split(k, v)))
    };
    let mut factors = job.factors(alone);
    observer.phase("factors", n_layers);
    let mut layers = Vec::with_capacity(n_layers);
    for (layer, kept) in kept.iter().enumerate() {
        layers.push(write(job, &mut factors, layer, kept, pair(layer))?);
        observer.step(layer + 1);
    }
    Ok(Fitted { plan: job.plan, factors, layers, noise: 0.0 })
}

/// The spectra of a layer's keys and values.
pub(super) fn spectra<S: WeightSource>(
    job: &Job<'_, S>,
    layer: usize,
) -> Result<[KeptFactorisation; 2], Error> {
    let d_kv = job.d_kv();
    let moment = job.statistics.moment(layer, layer)?;
    let [key, value] = job.statistics.metrics(job.source, job.plan.objective, layer, job.device)?;
    let one = |first: usize, metric| {
        let part = moment.block(first..first + d_kv, first..first + d_kv);
        Factorisation::new(&part, metric)?.keep(job.statistics.scratch())
    };
    Ok([one(0, &key)?, one(d_kv, &value)?])
}

/// Inserts the factors of a layer that stands alone.
pub(super) fn write<S: WeightSource>(
    job: &Job<'_, S>,
    factors: &mut Factors,
    layer: usize,
    kept: &[KeptFactorisation; 2],
    ranks: [usize; 2],
) -> Result<LayerReport, Error> {
    let d_kv = job.d_kv();
    let w = stacked(job.source, layer, job.device)?;
    let slots = [(Serves::Keys, LayerSlot::UpKey), (Serves::Values, LayerSlot::UpValue)];
    let mut reports = Vec::with_capacity(2);
    for (part, (serves, up)) in slots.into_iter().enumerate() {
        let found = kept[part].load()?;
        let rank = ranks[part];
        let Pair { w_up, w_down } = found.factors(&w.row_block(part * d_kv..(part + 1) * d_kv), rank);
        factors.insert_down(layer, serves, &w_down)?;
        factors.insert(layer, up, &w_up)?;
        let total = found.spectrum.iter().sum();
        reports.push(SpectrumReport::new(found.spectrum, rank, total));
    }
    let value = reports.pop();
    Ok(LayerReport { layer, key: reports.pop(), value, ..LayerReport::default() })
}
