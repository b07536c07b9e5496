//! Rank and bits together: of all ways to a cache of so many bytes, the one that measures best.
//!
//! A cache gets smaller by fewer numbers a token or by fewer bits a number, and only measurement tells which is cheaper for
//! a model. With bytes given, each type fixes the ratio of numbers; every method is fitted at each, run as it would be
//! cached, and the KL to the donor on text that none was fitted to decides. At ratio 1 only the bits are fewer.
//!
//! Methods without a window share a sweep and fit in seconds, so they try all types; cascade tries the types that served
//! those best.

use std::ops::Range;

use burn::tensor::Device;
use mla_core::{CacheDtype, DecoderConfig, Patch, WeightSource};

use crate::convert::{Conversion, conclude, trial};
use crate::error::Error;
use crate::factors::Factors;
use crate::judge::{Verdict, judge};
use crate::method::{Fitted, fit};
use crate::plan::{Plan, Width};
use crate::statistics::Statistics;
use crate::sweep::Observer;

/// Types that the methods with a window try.
const TRIED_WITH_WINDOW: usize = 2;
/// How far below the bytes that were asked for a plan may stay, as a share, before it is fitted again with more numbers.
const SLACK: f64 = 0.02;
/// Fits of a plan at most until its bytes are right.
const FITS: usize = 4;
/// Ratios among which the largest is looked for whose loss is small enough.
pub const LADDER: [f64; 14] = [1.5, 2.0, 2.5, 3.2, 4.0, 5.0, 6.4, 8.0, 10.0, 12.8, 16.0, 20.0, 25.6, 32.0];

/// What a planner is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// The donor's cache in bf16 over the new one's, scales and offsets included.
    Target(f64),
    /// The most that the KL to the donor may be, in nats a token: the smallest cache on [`LADDER`] that keeps to it.
    Divergence(f64),
}

/// The donor's cache in 16 bits over this model's, as it is allocated; a model that says nothing of its cache is held in
/// 16 bits too. Of layers with a window the tokens count that they keep of a whole context.
pub fn cache_ratio(config: &DecoderConfig) -> f64 {
    let context = config.max_positions;
    let kept = |window: Option<usize>| window.map_or(context, |window| window.min(context)) as f64;
    let donor: f64 =
        config.layers.iter().map(|layer| kept(layer.window)).sum::<f64>() * 4.0 * config.d_kv() as f64;
    let bytes = |layer: usize| match config.cache_dtype {
        CacheDtype::F32 => 2 * config.cached_numbers(layer),
        _ => config.cached_bytes(layer),
    };
    let model =
        config.retention().into_iter().enumerate().map(|(layer, window)| bytes(layer) as f64 * kept(window));
    donor / model.sum::<f64>()
}

/// What a planner may choose among, and what it is to reach.
#[derive(Clone, Copy, Debug)]
pub struct Search<'a> {
    /// Of each the method, the objective and the ranks are taken.
    pub base: &'a [Plan],
    /// What latents may be kept as.
    pub dtypes: &'a [CacheDtype],
    /// When it is enough.
    pub goal: Goal,
}

/// Converts a donor by the best plan for a goal.
///
/// # Errors
/// As [`fit`] and [`judge`]; when no plan reaches the goal; when there is no text to measure on.
///
/// # Panics
/// If there is no base plan or no type.
pub fn search<S: WeightSource>(
    source: &S,
    statistics: &Statistics,
    search: Search<'_>,
    select: &[Vec<u32>],
    device: &Device,
    observer: &mut dyn Observer,
) -> Result<Conversion, Error> {
    let Search { base, dtypes, goal } = search;
    assert!(!base.is_empty() && !dtypes.is_empty(), "a planner chooses among plans");
    if select.is_empty() {
        return Err(Error::NeedsText { what: "a planner, to measure on," });
    }
    let mut planner = Planner { source, statistics, base, dtypes, select, device, tried: Vec::new() };
    let chosen = match goal {
        Goal::Target(ratio) => {
            let tried = planner.at(ratio, observer)?;
            planner.best(tried, f64::INFINITY).ok_or(Error::Unreachable { ratio })?
        }
        Goal::Divergence(most) => planner.within(most, observer)?,
    };
    Ok(conclude(statistics, select, planner.tried, chosen))
}

/// A plan that was fitted and measured.
pub(crate) struct Tried {
    pub(crate) fitted: Fitted,
    pub(crate) verdict: Verdict,
}

struct Planner<'a, S> {
    source: &'a S,
    statistics: &'a Statistics,
    base: &'a [Plan],
    dtypes: &'a [CacheDtype],
    select: &'a [Vec<u32>],
    device: &'a Device,
    tried: Vec<Tried>,
}

