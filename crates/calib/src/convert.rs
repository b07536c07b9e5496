//! The conversion: statistics once, any number of plans, the best of them by measurement.

use burn::tensor::Device;
use mla_core::{Patch, WeightSource};

use crate::cost::decode_cost;
use crate::error::Error;
use crate::factors::Factors;
use crate::gradient::FisherOptions;
use crate::head::Labels;
use crate::judge::{Verdict, judge};
use crate::method::{Fitted, fit, refit};
use crate::metric::Objective;
use crate::plan::{Plan, shared_keys};
use crate::planner::{Tried, cache_ratio};
use crate::report::LayerReport;
use crate::scratch::Scratch;
use crate::statistics::{Needs, Statistics};
use crate::sweep::Observer;

/// Windows of the Fisher pass unless said otherwise.
pub const FISHER_WINDOWS: usize = 32;

/// A candidate whose KL is within this of the best, in nats a token, is as good as the best (half a percent of
/// perplexity); among those the one that decodes cheapest is taken.
pub const AS_GOOD: f64 = 0.005;

/// Text for a conversion, in windows: three parts that share none.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    /// What the factors are fitted to.
    pub fit: &'a [Vec<u32>],
    /// What plans are chosen by; may be empty.
    pub select: &'a [Vec<u32>],
    /// What the chosen one is measured on: a measurement by which one of several was chosen flatters it. May be empty.
    pub report: &'a [Vec<u32>],
}

/// What holds for every plan of a conversion.
#[derive(Clone, Debug)]
pub struct Options {
    /// Fixes the labels that a Fisher pass draws.
    pub seed: u64,
    /// Windows that go through the Fisher pass at most.
    pub fisher_windows: usize,
    /// Fisher passes, with new labels each time.
    pub fisher_draws: usize,
    /// Weight of a window's first token, as a share of the weight of all others (see [`Needs::sink`]). At 0 it is a token
    /// like any other, in the moments and in the Fisher information.
    pub sink: f64,
}

/// Weight of a window's first token unless said otherwise: measured, and flat around it (docs/metrics.md).
pub const SINK: f64 = 0.6;

impl Default for Options {
    fn default() -> Self {
        Self { seed: 0, fisher_windows: FISHER_WINDOWS, fisher_draws: 1, sink: SINK }
    }
}

/// One plan and what became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// The plan.
    pub plan: Plan,
    /// The donor's cache over the new one's in numbers a token, as whole numbers came out.
    pub compression_ratio: f64,
    /// The donor's cache in 16 bits over the new one's, in bytes as they are allocated.
    pub cache_ratio: f64,
    /// `Σ Λ` of all that was discarded.
    pub discarded: f64,
    /// The loss that was foretold, of what was discarded and of what rounding takes.
    pub predicted: f64,
    /// KL to the donor on the text of selection, in nats a token; `None` where there was none.
    pub kl: Option<f64>,
    /// Multiply-adds of one decode step behind the counted context.
    pub decode_cost: u64,
}

/// A conversion that was chosen among the plans.
#[derive(Debug)]
pub struct Conversion {
    /// The plan that was taken.
    pub plan: Plan,
    /// Its latent tensors: lay them over the donor to run the converted model.
    pub factors: Factors,
    /// One entry a layer.
    pub layers: Vec<LayerReport>,
    /// Calibration tokens that were fitted to.
    pub tokens: usize,
    /// Tokens by which it was chosen.
    pub selection_tokens: usize,
    /// Every plan, in the order given.
    pub trials: Vec<Trial>,
    /// Which of them was taken.
    pub chosen: usize,
    /// KL on the text of selection after sequential correction, where that was tried; it was kept if it is below the trial's.
    pub corrected_kl: Option<f64>,
    /// KL to the donor of each window of the text to report on, in nats a token; empty before [`report`] and without such text.
    pub reported: Vec<f64>,
}

impl Conversion {
    /// KL to the donor on the text of selection, in nats a token, of what was taken.
    pub fn selection_kl(&self) -> Option<f64> {
        let fitted = self.trials[self.chosen].kl?;
        Some(self.corrected_kl.map_or(fitted, |corrected| corrected.min(fitted)))
    }

    /// Takes over the errors of a verdict.
    fn measured(&mut self, verdict: &Verdict) {
        let layers = self.layers.iter_mut().zip(&verdict.errors);
        layers.for_each(|(layer, error)| layer.measured = *error);
    }

    /// Whether sequential correction was tried and kept.
    pub fn is_corrected(&self) -> bool {
        let fitted = self.trials[self.chosen].kl.unwrap_or(f64::INFINITY);
        self.corrected_kl.is_some_and(|corrected| corrected < fitted)
    }
}

