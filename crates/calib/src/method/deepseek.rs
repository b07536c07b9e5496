//! `deepseek`: one rotary key that all heads share, and one latent for values and the keys that are left (DeepSeek-V2 2024, §2.1).
//!
//! Which dimensions keep their rotation, and what the others become, is [`shared`](crate::shared); what is left of the keys is
//! scored without a rotation, so that a query meets the latent itself. The latent is `joint`'s, on `[K̃; V]` under the metric of
//! the model that scores so.

use mla_core::decoder::Serves;
use mla_core::{LayerSlot, WeightSource};

use super::{Fitted, Job};
use crate::error::Error;
use crate::factorise::{Factorisation, Factors as Pair};
use crate::factors::Factors;
use crate::metric::Metric;
use crate::ranks::Unit;
use crate::report::{LayerReport, SpectrumReport};
use crate::sweep::Observer;

/// Factorises every layer's `[K̃; V]` beside its shared key.
pub(super) fn fit<S: WeightSource>(job: &Job<'_, S>, observer: &mut dyn Observer) -> Result<Fitted, Error> {
    let (n_layers, d_kv) = (job.n_layers(), job.d_kv());
    let config = job.statistics.config();
    let targets = job.statistics.targets(&job.plan.method);
    let shared = targets.shared.expect("the method has a shared key");
    observer.phase("spectra", n_layers);
    let mut kept = Vec::with_capacity(n_layers);
    for layer in 0..n_layers {
        let [key, value] = targets.metrics(job.source, job.plan.objective, layer, job.device)?;
        let metric = Metric::block_diagonal([&key, &value], d_kv);
        let found = Factorisation::new(&targets.moment(layer)?, &metric)?;
        kept.push(found.keep(job.statistics.scratch())?);
        observer.step(layer + 1);
    }
    let units: Vec<Unit<'_>> = kept.iter().map(|unit| Unit { spectrum: &unit.spectrum, cost: 1 }).collect();
    let spoken_for: usize = (0..n_layers).map(|layer| shared.d_rope(layer)).sum();
    let ranks = job.ranks(&units, n_layers, spoken_for, job.plan.d_latent(config)?)?;
    let mut factors = Factors::new(shared.graph(config, |layer| ranks[layer]), job.statistics.scratch());
    observer.phase("factors", n_layers);
    let mut layers = Vec::with_capacity(n_layers);
    for (layer, kept) in kept.iter().enumerate() {
        let found = kept.load()?;
        let Pair { w_up, w_down } =
            found.factors(&targets.stacked(job.source, layer, job.device)?, ranks[layer]);
        factors.insert_down(layer, Serves::Both, &w_down)?;
        factors.insert(layer, LayerSlot::UpJoint, &w_up)?;
        shared.insert(&mut factors, job.source, layer, job.device)?;
        let total = found.spectrum.iter().sum();
        layers.push(LayerReport {
            layer,
            joint: Some(SpectrumReport::new(found.spectrum, ranks[layer], total)),
            rotation: Some(shared.lost(layer)),
            ..LayerReport::default()
        });
        observer.step(layer + 1);
    }
    Ok(Fitted {
        plan: job.plan,
        factors,
        layers,
        noise: (0..n_layers).map(|layer| shared.noise(layer)).sum(),
    })
}