impl<S: WeightSource> Planner<'_, S> {
    /// Tries every way to a cache this much smaller, and returns their places among those tried.
    fn at(&mut self, target: f64, observer: &mut dyn Observer) -> Result<Range<usize>, Error> {
        let first = self.tried.len();
        let (windowed, alone): (Vec<Plan>, Vec<Plan>) =
            self.base.iter().partition(|plan| plan.method.window() > 0);
        let config = self.statistics.config();
        let mut ratios: Vec<(CacheDtype, f64)> =
            self.dtypes.iter().map(|&dtype| (dtype, foretold_ratio(config, dtype, target))).collect();
        if !alone.is_empty() {
            self.try_all(&alone, &ratios, target, observer)?;
            // The ratios that came out, of the best types first.
            let mut found: Vec<(f64, CacheDtype, f64)> = self.tried[first..]
                .iter()
                .map(|tried| (tried.verdict.kl, tried.fitted.plan.cache, ratio_of(&tried.fitted.plan)))
                .collect();
            found.sort_by(|a, b| a.0.total_cmp(&b.0));
            ratios.clear();
            for (_, dtype, ratio) in found {
                if !ratios.iter().any(|&(other, _)| other == dtype) {
                    ratios.push((dtype, ratio));
                }
            }
            ratios.truncate(TRIED_WITH_WINDOW);
        }
        self.try_all(&windowed, &ratios, target, observer)?;
        Ok(first..self.tried.len())
    }

    /// The place of the best of those that diverge by `most` at most.
    fn best(&self, tried: Range<usize>, most: f64) -> Option<usize> {
        let kept: Vec<usize> = tried.filter(|&place| self.tried[place].verdict.kl <= most).collect();
        let trials: Vec<_> = kept.iter().map(|&place| self.tried[place].trial()).collect();
        (!trials.is_empty()).then(|| kept[crate::convert::best(&trials)])
    }

    /// The place of the smallest cache whose divergence is small enough: the ladder is halved until it is found.
    fn within(&mut self, most: f64, observer: &mut dyn Observer) -> Result<usize, Error> {
        let (mut low, mut high) = (0, LADDER.len());
        let mut found = None;
        // What is asked for first is where most models end.
        let mut rung = LADDER.iter().position(|&ratio| ratio >= 6.4).unwrap_or(LADDER.len() / 2);
        while low < high {
            let tried = self.at(LADDER[rung], observer)?;
            match self.best(tried, most) {
                Some(place) => (found, low) = (Some(place), rung + 1),
                None => high = rung,
            }
            rung = usize::midpoint(low, high);
        }
        let least = || self.tried.iter().map(|tried| tried.verdict.kl).fold(f64::INFINITY, f64::min);
        found.ok_or_else(|| Error::Divergence { most, least: least(), ratio: LADDER[0] })
    }

    /// Fits and measures plans in each type, at ratios that give the bytes.
    fn try_all(
        &mut self,
        base: &[Plan],
        ratios: &[(CacheDtype, f64)],
        target: f64,
        observer: &mut dyn Observer,
    ) -> Result<(), Error> {
        let mut fitted = Vec::new();
        for &(cache, ratio) in ratios {
            for &plan in base {
                fitted.extend(self.fit(Plan { cache, ..plan }, ratio, target, observer)?);
            }
        }
        if fitted.is_empty() {
            return Ok(());
        }
        let factors: Vec<&Factors> = fitted.iter().map(|fitted| &fitted.factors).collect();
        let scratch = self.statistics.scratch();
        let verdicts = judge(self.source, &factors, self.select, self.device, scratch, observer)?;
        let tried = fitted.into_iter().zip(verdicts).map(|(fitted, verdict)| Tried { fitted, verdict });
        self.tried.extend(tried);
        Ok(())
    }

    /// Fits a plan, with more or fewer numbers until its bytes are right; `None` where the model has no such ratio.
    fn fit(
        &self,
        plan: Plan,
        ratio: f64,
        target: f64,
        observer: &mut dyn Observer,
    ) -> Result<Option<Fitted>, Error> {
        let config = self.statistics.config();
        // Fewer bits alone may give more than was asked for.
        let mut ratio = ratio.max(1.0);
        let mut enough = None;
        for _ in 0..FITS {
            let plan = Plan { width: Width::Ratio(ratio), ..plan };
            if plan.check(config).is_err() {
                break;
            }
            let fitted = fit(self.source, self.statistics, plan, self.device, observer)?;
            let found = cache_ratio(fitted.factors.config());
            let close = found <= target * (1.0 + SLACK);
            if found >= target {
                enough = Some(fitted);
                if close || ratio == 1.0 {
                    break;
                }
            }
            // Whole numbers come in steps: aim a little beyond.
            ratio = (ratio * target / found * 1.002).max(1.0);
        }
        Ok(enough)
    }
}

impl Tried {
    pub(crate) fn trial(&self) -> crate::convert::Trial {
        trial(&self.fitted, Some(self.verdict.kl))
    }
}

/// The ratio of numbers that comes to `target` in bytes, about: of a layer's bytes half a word goes to rounding up, and a
/// number takes a bit more than its own for the scale and the offset of its group of 32.
fn foretold_ratio(config: &DecoderConfig, dtype: CacheDtype, target: f64) -> f64 {
    let numbers = 2.0 * config.d_kv() as f64;
    let bytes = 2.0 * numbers / target;
    let kept = match dtype.bits() {
        None => bytes / dtype.dense_bytes(1) as f64,
        Some(bits) => (bytes - 2.0).max(1.0) * 8.0 / (f64::from(bits) + 1.0),
    };
    // Whole numbers are rounded down, so what is aimed for is reached; group sizes are not quite 32.
    1.002 * numbers / kept
}

fn ratio_of(plan: &Plan) -> f64 {
    match plan.width {
        Width::Ratio(ratio) => ratio,
        Width::Fixed(_) => 1.0,
    }
}
