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
        trials += 1;
        observer.step(trials.min(TRIALS));
        let rule = |_| Rule::Above { threshold: log_threshold.exp(), floor };
        let found = found(statistics, roots, cascade, rule)?;
        Ok::<_, Error>(Walk { log_threshold, count: count(&found), found })
    };
    let (threshold, alone) = independent(statistics, roots, cascade, budget, floor)?;
    let mut above = walk(threshold.ln())?;
    let mut below = None;
    let mut step = 1.0;
    while above.count > budget {
        let next = walk(above.log_threshold + step)?;
        step *= 2.0;
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
    let searched = spend(&above, budget);
    // With the ranks of layers that read nothing, reading can only help: the promise is kept where the search goes astray.
    let instead = found(statistics, roots, cascade, |layer| Rule::Ranks(alone[layer].clone()))?;
    let better = lost(&above.found, &searched) <= lost(&instead, &alone);
    Ok(if better { searched } else { alone })
}

/// One walk through all layers.
fn found(
    statistics: &Statistics,
    roots: &[Roots],
    cascade: Cascade,
    rule: impl Fn(usize) -> Rule,
) -> Result<Vec<Found>, Error> {
    let mut pass = Pass::new(statistics, cascade);
    let mut found = Vec::with_capacity(roots.len());
    for (layer, roots) in roots.iter().enumerate() {
        found.push(pass.layer(layer, &roots.load()?, rule(layer))?);
        pass.forget(layer);
    }
    Ok(found)
}

/// What is dropped of all spectra.
fn lost(found: &[Found], ranks: &[Vec<usize>]) -> f64 {
    let layer = |(found, ranks): (&Found, &Vec<usize>)| {
        found
            .spectra
            .iter()
            .zip(ranks)
            .map(|(spectrum, &rank)| spectrum[rank..].iter().sum::<f64>())
            .sum::<f64>()
    };
    found.iter().zip(ranks).map(layer).sum()
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

/// Of layers that read nothing: the value that is the last to be kept under the budget, and the ranks. Innovations are
/// smaller, so that no more of them pass that threshold.
fn independent(
    statistics: &Statistics,
    roots: &[Roots],
    cascade: Cascade,
    budget: usize,
    floor: usize,
) -> Result<(f64, Vec<Vec<usize>>), Error> {
    let parts = cascade.latents.parts();
    let alone = Cascade { window: 0, ..cascade };
    let spectra: Vec<Vec<f64>> = found(statistics, roots, alone, |_| Rule::Ranks(vec![1; parts]))?
        .into_iter()
        .flat_map(|layer| layer.spectra)
        .collect();
    let units: Vec<Unit<'_>> = spectra.iter().map(|spectrum| Unit { spectrum, cost: 1 }).collect();
    let ranks = pooled(&units, budget, floor);
    let mut values = spectra.concat();
    values.sort_by(|a, b| b.total_cmp(a));
    // Below rounding all values are noise.
    let threshold = values[budget.min(values.len() - 1)].max(1e-14 * values[0]).max(f64::MIN_POSITIVE);
    Ok((threshold, ranks.chunks(parts).map(<[usize]>::to_vec).collect()))
}