/// Collects what the plans need to know of a donor.
///
/// # Errors
/// When a plan needs text and there is none, or as for [`Statistics::of_text`].
pub fn statistics<S: WeightSource>(
    source: &S,
    plans: &[Plan],
    text: Option<Text<'_>>,
    options: &Options,
    device: &Device,
    scratch: &Scratch,
    observer: &mut dyn Observer,
) -> Result<Statistics, Error> {
    let needs = needs(plans, options);
    let Some(text) = text else {
        if needs.fisher.is_some() {
            return Err(Error::NeedsText { what: "the objective fisher" });
        }
        if needs.window > 0 {
            return Err(Error::NeedsText { what: "the method cascade" });
        }
        return Statistics::of_weights(source, needs.queries, device, scratch);
    };
    Statistics::of_text(source, text.fit, &needs, device, scratch, observer)
}

/// What plans need to know of a donor.
pub fn needs(plans: &[Plan], options: &Options) -> Needs {
    let wants = |objective| plans.iter().any(|plan| plan.objective == objective);
    let fisher = wants(Objective::Fisher).then_some(FisherOptions {
        labels: Labels::Sampled { seed: options.seed },
        draws: options.fisher_draws,
        windows: options.fisher_windows,
        first_position: options.sink == 0.0,
    });
    Needs {
        window: plans.iter().map(|plan| plan.method.window()).max().unwrap_or(0),
        queries: wants(Objective::Attention),
        fisher,
        sink: options.sink,
        shared: shared_keys(plans),
    }
}

/// Converts a donor by the best of several plans.
///
/// With text to select by every plan is fitted and measured, and of those [`AS_GOOD`] as the best the one that decodes
/// cheapest is taken; without, the first plan is.
///
/// # Errors
/// As [`statistics`], [`fit`] and [`judge`].
///
/// # Panics
/// If there is no plan.
pub fn convert<S: WeightSource>(
    source: &S,
    plans: &[Plan],
    text: Option<Text<'_>>,
    options: &Options,
    device: &Device,
    scratch: &Scratch,
    observer: &mut dyn Observer,
) -> Result<Conversion, Error> {
    assert!(!plans.is_empty(), "a conversion needs a plan");
    plans.iter().try_for_each(|plan| plan.check(source.config()))?;
    let select = text.map_or(&[][..], |text| text.select);
    let plans = comparable(plans, select);
    let statistics = statistics(source, plans, text, options, device, scratch, observer)?;
    choose(source, &statistics, plans, select, device, observer)
}

/// The plans that can be told apart: all with text to measure on, else the first.
fn comparable<'a>(plans: &'a [Plan], select: &[Vec<u32>]) -> &'a [Plan] {
    if select.is_empty() { &plans[..1] } else { plans }
}

/// Fits and measures plans on statistics that are there, and takes the best; without text to measure on the first.
///
/// # Errors
/// As [`fit`] and [`judge`].
///
/// # Panics
/// If there is no plan.
pub fn choose<S: WeightSource>(
    source: &S,
    statistics: &Statistics,
    plans: &[Plan],
    select: &[Vec<u32>],
    device: &Device,
    observer: &mut dyn Observer,
) -> Result<Conversion, Error> {
    let plans = comparable(plans, select);
    let mut fitted: Vec<Fitted> = Vec::with_capacity(plans.len());
    for &plan in plans {
        fitted.push(fit(source, statistics, plan, device, observer)?);
    }
    let verdicts = match select.is_empty() {
        true => Vec::new(),
        false => {
            let candidates: Vec<&Factors> = fitted.iter().map(|fitted| &fitted.factors).collect();
            judge(source, &candidates, select, device, statistics.scratch(), observer)?
        }
    };
    let trial = |(place, fitted)| trial(fitted, verdicts.get(place).map(|verdict: &Verdict| verdict.kl));
    let trials: Vec<Trial> = fitted.iter().enumerate().map(trial).collect();
    let chosen = best(&trials);
    let taken = fitted.swap_remove(chosen);
    Ok(conversion(statistics, select, trials, chosen, taken, verdicts.get(chosen)))
}

/// What became of a plan.
pub(crate) fn trial(fitted: &Fitted, kl: Option<f64>) -> Trial {
    let config = fitted.factors.config();
    Trial {
        plan: fitted.plan,
        compression_ratio: config.compression_ratio(),
        cache_ratio: cache_ratio(config),
        discarded: fitted.discarded(),
        predicted: fitted.predicted(),
        kl,
        decode_cost: decode_cost(config, COST_CONTEXT),
    }
}

