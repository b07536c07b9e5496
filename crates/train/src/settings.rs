//! What a run is told: the names and defaults are those of cacheshrink's trainer, and each of them works.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::objective::Objective;
use crate::optimise::Rates;
use crate::schedule::Schedule;

/// The loss by its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// The cross-entropy of the next token.
    Lm,
    /// `KL(teacher ‖ model)`.
    Kl,
    /// The teacher's distribution at a temperature, and the next token.
    #[default]
    Distillation,
    /// K and V of the original matrices, and the next token.
    Reconstruction,
}

/// The settings of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What is minimised.
    pub loss: Loss,
    /// Learning rate of `W_down` and of cascade's cross terms.
    pub euclidean_lr: f64,
    /// Learning rate of `W_up`, on its Stiefel manifold.
    pub riemannian_lr: f64,
    /// How often the text is gone through.
    pub num_epochs: usize,
    /// Steps at most, whatever the epochs.
    pub max_steps: Option<usize>,
    /// Windows a pass.
    pub batch_size: usize,
    /// Tokens a window.
    pub max_length: usize,
    /// Passes that make one step, whose gradient is the mean over all their tokens.
    pub gradient_accumulation_steps: usize,
    /// Longer gradients, over all matrices together, are shortened to this; 0 for no bound.
    pub max_grad_norm: f64,
    /// Decay of what AdamW moves.
    pub weight_decay: f64,
    /// Steps in which the rates rise.
    pub warmup_steps: usize,
    /// How they fall afterwards.
    pub schedule: Schedule,
    /// By what distillation divides logits.
    pub temperature: f64,
    /// The teacher's share in distillation.
    pub distillation_alpha: f64,
    /// The reconstruction's share.
    pub reconstruction_alpha: f64,
    /// Steps between two lines of the log.
    pub logging_steps: usize,
    /// Steps between two snapshots.
    pub save_steps: usize,
    /// Snapshots that are kept.
    pub save_total_limit: usize,
    /// Validations without a better perplexity after which the run stops.
    pub early_stopping_patience: Option<usize>,
    /// Steps between two measurements of `‖W_upᵀ W_up − I‖`.
    pub check_orthonormality_steps: usize,
    /// Fixes the order of the windows.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            loss: Loss::default(),
            euclidean_lr: 1e-5,
            riemannian_lr: 1e-4,
            num_epochs: 3,
            max_steps: None,
            batch_size: 4,
            max_length: 512,
            gradient_accumulation_steps: 1,
            max_grad_norm: 1.0,
            weight_decay: 0.01,
            warmup_steps: 0,
            schedule: Schedule::Cosine,
            temperature: 2.0,
            distillation_alpha: 0.9,
            reconstruction_alpha: 0.3,
            logging_steps: 10,
            save_steps: 100,
            save_total_limit: 2,
            early_stopping_patience: None,
            check_orthonormality_steps: 100,
            seed: 0,
        }
    }
}

/// What may change when a run goes on: how far its steps go, and what they do not depend on.
const FREE: [&str; 7] = [
    "euclidean_lr",
    "riemannian_lr",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "early_stopping_patience",
    "check_orthonormality_steps",
];

/// A setting that no run could have.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{name} is {found}, expected {expected}")]
pub struct BadSetting {
    /// The setting's name.
    pub name: &'static str,
    /// What it is.
    pub found: String,
    /// What it may be.
    pub expected: String,
}

impl Settings {
    /// The most that any whole number may be: products of two of them fit 64 bits.
    pub const MOST: u64 = (1 << 31) - 1;

