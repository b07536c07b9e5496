//! `xkv`: groups of adjacent layers share `W_uk` and `W_uv`; each layer keeps its own `W_down` and its own latent.
//!
//! After xKV (Chang et al. 2025). The shared basis is that of `Σ_{l∈group} S W_l C_l W_lᵀ S` with S the root of the
//! group's mean metric; each layer's `W_down` is then the best for that basis under the layer's own metric. Sharing saves
//! weights, not cache: at equal cache bytes each layer's own basis (`separate`) loses less, by Eckart & Young (1936).

use std::ops::Range;

use mla_core::decoder::{LatentConfig, Serves};
use mla_core::{LayerSlot, WeightSource};

use super::{Fitted, Job, separate, split};
use crate::error::Error;
use crate::factorise::{Factorisation, KeptFactorisation, down_for, projection_loss};
use crate::factors::Factors;
use crate::linalg::Mat64;
use crate::metric::Metric;
use crate::plan::Xkv;
use crate::ranks::Unit;
use crate::report::{LayerReport, SpectrumReport};
use crate::statistics::stacked;
use crate::sweep::Observer;

/// Factorises group by group.
pub(super) fn fit<S: WeightSource>(
    job: &Job<'_, S>,
    xkv: Xkv,
    observer: &mut dyn Observer,
) -> Result<Fitted, Error> {
    let n_layers = job.n_layers();
    let groups = xkv.groups(n_layers);
    observer.phase("spectra", groups.len());
    let mut kept = Vec::with_capacity(groups.len());
    for (done, group) in groups.iter().enumerate() {
        kept.push(spectra(job, group)?);
        observer.step(done + 1);
    }
    let units: Vec<Unit<'_>> = kept
        .iter()
        .zip(&groups)
        .flat_map(|(pair, group)| {
            pair.each_ref().map(|unit| Unit { spectrum: &unit.spectrum, cost: group.len() })
        })
        .collect();
    let uniform = job.plan.d_latent(job.statistics.config())?;
    let converted = groups.iter().map(Range::len).sum();
    let ranks = job.ranks(&units, converted, 0, uniform)?;
    let place = |layer: usize| groups.iter().position(|group| group.contains(&layer));
    let latent = |layer: usize| {
        let group = place(layer)?;
        let width = split(ranks[2 * group], ranks[2 * group + 1]);
        Some(LatentConfig { up_of: groups[group].start, ..LatentConfig::alone(layer, width) })
    };
    let mut factors = job.factors(latent);
    observer.phase("factors", n_layers);
    let mut layers = Vec::with_capacity(n_layers);
    for layer in 0..n_layers {
        layers.push(match place(layer) {
            None => LayerReport { layer, ..LayerReport::default() },
            Some(group) => {
                let ranks = [ranks[2 * group], ranks[2 * group + 1]];
                match groups[group].len() {
                    1 => separate::write(job, &mut factors, layer, &kept[group], ranks)?,
                    _ => write(job, &mut factors, layer, groups[group].start, &kept[group], ranks)?,
                }
            }
        });
        observer.step(layer + 1);
    }
    Ok(Fitted { plan: job.plan, factors, layers, noise: 0.0 })
}

/// The spectra of the keys and of the values of a group.
fn spectra<S: WeightSource>(job: &Job<'_, S>, group: &Range<usize>) -> Result<[KeptFactorisation; 2], Error> {
    if group.len() == 1 {
        return separate::spectra(job, group.start);
    }
    let d_kv = job.d_kv();
    let mut moment = Mat64::zeros(2 * d_kv, 2 * d_kv);
    let mut weights: [Option<Mat64>; 2] = [None, None];
    for layer in group.clone() {
        moment.add(&job.statistics.moment(layer, layer)?);
        let metrics = job.statistics.metrics(job.source, job.plan.objective, layer, job.device)?;
        for (sum, metric) in weights.iter_mut().zip(&metrics) {
            let m = metric.matrix().unwrap_or_else(|| Mat64::identity(d_kv));
            match sum {
                Some(sum) => sum.add(&m),
                None => *sum = Some(m),
            }
        }
    }
    let one = |part: usize| {
        let metric = match &weights[part] {
            Some(sum) => {
                let mut mean = sum.clone();
                mean.scale(1.0 / group.len() as f64);
                Metric::new(&mean)?
            }
            None => Metric::Identity,
        };
        let places = part * d_kv..(part + 1) * d_kv;
        Factorisation::new(&moment.block(places.clone(), places), &metric)?.keep(job.statistics.scratch())
    };
    Ok([one(0)?, one(1)?])
}

/// Inserts a layer's `W_down`, and the shared `W_up` once, with the group's first layer.
fn write<S: WeightSource>(
    job: &Job<'_, S>,
    factors: &mut Factors,
    layer: usize,
    leader: usize,
    kept: &[KeptFactorisation; 2],
    ranks: [usize; 2],
) -> Result<LayerReport, Error> {
    let d_kv = job.d_kv();
    let w = stacked(job.source, layer, job.device)?;
    let moment = job.statistics.moment(layer, layer)?;
    let metrics = job.statistics.metrics(job.source, job.plan.objective, layer, job.device)?;
    let slots = [(Serves::Keys, LayerSlot::UpKey), (Serves::Values, LayerSlot::UpValue)];
    let mut reports = Vec::with_capacity(2);
    for (part, (serves, up)) in slots.into_iter().enumerate() {
        let found = kept[part].load()?;
        let w_up = found.orthonormal_basis(ranks[part]);
        let places = part * d_kv..(part + 1) * d_kv;
        let metric = &metrics[part];
        factors.insert_down(layer, serves, &down_for(&w_up, &w.row_block(places.clone()), metric)?)?;
        if layer == leader {
            factors.insert(layer, up, &w_up)?;
        }
        // What this layer loses to the shared basis; the spectrum is the group's.
        let own = moment.block(places.clone(), places);
        let projector = w_up.dot(&down_for(&w_up, &Mat64::identity(d_kv), metric)?);
        let total = metric.whiten_moment(&own).trace();
        let discarded = projection_loss(&own, &projector, metric);
        reports.push(SpectrumReport::measured(found.spectrum, ranks[part], total, discarded));
    }
    let value = reports.pop();
    Ok(LayerReport { layer, key: reports.pop(), value, ..LayerReport::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_layers_stand_alone_or_stay_as_they_are() {
        let xkv = |skip_early_layers, keep_early_layers_original| Xkv {
            group_size: 4,
            skip_early_layers,
            keep_early_layers_original,
        };
        assert_eq!(xkv(0, false).groups(6), [0..4, 4..6]);
        assert_eq!(xkv(2, false).groups(7), [0..1, 1..2, 2..6, 6..7]);
        assert_eq!(xkv(2, true).groups(7), [2..6, 6..7]);
    }
}
