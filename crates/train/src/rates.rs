//! Learning rates: what suits a method, and a search for what suits a model.
//!
//! A factorisation that stands alone takes rates a hundred times those of a cascade, whose matrices read the latents of many layers, so no
//! one default serves both. [`default_rates`] says what was found for each; [`find_rates`] finds it for the model and text at hand, by short
//! runs from the same start.

use mla_core::{Decoder, DecoderConfig};

use crate::backward::{Models, gradients};
use crate::batches::Batches;
use crate::eval::EvalError;
use crate::factors::factors;
use crate::optimise::Rates;
use crate::settings::Settings;
use crate::trainer::{Sources, TrainError, Trainer};

/// Between two rates that are tried: half a decade.
const RUNG: f64 = 3.162_277_660_168_379_5;
/// Rungs that are tried on either side of the first rates at most.
const RUNGS: i32 = 4;
/// Trials of a search at most: the first, the one above, and all below.
pub const MOST_TRIALS: usize = 2 + RUNGS as usize;
/// Windows that trials are measured on, and not trained on, at most.
const HELD_BACK: usize = 8;
/// Of all windows, the share that is held back at most: one in so many.
const HELD_BACK_OF: usize = 4;

impl Rates {
    /// Both, so many rungs higher, to two digits.
    fn raised(self, rungs: i32) -> Self {
        let raise = |rate: f64| match rungs {
            0 => rate,
            _ => format!("{:.1e}", rate * RUNG.powi(rungs)).parse().expect("a number in digits"),
        };
        Self { euclidean: raise(self.euclidean), riemannian: raise(self.riemannian) }
    }

    /// Whether no run could have them.
    fn are_too_high(self) -> bool {
        !Settings::number_range("euclidean_lr").contains(&self.euclidean)
            || !Settings::number_range("riemannian_lr").contains(&self.riemannian)
    }
}

/// What serves a model of this graph where nobody has searched.
pub fn default_rates(config: &DecoderConfig) -> Rates {
    let latents = || (0..config.n_layers()).filter_map(|layer| config.latent(layer));
    if latents().any(|latent| latent.reads_from.is_some()) {
        // A layer's error is read by all layers behind it.
        Rates { euclidean: 3e-5, riemannian: 3e-4 }
    } else if latents().any(|latent| latent.shared_key().is_some()) {
        Rates { euclidean: 2e-4, riemannian: 2e-3 }
    } else {
        Rates { euclidean: 1e-3, riemannian: 3e-3 }
    }
}

/// A short run at some rates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trial {
    /// The rates.
    pub rates: Rates,
    /// The loss after it on windows that it did not see; infinite where the run diverged.
    pub loss: f64,
}

/// What a search found.
#[derive(Clone, Debug, PartialEq)]
pub struct FoundRates {
    /// The loss before any step.
    pub untrained: f64,
    /// All trials, in the order of trying; at least one.
    pub trials: Vec<Trial>,
}

impl FoundRates {
    /// The trial with the least loss; of equals the first.
    pub fn best(&self) -> Trial {
        *self.trials.iter().min_by(|a, b| a.loss.total_cmp(&b.loss)).expect("a search has trials")
    }
}

/// Searches the rates of a run: from the `settings`' own, half a decade at a time, up while the loss falls, else down.
///
/// A trial is a whole run of `steps` steps, its schedule included, from the model as it stands, on the run's windows but a few that the
/// loss is measured on. The ratio of the two rates stays as it is. `on_step` hears the trial, counted from 0, and the steps done in it.
///
/// # Errors
/// As [`Trainer::new`], and when there are too few windows to hold one back. A trial that diverges is no error.
pub fn find_rates(
    student: &Decoder,
    sources: Sources<'_>,
    windows: &[Vec<u32>],
    settings: &Settings,
    steps: usize,
    on_step: &mut dyn FnMut(usize, usize),
) -> Result<FoundRates, TrainError> {
    let Cut { held_back, trained } = hold_back(windows)?;
    let start = Rates { euclidean: settings.euclidean_lr, riemannian: settings.riemannian_lr };
    let measure =
        |decoder: &Decoder| measured(decoder, sources, &held_back, settings).unwrap_or(f64::INFINITY);
    let mut trials: Vec<Trial> = Vec::new();
    let mut attempt = |rung: i32| {
        let rates = start.raised(rung);
        if rates.are_too_high() {
            return Ok(f64::INFINITY);
        }
        let settings = Settings {
            euclidean_lr: rates.euclidean,
            riemannian_lr: rates.riemannian,
            max_steps: Some(steps),
            num_epochs: Settings::MOST as usize,
            warmup_steps: settings.warmup_steps.min(steps / 5),
            ..settings.clone()
        };
        let mut trainer = Trainer::new(student.clone(), sources, &trained, settings)?;
        let mut diverged = false;
        while trainer.done() < steps && !diverged {
            match trainer.step() {
                Ok(report) => on_step(trials.len(), report.step),
                Err(TrainError::NotFinite { .. }) => diverged = true,
                Err(error) => return Err(error),
            }
        }
        let loss = if diverged { f64::INFINITY } else { measure(trainer.student()) };
        trials.push(Trial { rates, loss });
        Ok(loss)
    };
    let first = attempt(0)?;
    let second = attempt(1)?;
    if second < first {
        climb(2..=RUNGS, second, &mut attempt)?;
    } else {
        climb((-RUNGS..=-1).rev(), first, &mut attempt)?;
    }
    Ok(FoundRates { untrained: measure(student), trials })
}