    /// Settings that are whole numbers, and the least that each may be.
    const COUNTS: [(&'static str, u64); 11] = [
        ("num_epochs", 1),
        ("max_steps", 1),
        ("batch_size", 1),
        ("max_length", 2),
        ("gradient_accumulation_steps", 1),
        ("warmup_steps", 0),
        ("logging_steps", 1),
        ("save_steps", 1),
        ("save_total_limit", 1),
        ("early_stopping_patience", 1),
        ("check_orthonormality_steps", 1),
    ];

    /// Settings that are numbers, and the least and the most that each may be.
    const NUMBERS: [(&'static str, f64, f64); 7] = [
        ("euclidean_lr", 0.0, 10.0),
        ("riemannian_lr", 0.0, 10.0),
        ("max_grad_norm", 0.0, f64::MAX),
        ("weight_decay", 0.0, 1.0),
        ("temperature", 0.01, 100.0),
        ("distillation_alpha", 0.0, 1.0),
        ("reconstruction_alpha", 0.0, 1.0),
    ];

    /// What the whole number of this name may be.
    ///
    /// # Panics
    /// If no setting of that name is a whole number.
    pub fn count_range(name: &str) -> RangeInclusive<u64> {
        match Self::COUNTS.iter().find(|(known, _)| *known == name) {
            Some(&(_, least)) => least..=Self::MOST,
            None => panic!("no setting {name} is a whole number"),
        }
    }

    /// What the number of this name may be.
    ///
    /// # Panics
    /// If no setting of that name is a number.
    pub fn number_range(name: &str) -> RangeInclusive<f64> {
        match Self::NUMBERS.iter().find(|(known, ..)| *known == name) {
            Some(&(_, least, most)) => least..=most,
            None => panic!("no setting {name} is a number"),
        }
    }

    /// Refuses what no run could have.
    ///
    /// # Errors
    /// The first setting that is out of range.
    pub fn check(&self) -> Result<(), BadSetting> {
        let counts = [
            ("num_epochs", self.num_epochs),
            ("max_steps", self.max_steps.unwrap_or(1)),
            ("batch_size", self.batch_size),
            ("max_length", self.max_length),
            ("gradient_accumulation_steps", self.gradient_accumulation_steps),
            ("warmup_steps", self.warmup_steps),
            ("logging_steps", self.logging_steps),
            ("save_steps", self.save_steps),
            ("save_total_limit", self.save_total_limit),
            ("early_stopping_patience", self.early_stopping_patience.unwrap_or(1)),
            ("check_orthonormality_steps", self.check_orthonormality_steps),
        ];
        for (name, found) in counts {
            let range = Self::count_range(name);
            if !range.contains(&(found as u64)) {
                let expected = match (found as u64) < *range.start() {
                    true => format!("at least {}", range.start()),
                    false => format!("at most {}", range.end()),
                };
                return Err(BadSetting { name, found: found.to_string(), expected });
            }
        }
        let numbers = [
            ("euclidean_lr", self.euclidean_lr),
            ("riemannian_lr", self.riemannian_lr),
            ("max_grad_norm", self.max_grad_norm),
            ("weight_decay", self.weight_decay),
            ("temperature", self.temperature),
            ("distillation_alpha", self.distillation_alpha),
            ("reconstruction_alpha", self.reconstruction_alpha),
        ];
        for (name, found) in numbers {
            let range = Self::number_range(name);
            // NaN is in no range.
            if !range.contains(&found) {
                let expected = match (*range.start(), *range.end()) {
                    (least, f64::MAX) => format!("{least} or more"),
                    (least, most) => format!("{least} to {most}"),
                };
                return Err(BadSetting { name, found: found.to_string(), expected });
            }
        }
        Ok(())
    }

    /// The first setting by which a run that went by `earlier` cannot go on by these; learning rates may change, and so may
    /// what is logged, kept and waited for.
    pub fn unlike(&self, earlier: &Self) -> Option<String> {
        let fields = |settings: &Self| match serde_json::to_value(settings) {
            Ok(serde_json::Value::Object(fields)) => fields,
            other => unreachable!("settings are numbers and names by field: {other:?}"),
        };
        let (now, then) = (fields(self), fields(earlier));
        let differs = |(name, now): (String, serde_json::Value)| {
            let differs = !FREE.contains(&name.as_str()) && then[&name] != now;
            differs.then(|| format!("{name} was {} and is {now}", then[&name]))
        };
        now.into_iter().find_map(differs)
    }

    /// What is minimised, with its numbers.
    pub fn objective(&self) -> Objective {
        match self.loss {
            Loss::Lm => Objective::LanguageModel,
            Loss::Kl => Objective::Kl,
            Loss::Distillation => {
                Objective::Distillation { alpha: self.distillation_alpha, temperature: self.temperature }
            }
            Loss::Reconstruction => Objective::Reconstruction { alpha: self.reconstruction_alpha },
        }
    }

    /// Steps of a run over so many batches an epoch.
    pub fn steps(&self, batches_of_an_epoch: usize) -> usize {
        let steps = self.passes(batches_of_an_epoch).div_ceil(self.gradient_accumulation_steps);
        self.max_steps.map_or(steps, |most| steps.min(most))
    }

    /// Batches of all epochs.
    pub(crate) fn passes(&self, batches_of_an_epoch: usize) -> usize {
        self.num_epochs * batches_of_an_epoch
    }

    /// The learning rates of a step, counted from 0.
    pub fn rates(&self, step: usize, steps: usize) -> Rates {
        let share = self.schedule.share(step, self.warmup_steps, steps);
        Rates { euclidean: share * self.euclidean_lr, riemannian: share * self.riemannian_lr }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_a_run() {
        assert_eq!(Settings::default().check(), Ok(()));
    }

    #[test]
    fn what_no_run_could_have_is_named() {
        let base = Settings::default;
        for (settings, name) in [
            (Settings { euclidean_lr: -1e-5, ..base() }, "euclidean_lr"),
            (Settings { riemannian_lr: f64::NAN, ..base() }, "riemannian_lr"),
            (Settings { batch_size: 0, ..base() }, "batch_size"),
            (Settings { max_length: 1, ..base() }, "max_length"),
            (Settings { max_steps: Some(0), ..base() }, "max_steps"),
            (Settings { num_epochs: 1 << 31, ..base() }, "num_epochs"),
            (Settings { temperature: 0.0, ..base() }, "temperature"),
            (Settings { distillation_alpha: 1.5, ..base() }, "distillation_alpha"),
            (Settings { max_grad_norm: f64::INFINITY, ..base() }, "max_grad_norm"),
        ] {
            assert_eq!(settings.check().expect_err(name).name, name);
        }
    }

    #[test]
    fn a_run_goes_on_with_other_rates_and_with_no_other_batches() {
        let earlier = Settings::default();
        let free = Settings {
            euclidean_lr: 1e-7,
            save_steps: 3,
            early_stopping_patience: Some(4),
            ..earlier.clone()
        };
        assert_eq!(free.unlike(&earlier), None);
        let other = Settings { batch_size: 8, ..earlier.clone() };
        assert_eq!(other.unlike(&earlier).as_deref(), Some("batch_size was 4 and is 8"));
        let other = Settings { max_steps: Some(8), ..earlier.clone() };
        assert_eq!(other.unlike(&earlier).as_deref(), Some("max_steps was null and is 8"));
        for name in FREE {
            assert!(serde_json::to_value(&earlier).expect("numbers").get(name).is_some(), "{name}");
        }
    }

    #[test]
    fn steps_count_epochs_and_accumulated_passes() {
        let settings = Settings { num_epochs: 3, gradient_accumulation_steps: 4, ..Settings::default() };
        assert_eq!(settings.steps(5), 4, "15 passes in steps of 4");
        assert_eq!(Settings { max_steps: Some(2), ..settings }.steps(5), 2);
    }
}
