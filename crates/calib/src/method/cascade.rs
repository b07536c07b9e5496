//! `cascade`: a layer reads the latents of those before it, and caches only what they do not tell.
//!
//! The residual stream changes little from layer to layer, so most of a layer's K and V is a linear function of latents
//! that earlier layers have cached for the same token. With the whitened targets `y_i = [S_k W_k h_i; S_v W_v h_i]` and
//! `Σ_ij = E[y_i y_jᵀ]`, in layer order:
//!
//! 1. `c` = the latents of the window, `Σ_{i|c} = Σ_ii − Σ_ic Σ_cc⁻¹ Σ_ci`: the innovation of layer i;
//! 2. `P_i` = its top eigenvectors, of K and V together or apart; the layer's own latent is `c_i = P_i y_i`;
//! 3. the decoder by least squares on all that is readable: `D_i = E[y_i (c, c_i)ᵀ] E[(c, c_i)(c, c_i)ᵀ]⁻¹`;
//! 4. ranks: every innovation eigenvalue above one threshold for the whole model, which is searched so that the budget
//!    is met ([`threshold`]);
//! 5. a latent serves not only its own layer but those that read it: alternately, the decoders for the latents and each
//!    latent for the decoders ([`refine`]);
//! 6. for a cache of few bits, the decoders once more, for latents that are read with the errors of rounding: `E[c cᵀ]` gains
//!    their moment, so that no decoder leans on small differences of latents;
//! 7. Stiefel form ([`write`]).
//!
//! The moments are used unwhitened, with the root S folded into the projections: `P_i S_i`.

mod pass;
mod refine;
mod threshold;
mod write;

use mla_core::WeightSource;
use mla_core::decoder::{LatentConfig, LatentWidth};

use super::{Fitted, Job, rounding, split};
use crate::error::Error;
use crate::linalg::Mat64;
use crate::metric::{KeptMetric, Metric};
use crate::plan::{Cascade, Latents};
use crate::ranks::Ranks;
use crate::report::{LayerReport, SpectrumReport};
use crate::scratch::{Scratch, StoredMatrix};
use crate::statistics::stacked;
use crate::sweep::Observer;
use pass::{Pass, Rule};
pub(super) use write::Writer;

/// The metrics of a layer's keys and values.
struct Roots {
    key: KeptMetric,
    value: KeptMetric,
}

impl Roots {
    fn load(&self) -> Result<[Metric; 2], Error> {
        Ok([self.key.load()?, self.value.load()?])
    }
}

/// A projection `P S` that waits in a scratch.
struct Projection {
    ranks: Vec<usize>,
    matrix: StoredMatrix,
}

impl Projection {
    fn keep(matrix: Mat64, ranks: Vec<usize>, scratch: &Scratch) -> Result<Self, Error> {
        Ok(Self { ranks, matrix: scratch.keep_matrix(matrix)? })
    }

    fn load(&self) -> Result<Mat64, Error> {
        self.matrix.load()
    }

    fn rule(&self) -> Result<Rule, Error> {
        Ok(Rule::Given { projection: self.load()?, ranks: self.ranks.clone() })
    }
}

/// Finds ranks and latents, and writes the factors.
pub(super) fn fit<S: WeightSource>(
    job: &Job<'_, S>,
    cascade: Cascade,
    observer: &mut dyn Observer,
) -> Result<Fitted, Error> {
    let config = job.statistics.config();
    let (n_layers, d_kv) = (job.n_layers(), job.d_kv());
    let scratch = job.statistics.scratch();
    observer.phase("metrics", n_layers);
    let mut roots = Vec::with_capacity(n_layers);
    for layer in 0..n_layers {
        let [key, value] = job.statistics.metrics(job.source, job.plan.objective, layer, job.device)?;
        roots.push(Roots { key: KeptMetric::keep(key, scratch)?, value: KeptMetric::keep(value, scratch)? });
        observer.step(layer + 1);
    }
    let parts = cascade.latents.parts();
    let ranks = match job.plan.ranks {
        Ranks::Uniform => vec![vec![job.plan.budget(config, 1)? / parts; parts]; n_layers],
        Ranks::Global => {
            let budget = job.plan.budget(config, n_layers)?;
            threshold::search(job.statistics, &roots, cascade, budget, observer)?
        }
    };
    observer.phase("latents", n_layers);
    let (mut layers, mut projections) = (Vec::with_capacity(n_layers), Vec::with_capacity(n_layers));
    let mut totals = Vec::with_capacity(n_layers);
    let mut pass = Pass::new(job.statistics, cascade);
    for (layer, (roots, ranks)) in roots.iter().zip(&ranks).enumerate() {
        let found = pass.layer(layer, &roots.load()?, Rule::Ranks(ranks.clone()))?;
        projections.push(Projection::keep(pass.projection(layer).clone(), ranks.clone(), scratch)?);
        totals.push(found.totals.clone());
        layers.push(report(layer, cascade.latents, found, ranks));
        pass.forget(layer);
        observer.step(layer + 1);
    }
    refine::refine(job.statistics, &roots, cascade, &mut projections, observer)?;
    let width = |layer: usize| match cascade.latents {
        Latents::Together => LatentWidth::Joint { d_latent: ranks[layer][0] },
        Latents::Apart => split(ranks[layer][0], ranks[layer][1]),
    };
    let latent = |layer: usize| {
        let reads_from = Some(cascade.first_read(layer));
        Some(LatentConfig { reads_from, ..LatentConfig::alone(layer, width(layer)) })
    };
    let mut writer = Writer::new(job.factors(latent), d_kv);
    let noise = match rounding(job.plan.cache) {
        0.0 => Vec::new(),
        share => refine::rounding_moments(job.statistics, &roots, cascade, &projections, share)?,
    };
    observer.phase("factors", n_layers);
    let mut pass = Pass::new(job.statistics, cascade).with_noise(&noise);
    for layer in 0..n_layers {
        let metrics = roots[layer].load()?;
        pass.layer(layer, &metrics, projections[layer].rule()?)?;
        let decoder = pass.decoder(layer, &metrics)?;
        layers[layer].foretell(pass.left(), &totals[layer]);
        let down = pass.projection(layer).dot(&stacked(job.source, layer, job.device)?);
        writer.layer(layer, &ranks[layer], pass.reads(), &decoder, &down, &metrics)?;
        pass.forget(layer);
        writer.forget(cascade.first_read(layer + 1));
        observer.step(layer + 1);
    }
    Ok(Fitted { plan: job.plan, factors: writer.factors, layers, noise: 0.0 })
}

fn report(layer: usize, latents: Latents, found: pass::Found, ranks: &[usize]) -> LayerReport {
    let mut parts = found.spectra.into_iter().zip(found.totals).zip(ranks);
    let mut next =
        || parts.next().map(|((spectrum, total), &rank)| SpectrumReport::new(spectrum, rank, total));
    match latents {
        Latents::Together => LayerReport { layer, joint: next(), ..LayerReport::default() },
        Latents::Apart => LayerReport { layer, key: next(), value: next(), ..LayerReport::default() },
    }
}
