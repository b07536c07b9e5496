//! How a learning rate rises and falls over a run.

use serde::{Deserialize, Serialize};

/// The shape of the fall after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// No fall.
    Constant,
    /// In a straight line to 0.
    Linear,
    /// Half a cosine to 0 (Loshchilov & Hutter 2017, without restarts).
    #[default]
    Cosine,
}

impl Schedule {
    /// The share of the base rate in a step, counted from 0, of a run of `steps` steps whose first `warmup` rise in a straight
    /// line. No step has a rate of 0: the first has `1 / warmup`, and the last one more than nothing.
    pub fn share(self, step: usize, warmup: usize, steps: usize) -> f64 {
        if step < warmup {
            return (step + 1) as f64 / warmup as f64;
        }
        let fallen = (step - warmup) as f64 / steps.saturating_sub(warmup).max(1) as f64;
        let left = 1.0 - fallen.min(1.0);
        match self {
            Schedule::Constant => 1.0,
            Schedule::Linear => left,
            Schedule::Cosine => 0.5 * (1.0 - (std::f64::consts::PI * left).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_rises_and_then_falls_to_nothing() {
        for schedule in [Schedule::Linear, Schedule::Cosine] {
            let shares: Vec<f64> = (0..20).map(|step| schedule.share(step, 4, 20)).collect();
            assert_eq!(shares[..5], [0.25, 0.5, 0.75, 1.0, 1.0]);
            assert!(shares[4..].windows(2).all(|pair| pair[1] < pair[0]), "{shares:?}");
            assert!(shares[19] > 0.0 && schedule.share(20, 4, 20).abs() < 1e-12);
        }
        assert!((Schedule::Linear.share(12, 4, 20) - 0.5).abs() < 1e-12);
        assert!((Schedule::Cosine.share(12, 4, 20) - 0.5).abs() < 1e-12);
        assert_eq!(Schedule::Constant.share(19, 4, 20), 1.0);
    }

    #[test]
    fn a_warmup_longer_than_the_run_only_rises() {
        assert_eq!(Schedule::Cosine.share(1, 10, 2), 0.2);
    }
}