/// A conversion by one of those that a planner tried.
pub(crate) fn conclude(
    statistics: &Statistics,
    select: &[Vec<u32>],
    mut tried: Vec<Tried>,
    chosen: usize,
) -> Conversion {
    let trials = tried.iter().map(Tried::trial).collect();
    let Tried { fitted, verdict } = tried.swap_remove(chosen);
    conversion(statistics, select, trials, chosen, fitted, Some(&verdict))
}

fn conversion(
    statistics: &Statistics,
    select: &[Vec<u32>],
    trials: Vec<Trial>,
    chosen: usize,
    taken: Fitted,
    verdict: Option<&Verdict>,
) -> Conversion {
    let mut conversion = Conversion {
        plan: taken.plan,
        factors: taken.factors,
        layers: taken.layers,
        tokens: statistics.tokens(),
        selection_tokens: select.iter().map(Vec::len).sum(),
        trials,
        chosen,
        corrected_kl: None,
        reported: Vec::new(),
    };
    if let Some(verdict) = verdict {
        conversion.measured(verdict);
    }
    conversion
}

/// Measures a conversion on text by which nothing was chosen; without such text it stays as it is.
///
/// # Errors
/// As [`judge`].
pub fn report<S: WeightSource>(
    source: &S,
    mut conversion: Conversion,
    report: &[Vec<u32>],
    device: &Device,
    scratch: &Scratch,
    observer: &mut dyn Observer,
) -> Result<Conversion, Error> {
    if report.is_empty() {
        return Ok(conversion);
    }
    let verdict = judge(source, &[&conversion.factors], report, device, scratch, observer)?.remove(0);
    conversion.measured(&verdict);
    conversion.reported = verdict.windows;
    Ok(conversion)
}

/// Corrects a conversion for what its layers really read ([`refit`]), and keeps that if it measures better.
///
/// # Errors
/// As [`refit`] and [`judge`]; also when no text is held back to measure on.
pub fn correct<S: WeightSource>(
    source: &S,
    mut conversion: Conversion,
    text: Text<'_>,
    sink: f64,
    device: &Device,
    scratch: &Scratch,
    observer: &mut dyn Observer,
) -> Result<Conversion, Error> {
    if text.select.is_empty() {
        return Err(Error::NeedsText { what: "sequential correction, to be measured," });
    }
    let factors = refit(source, &conversion.factors, text.fit, sink, device, scratch, observer)?;
    let verdict = judge(source, &[&factors], text.select, device, scratch, observer)?.remove(0);
    conversion.corrected_kl = Some(verdict.kl);
    if conversion.is_corrected() {
        conversion.factors = factors;
        conversion.measured(&verdict);
    }
    Ok(conversion)
}

/// Tokens in the cache at which the cost of decoding is counted.
pub const COST_CONTEXT: usize = 4096;

/// Of those that are as good as the best the cheapest; of those about as cheap the best. Without measurements the first.
pub(crate) fn best(trials: &[Trial]) -> usize {
    let kl = |trial: &Trial| trial.kl.unwrap_or(f64::INFINITY);
    let least = trials.iter().map(kl).fold(f64::INFINITY, f64::min);
    if least == f64::INFINITY {
        return 0;
    }
    let good = || trials.iter().enumerate().filter(|(_, trial)| kl(trial) <= least + AS_GOOD);
    let cheapest = good().map(|(_, trial)| trial.decode_cost).min().unwrap_or(0) as f64;
    let cheap = good().filter(|(_, trial)| trial.decode_cost as f64 <= 1.05 * cheapest);
    cheap.min_by(|(_, a), (_, b)| kl(a).total_cmp(&kl(b))).map_or(0, |(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Method, Width};
    use crate::ranks::Ranks;

    fn trial(kl: Option<f64>, decode_cost: u64) -> Trial {
        let plan = Plan {
            method: Method::Separate,
            objective: Objective::Mse,
            ranks: Ranks::Uniform,
            width: Width::Ratio(2.0),
            cache: mla_core::CacheDtype::F32,
        };
        Trial {
            plan,
            compression_ratio: 2.0,
            cache_ratio: 2.0,
            discarded: 0.0,
            predicted: 0.0,
            kl,
            decode_cost,
        }
    }

    #[test]
    fn the_cheapest_of_the_good_is_taken_and_the_best_of_the_cheap() {
        let trials =
            [(0.100, 900), (0.104, 100), (0.103, 104), (0.2, 10)].map(|(kl, cost)| trial(Some(kl), cost));
        assert_eq!(best(&trials), 2);
        assert_eq!(best(&[trial(None, 9), trial(None, 1)]), 0, "nothing was measured");
    }
}
