//! The methods: from statistics and a plan to the factors of every layer.
//!
//! Each file is one method. All stand on [`Factorisation`](crate::factorise::Factorisation); they differ in which rows go
//! in together, which layers share a basis, and what a layer may read besides its own latent.

mod cascade;
mod decoupled_rope;
mod deepseek;
mod joint;
mod separate;
mod sequential;
mod xkv;

pub use sequential::refit;

use burn::tensor::Device;
use mla_core::decoder::{AttentionKind, LatentConfig, LatentWidth};
use mla_core::{CacheDtype, WeightSource};

use crate::balance::balance;
use crate::error::Error;
use crate::factors::Factors;
use crate::plan::{Method, Plan};
use crate::ranks::{Ranks, Unit, within};
use crate::report::LayerReport;
use crate::statistics::Statistics;
use crate::sweep::Observer;

/// What a plan came to.
#[derive(Debug)]
pub struct Fitted {
    /// The plan.
    pub plan: Plan,
    /// The latent tensors, with the converted graph as their configuration.
    pub factors: Factors,
    /// One entry a layer.
    pub layers: Vec<LayerReport>,
    /// What it would cost if every cached number had an error that varies as much as the number itself, in the unit of the
    /// metric.
    pub(crate) noise: f64,
}

impl Fitted {
    /// The loss the plan predicts, of what was discarded and of what rounding takes.
    pub fn predicted(&self) -> f64 {
        self.discarded() + self.noise * rounding(self.plan.cache)
    }

    /// `Σ Λ` of all that was discarded: the loss the plan predicts, in the unit of its metric (nats for `fisher`, twice
    /// the KL to second order).
    pub fn discarded(&self) -> f64 {
        self.layers.iter().map(LayerReport::discarded).sum()
    }
}

/// How much a number's error varies, of what the number does: that of even steps, 32 normal numbers of which span 4.1
/// standard deviations.
fn rounding(dtype: CacheDtype) -> f64 {
    let step = |bits: u32| 4.1 / f64::from((1u32 << bits) - 1);
    dtype.bits().map_or(0.0, |bits| step(bits).powi(2) / 12.0)
}

/// What every method is given.
pub(crate) struct Job<'a, S> {
    pub(crate) source: &'a S,
    pub(crate) statistics: &'a Statistics,
    pub(crate) plan: Plan,
    pub(crate) device: &'a Device,
}

/// Factorises a model by a plan.
///
/// # Errors
/// When the plan does not fit the model, there are fewer calibration tokens than latent dimensions, the source or the
/// temporary file fails, or the statistics are degenerate.
///
/// # Panics
/// If the statistics were collected without what the plan needs.
pub fn fit<S: WeightSource>(
    source: &S,
    statistics: &Statistics,
    plan: Plan,
    device: &Device,
    observer: &mut dyn Observer,
) -> Result<Fitted, Error> {
    let config = statistics.config();
    plan.check(config)?;
    let widest = plan.d_latent(config)?;
    let tokens = statistics.tokens();
    if tokens > 0 && tokens < widest {
        return Err(Error::TooFewTokens { tokens, d_latent: widest });
    }
    let job = Job { source, statistics, plan, device };
    let mut fitted = match plan.method {
        Method::Separate => separate::fit(&job, observer),
        Method::Xkv(xkv) => xkv::fit(&job, xkv, observer),
        Method::Joint => joint::fit(&job, observer),
        Method::DecoupledRope { d_rope } => decoupled_rope::fit(&job, d_rope, observer),
        Method::Deepseek(_) => deepseek::fit(&job, observer),
        // Nothing to read: the innovation is K and V themselves.
        Method::Cascade(cascade) if cascade.window == 0 => separate::fit(&job, observer),
        Method::Cascade(cascade) => cascade::fit(&job, cascade, observer),
    }?;
    let targets = statistics.targets(&plan.method);
    fitted.noise += balance(&mut fitted.factors, source, targets, plan.objective, device)?;
    fitted.factors.set_cache_dtype(plan.cache);
    Ok(fitted)
}

impl<S: WeightSource> Job<'_, S> {
    fn n_layers(&self) -> usize {
        self.statistics.config().n_layers()
    }

    fn d_kv(&self) -> usize {
        self.statistics.config().d_kv()
    }

    /// The ranks of units that cost one number a dimension, or several where layers share.
    ///
    /// `taken` numbers of the budget are spoken for already; `uniform` is every unit's rank under [`Ranks::Uniform`].
    fn ranks(
        &self,
        units: &[Unit<'_>],
        layers: usize,
        taken: usize,
        uniform: usize,
    ) -> Result<Vec<usize>, Error> {
        match self.plan.ranks {
            Ranks::Uniform => Ok(vec![uniform; units.len()]),
            Ranks::Global => {
                let budget = self.plan.budget(self.statistics.config(), layers)?.saturating_sub(taken);
                within(units, budget)
            }
        }
    }

    /// The graph with each layer's latents; `None` keeps a layer's attention.
    fn factors(&self, latents: impl Fn(usize) -> Option<LatentConfig>) -> Factors {
        let mut config = self.statistics.config().clone();
        for (layer, entry) in config.layers.iter_mut().enumerate() {
            if let Some(latent) = latents(layer) {
                entry.attention = AttentionKind::Latent(latent);
            }
        }
        Factors::new(config, self.statistics.scratch())
    }
}

/// One latent for keys and one for values.
fn split(d_latent_k: usize, d_latent_v: usize) -> LatentWidth {
    LatentWidth::Split { d_latent_k, d_latent_v }
}
