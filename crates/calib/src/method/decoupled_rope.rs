//! `decoupled_rope`: some dimensions of K and V as they are, the rest factorised.
//!
//! A kept dimension is a latent number of its own: `W_down` has the row of `W_k`, `W_up` a column of the identity. The
//! columns of `W_up` are therefore orthonormal as everywhere, and at run time nothing is special about this method.
//! Which dimensions are kept is measured: those whose error, in the best approximation of equal size, costs most under
//! the metric. Of K they come in whole RoPE pairs, so that the kept part turns as one.

use mla_core::decoder::{LatentConfig, Serves};
use mla_core::{LayerSlot, WeightSource};

use super::{Fitted, Job, split};
use crate::error::Error;
use crate::factorise::{Factorisation, Factors as Pair, KeptFactorisation};
use crate::linalg::Mat64;
use crate::metric::{Metric, rotary_pairs};
use crate::ranks::Unit;
use crate::report::{LayerReport, SpectrumReport};
use crate::statistics::stacked;
use crate::sweep::Observer;

/// Keys or values of a layer.
struct Half {
    /// Dimensions that are kept, ascending.
    kept: Vec<usize>,
    /// The others, ascending.
    rest: Vec<usize>,
    /// Of the others.
    found: KeptFactorisation,
    /// The loss of dropping everything.
    total: f64,
}

/// Keeps `d_rope` dimensions of K and of V, and factorises the rest of each.
pub(super) fn fit<S: WeightSource>(
    job: &Job<'_, S>,
    d_rope: usize,
    observer: &mut dyn Observer,
) -> Result<Fitted, Error> {
    let (n_layers, d_kv) = (job.n_layers(), job.d_kv());
    let config = job.statistics.config();
    let d_latent = job.plan.d_latent(config)?;
    observer.phase("spectra", n_layers);
    let mut halves = Vec::with_capacity(2 * n_layers);
    for layer in 0..n_layers {
        let moment = job.statistics.moment(layer, layer)?;
        let metrics = job.statistics.metrics(job.source, job.plan.objective, layer, job.device)?;
        let d_rotary = config.rope(layer).map_or(0, |rope| rope.d_rotary);
        let together = [groups(d_kv, config.d_head, d_rotary), groups(d_kv, config.d_head, 0)];
        for (part, (metric, groups)) in metrics.iter().zip(together).enumerate() {
            let places = part * d_kv..(part + 1) * d_kv;
            let moment = moment.block(places.clone(), places);
            let kept = costliest(&moment, metric, d_latent, d_rope, groups)?;
            let rest: Vec<usize> = (0..d_kv).filter(|place| !kept.contains(place)).collect();
            let found = Factorisation::new(&moment.select(&rest), &metric.restricted(&rest)?)?;
            let total = metric.whiten_moment(&moment).trace();
            halves.push(Half { kept, rest, found: found.keep(job.statistics.scratch())?, total });
        }
        observer.step(layer + 1);
    }
    let units: Vec<Unit<'_>> =
        halves.iter().map(|half| Unit { spectrum: &half.found.spectrum, cost: 1 }).collect();
    let ranks = job.ranks(&units, n_layers, 2 * d_rope * n_layers, d_latent - d_rope)?;
    let width = |layer: usize| split(d_rope + ranks[2 * layer], d_rope + ranks[2 * layer + 1]);
    let mut factors = job.factors(|layer| Some(LatentConfig::alone(layer, width(layer))));
    observer.phase("factors", n_layers);
    let mut layers = Vec::with_capacity(n_layers);
    let slots = [(Serves::Keys, LayerSlot::UpKey), (Serves::Values, LayerSlot::UpValue)];
    for layer in 0..n_layers {
        let w = stacked(job.source, layer, job.device)?;
        let mut reports = Vec::with_capacity(2);
        for (part, (serves, up)) in slots.into_iter().enumerate() {
            let half = &halves[2 * layer + part];
            let rank = ranks[2 * layer + part];
            let Pair { w_up, w_down } = half.factors(&w.row_block(part * d_kv..(part + 1) * d_kv), rank)?;
            factors.insert_down(layer, serves, &w_down)?;
            factors.insert(layer, up, &w_up)?;
            let spectrum = half.found.spectrum.clone();
            let discarded = spectrum[rank..].iter().sum();
            reports.push(SpectrumReport::measured(spectrum, d_rope + rank, half.total, discarded));
        }
        let value = reports.pop();
        layers.push(LayerReport { layer, key: reports.pop(), value, ..LayerReport::default() });
        observer.step(layer + 1);
    }
    Ok(Fitted { plan: job.plan, factors, layers, noise: 0.0 })
}

