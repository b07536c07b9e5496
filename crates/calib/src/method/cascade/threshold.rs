//! Step 4: the one threshold that meets the budget.
//!
//! How many eigenvalues pass a threshold depends on what the layers before have kept, so each trial is a walk through
//! all layers. The count falls as the threshold rises; both are followed on logarithmic scales, where the curve is close
//! to straight, and few walks are needed.

use super::Roots;
use super::pass::{Found, Pass, Rule};
use crate::error::Error;
use crate::plan::Cascade;
use crate::ranks::{Unit, floor, pooled};
use crate::statistics::Statistics;
use crate::sweep::Observer;

/// Walks at most.
const TRIALS: usize = 16;
/// A count this close below the budget is near enough: what is left goes to the largest values that were dropped.
const NEAR: f64 = 0.997;

/// The ranks of every layer's parts, `budget` in all.
pub(super) fn search(
    statistics: &Statistics,
    roots: &[Roots],
    cascade: Cascade,
    budget: usize,
    observer: &mut dyn Observer,
) -> Result<Vec<Vec<usize>>, Error> {
    let parts = cascade.latents.parts();
    let units = parts * roots.len();
    let widest = 2 * statistics.config().d_kv() / parts;
    if budget < units {
        return Err(Error::Budget { budget, units });
    }
    if budget >= units * widest {
        return Ok(vec![vec![widest; parts]; roots.len()]);
    }
    let floor = floor(budget, units);
    observer.phase("searching ranks", TRIALS);
    let mut trials = 0;
    let mut walk = |log_threshold: f64| {
        let mut pass = Pass::new(statistics, cascade);
        let mut found = Vec::with_capacity(roots.len());
        for (layer, roots) in roots.iter().enumerate() {
            let rule = Rule::Above { threshold: log_threshold.exp(), floor };
            found.push(pass.layer(layer, &roots.load()?, rule)?);
            pass.forget(layer);
        }
        trials += 1;
        observer.step(trials.min(TRIALS));
        Ok::<_, Error>(Walk { log_threshold, count: count(&found), found })
    };
    // Without reading, as many values pass this threshold as the budget allows; innovations are smaller.
    let mut above = walk(independent_threshold(statistics, roots, cascade, budget)?.ln())?;
    let mut below = None;
    while above.count > budget {
        let next = walk(above.log_threshold + 1.0)?;
        below = Some(std::mem::replace(&mut above, next));
    }
    for _ in 0..TRIALS {
        if above.count as f64 >= NEAR * budget as f64 {
            break;
        }
        let next = match &below {
            None => walk(above.log_threshold - 1.0)?,
            Some(below) => {
                // Where the straight line through both meets the budget, kept off their ends.
                let log = |count: usize| (count.max(1) as f64).ln();
                let share =
                    (log(below.count) - log(budget)) / (log(below.count) - log(above.count)).max(1e-9);
                let share = share.clamp(0.05, 0.95);
                walk(below.log_threshold + share * (above.log_threshold - below.log_threshold))?
            }
        };
        if next.count > budget {
            below = Some(next);
        } else {
            above = next;
        }
        if below.as_ref().is_some_and(|below| above.log_threshold - below.log_threshold < 1e-6) {
            break;
        }
    }
    Ok(spend(&above, budget))
}

struct Walk {
    log_threshold: f64,
    count: usize,
    found: Vec<Found>,
}

fn count(found: &[Found]) -> usize {
    found.iter().flat_map(|layer| &layer.ranks).sum()
}

/// Gives what is left of the budget to the largest values that were dropped.
fn spend(walk: &Walk, budget: usize) -> Vec<Vec<usize>> {
    let tail = |(spectrum, &rank): (&'_ Vec<f64>, &usize)| spectrum[rank..].to_vec();
    let tails: Vec<Vec<f64>> =
        walk.found.iter().flat_map(|layer| layer.spectra.iter().zip(&layer.ranks).map(tail)).collect();
    let units: Vec<Unit<'_>> = tails.iter().map(|spectrum| Unit { spectrum, cost: 1 }).collect();
    let mut more = pooled(&units, budget - walk.count, 0).into_iter();
    let layer = |found: &Found| found.ranks.iter().zip(&mut more).map(|(rank, more)| rank + more).collect();
    walk.found.iter().map(layer).collect()
}

/// The value of all spectra, each layer for itself, that is the last to be kept under the budget.
fn independent_threshold(
    statistics: &Statistics,
    roots: &[Roots],
    cascade: Cascade,
    budget: usize,
) -> Result<f64, Error> {
    let mut pass = Pass::new(statistics, Cascade { window: 0, ..cascade });
    let mut values = Vec::new();
    for (layer, roots) in roots.iter().enumerate() {
        let rule = Rule::Ranks(vec![1; cascade.latents.parts()]);
        values.extend(pass.layer(layer, &roots.load()?, rule)?.spectra.concat());
        pass.forget(layer);
    }
    values.sort_by(|a, b| b.total_cmp(a));
    Ok(values[budget.min(values.len() - 1)].max(f64::MIN_POSITIVE))
}
