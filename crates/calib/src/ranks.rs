//! How many latent numbers each layer's keys and values get under one budget.

use crate::error::Error;

/// How a budget is shared among layers, and among keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ranks {
    /// The same everywhere.
    Uniform,
    /// Wherever it prevents most loss: all spectra are pooled and the largest values kept. Sound for a metric in one unit
    /// across layers (`fisher`); under `mse` a layer of large activations takes what another needs.
    Global,
}

impl Ranks {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Ranks::Uniform => "uniform",
            Ranks::Global => "global",
        }
    }
}

/// The least rank of a unit: a few where the budget allows it, since a spectrum that looks empty on calibration text may
/// not be so elsewhere.
pub(crate) fn floor(budget: usize, units: usize) -> usize {
    if budget >= 8 * units { 2 } else { 1 }
}

/// What shares in a budget: the keys or the values of a layer, or of several that share a basis.
#[derive(Clone, Copy, Debug)]
pub struct Unit<'a> {
    /// What each dimension prevents, descending.
    pub spectrum: &'a [f64],
    /// Latent numbers that a dimension costs: one a layer.
    pub cost: usize,
}

/// As [`pooled`], with the [`floor`] that the budget allows.
///
/// # Errors
/// When the budget does not reach for one dimension each.
pub(crate) fn within(units: &[Unit<'_>], budget: usize) -> Result<Vec<usize>, Error> {
    let costs = units.iter().map(|unit| unit.cost).sum();
    if budget < costs {
        return Err(Error::Budget { budget, units: costs });
    }
    Ok(pooled(units, budget, floor(budget, costs)))
}

/// Ranks that prevent most loss for `budget` latent numbers, with at least `floor` a unit: the spectra are pooled and the
/// dimensions that prevent most a number kept.
///
/// # Panics
/// If the budget does not reach for the floors.
pub fn pooled(units: &[Unit<'_>], budget: usize, floor: usize) -> Vec<usize> {
    let mut ranks: Vec<usize> = units.iter().map(|unit| floor.min(unit.spectrum.len())).collect();
    let spent: usize = ranks.iter().zip(units).map(|(rank, unit)| rank * unit.cost).sum();
    assert!(spent <= budget, "a budget of {budget} for {} units of at least {floor}", units.len());
    let mut left = budget - spent;
    let dimensions = |(place, unit): (usize, &Unit<'_>)| {
        let cost = unit.cost;
        unit.spectrum.iter().skip(floor).map(move |lambda| (lambda / cost as f64, place)).collect::<Vec<_>>()
    };
    let mut rest: Vec<(f64, usize)> = units.iter().enumerate().flat_map(dimensions).collect();
    // Spectra descend and the sort is stable, so what is taken of a unit is always its head.
    rest.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut closed = vec![false; units.len()];
    for (_, place) in rest {
        let cost = units[place].cost;
        closed[place] |= cost > left;
        if !closed[place] {
            ranks[place] += 1;
            left -= cost;
        }
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_largest_values_of_all_are_kept() {
        let spectra: [&[f64]; 3] = [&[9.0, 1.0, 0.5], &[3.0, 2.5, 2.0], &[0.1, 0.0, 0.0]];
        let units = spectra.map(|spectrum| Unit { spectrum, cost: 1 });
        assert_eq!(pooled(&units, 5, 1), [1, 3, 1]);
        assert_eq!(pooled(&units, 9, 1), [3, 3, 3]);
        assert_eq!(pooled(&units, 99, 1), [3, 3, 3]);
    }

    #[test]
    fn a_dimension_that_costs_more_must_prevent_more() {
        let group = Unit { spectrum: &[8.0, 4.0, 1.0], cost: 4 };
        let single = Unit { spectrum: &[3.0, 1.5, 0.1], cost: 1 };
        assert_eq!(pooled(&[group, single], 7, 1), [1, 3]);
        assert_eq!(pooled(&[group, single], 10, 1), [2, 2], "1.5, then 4 / 4, then nothing fits");
    }

    proptest! {
        #[test]
        fn a_budget_is_spent_and_never_better_spent_elsewhere(
            spectra in proptest::collection::vec(proptest::collection::vec(0.0f64..1.0, 6), 1..5), share in 0.2f64..1.0,
        ) {
            let sorted: Vec<Vec<f64>> = spectra
                .into_iter()
                .map(|mut s| { s.sort_by(|a, b| b.total_cmp(a)); s })
                .collect();
            let units: Vec<Unit<'_>> = sorted.iter().map(|spectrum| Unit { spectrum, cost: 1 }).collect();
            let budget = ((6 * units.len()) as f64 * share) as usize;
            let ranks = pooled(&units, budget, 1);
            prop_assert_eq!(ranks.iter().sum::<usize>(), budget);
            let least_kept = sorted.iter().zip(&ranks).filter(|(_, r)| **r > 1).map(|(s, &r)| s[r - 1]);
            let most_dropped = sorted.iter().zip(&ranks).filter(|(_, r)| **r < 6).map(|(s, &r)| s[r]);
            let (kept, dropped) = (least_kept.fold(f64::MAX, f64::min), most_dropped.fold(0.0, f64::max));
            prop_assert!(kept >= dropped);
        }
    }
}
