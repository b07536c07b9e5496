//! Learning rates: those of the method where nobody names any, those of the run that goes on, or what `--find-rates` finds.

use std::path::Path;

use mla_core::Decoder;
use serde_json::{Value, json};
use train::{FoundRates, MOST_TRIALS, Rates, Settings, Sources, find_rates};

use super::RunFolder;
use crate::report;
use crate::session::Session;

/// Searches rates and puts them into the settings; what was tried is for the log.
///
/// # Errors
/// When there are too few windows, or what the loss needs is missing.
pub fn search(
    session: &Session,
    student: &Decoder,
    sources: Sources<'_>,
    windows: &[Vec<u32>],
    settings: &mut Settings,
    steps: usize,
) -> anyhow::Result<Value> {
    let all = (MOST_TRIALS * steps) as u64;
    let mut task = session.ui.task("finding rates", all);
    let mut on_step = |trial: usize, done: usize| task.at((trial * steps + done) as u64, all);
    let found = find_rates(student, sources, windows, settings, steps, &mut on_step)?;
    task.finish();
    let best = found.best();
    session.ui.note(&table(&found));
    if best.loss >= found.untrained {
        session.ui.note("note: no rates that were tried lower the loss in so few steps");
    }
    settings.euclidean_lr = best.rates.euclidean;
    settings.riemannian_lr = best.rates.riemannian;
    let trials = found.trials.iter().map(|trial| {
        let Rates { euclidean, riemannian } = trial.rates;
        // A run that diverged has no loss.
        let loss = trial.loss.is_finite().then_some(trial.loss);
        json!({ "euclidean_lr": euclidean, "riemannian_lr": riemannian, "loss": loss })
    });
    Ok(json!({ "steps": steps, "untrained": found.untrained, "trials": trials.collect::<Vec<_>>() }))
}

/// Takes up the rates of a run that goes on; whether its folder tells them.
///
/// # Errors
/// When its settings cannot be read.
pub fn resumed(run_dir: &Path, settings: &mut Settings) -> anyhow::Result<bool> {
    let Some(earlier) = RunFolder::settings(run_dir)? else { return Ok(false) };
    settings.euclidean_lr = earlier.euclidean_lr;
    settings.riemannian_lr = earlier.riemannian_lr;
    Ok(true)
}

fn table(found: &FoundRates) -> String {
    let best = found.best();
    let rows = found.trials.iter().map(|trial| {
        vec![
            format!("{:.0e}", trial.rates.euclidean),
            format!("{:.0e}", trial.rates.riemannian),
            if trial.loss.is_finite() { format!("{:.4}", trial.loss) } else { "diverges".into() },
            if *trial == best { "taken".into() } else { String::new() },
        ]
    });
    let table = report::table(&["euclidean_lr", "riemannian_lr", "loss", ""], &rows.collect::<Vec<_>>());
    format!("rates, each tried for a few steps (loss before: {:.4}):\n{}", found.untrained, table.trim_end())
}