impl Half {
    /// `W_up = [identity columns, basis of the rest]`, `W_down = [kept rows; latent of the rest]`.
    fn factors(&self, w: &Mat64, rank: usize) -> Result<Pair, Error> {
        let rest = self.found.load()?.factors(&w.select_rows(&self.rest), rank);
        let mut w_up = Mat64::zeros(w.rows, self.kept.len() + rank);
        for (column, &row) in self.kept.iter().enumerate() {
            w_up.data[row * w_up.cols + column] = 1.0;
        }
        for (from, &row) in self.rest.iter().enumerate() {
            w_up.place(row, self.kept.len(), &rest.w_up.row_block(from..from + 1));
        }
        Ok(Pair { w_up, w_down: Mat64::stack(&[&w.select_rows(&self.kept), &rest.w_down]) })
    }
}

/// The dimensions of K, or V, that are kept or not kept together: pairs of those of each head that turn, and each of the
/// others alone.
fn groups(d_kv: usize, d_head: usize, d_rotary: usize) -> Vec<Vec<usize>> {
    let of_head = |first: usize| {
        let pairs = rotary_pairs(d_rotary).map(move |pair| pair.map(|j| first + j).to_vec());
        pairs.chain((d_rotary..d_head).map(move |j| vec![first + j]))
    };
    (0..d_kv).step_by(d_head).flat_map(of_head).collect()
}

/// The `count` dimensions, in whole groups, whose error costs most when `rank` dimensions are kept.
fn costliest(
    moment: &Mat64,
    metric: &Metric,
    rank: usize,
    count: usize,
    mut groups: Vec<Vec<usize>>,
) -> Result<Vec<usize>, Error> {
    let d = moment.rows;
    let found = Factorisation::new(moment, metric)?;
    let Pair { w_up, w_down } = found.factors(&Mat64::identity(d), rank);
    let mut rest = Mat64::identity(d);
    rest.subtract(&w_up.dot(&w_down));
    let error = rest.dot(moment).dot(&rest.transpose());
    // The share of a dimension in `trace(M E[e eᵀ])`: its own error and half of what it does together with others.
    let weighted = match metric.matrix() {
        Some(m) => m.dot(&error),
        None => error,
    };
    let cost = weighted.diagonal();
    let of =
        |group: &[usize]| group.iter().map(|&place| cost[place]).sum::<f64>() / group.len().max(1) as f64;
    groups.sort_by(|a, b| of(b).total_cmp(&of(a)));
    let mut kept: Vec<usize> = Vec::with_capacity(count);
    for group in &groups {
        // A pair that does not fit into what is left gives way to the next dimension that stands alone.
        if kept.len() + group.len() <= count {
            kept.extend(group);
        }
    }
    // An odd rest, where all that stand alone are kept already, takes half of a pair.
    let rest: Vec<usize> = groups.concat().into_iter().filter(|place| !kept.contains(place)).collect();
    kept.extend(rest.into_iter().take(count - kept.len()));
    kept.sort_unstable();
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_dimensions_come_in_whole_pairs() {
        let half = Mat64::random(8, 20, 3);
        let moment = half.dot(&half.transpose());
        let kept = costliest(&moment, &Metric::Identity, 3, 4, groups(8, 4, 4)).expect("finite");
        assert_eq!(kept.len(), 4);
        for &place in &kept {
            let partner = if place % 4 < 2 { place + 2 } else { place - 2 };
            assert!(kept.contains(&partner), "{kept:?}");
        }
    }

    #[test]
    fn of_a_head_that_turns_in_part_only_what_turns_is_paired() {
        assert_eq!(groups(8, 4, 2), [vec![0, 1], vec![2], vec![3], vec![4, 5], vec![6], vec![7]]);
    }

    #[test]
    fn the_dimension_that_no_rank_can_spare_is_kept() {
        // Dimensions 0 and 1 are one; 2 and 3 are independent and 3 is the larger: rank 2 keeps it and drops 2.
        let mut moment = Mat64::identity(4);
        for (place, value) in [(0, 9.0), (1, 9.0), (4, 9.0), (5, 9.0), (10, 2.0), (15, 3.0)] {
            moment.data[place] = value;
        }
        assert_eq!(costliest(&moment, &Metric::Identity, 2, 1, groups(4, 4, 0)).expect("finite"), [2]);
    }
}