/// Tries rungs in turn until one is no better than the one before it; the loss of the one before the first is `before`.
fn climb(
    rungs: impl Iterator<Item = i32>,
    mut before: f64,
    attempt: &mut dyn FnMut(i32) -> Result<f64, TrainError>,
) -> Result<(), TrainError> {
    for rung in rungs {
        let loss = attempt(rung)?;
        if loss >= before {
            break;
        }
        before = loss;
    }
    Ok(())
}

/// Windows, cut in two.
struct Cut {
    /// To measure on, spread evenly.
    held_back: Vec<Vec<u32>>,
    /// The others.
    trained: Vec<Vec<u32>>,
}

fn hold_back(windows: &[Vec<u32>]) -> Result<Cut, TrainError> {
    let length = windows.first().map_or(0, Vec::len);
    if windows.len() < 2 {
        return Err(EvalError::TooShort { tokens: windows.len() * length, length: 2 * length }.into());
    }
    let count = (windows.len() / HELD_BACK_OF).clamp(1, HELD_BACK);
    let places: Vec<usize> = (0..count).map(|i| i * windows.len() / count).collect();
    let part = |is_held: bool| {
        let of = windows.iter().enumerate().filter(|(place, _)| places.contains(place) == is_held);
        of.map(|(_, window)| window.clone()).collect()
    };
    Ok(Cut { held_back: part(true), trained: part(false) })
}

/// The loss of a model, mean over windows; `None` where it is not finite.
fn measured(
    decoder: &Decoder,
    sources: Sources<'_>,
    windows: &[Vec<u32>],
    settings: &Settings,
) -> Option<f64> {
    let models = Models { student: decoder, teacher: sources.teacher, originals: sources.originals };
    let factors = factors(decoder);
    let mut batches = Batches::new(windows, settings.batch_size, settings.seed);
    let mut sum = 0.0;
    for number in 0..batches.of_an_epoch() {
        let batch = batches.get(number);
        let found = gradients(models, &factors, &batch, settings.objective()).ok()?;
        sum += found.loss.total * batch.len() as f64;
    }
    Some(sum / windows.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_on_is_not_trained_on() {
        let windows: Vec<Vec<u32>> = (0..21).map(|i| vec![i, i]).collect();
        let Cut { held_back, trained } = hold_back(&windows).expect("there are enough");
        assert_eq!((held_back.len(), trained.len()), (5, 16));
        assert!(held_back.iter().all(|window| !trained.contains(window)));
        assert_eq!(hold_back(&windows[..2]).expect("two").held_back.len(), 1);
        assert!(matches!(hold_back(&windows[..1]), Err(TrainError::Text(EvalError::TooShort { .. }))));
        let many: Vec<Vec<u32>> = (0..400).map(|i| vec![i, i]).collect();
        assert_eq!(hold_back(&many).expect("many").held_back.len(), HELD_BACK);
    }

    #[test]
    fn a_climb_ends_at_the_first_that_is_no_better() {
        let losses = [3.0, 2.0, 2.5, 1.0];
        let mut seen = Vec::new();
        let mut attempt = |rung: i32| {
            seen.push(rung);
            Ok(losses[rung as usize])
        };
        climb(0..4, 4.0, &mut attempt).expect("no trial fails");
        climb(0..4, 3.0, &mut attempt).expect("no trial fails");
        assert_eq!(seen, [0, 1, 2, 0]);
    }
}
