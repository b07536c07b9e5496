//! What a converted folder says of itself: `shrink.json` for programs, `README.md` for people.

mod card;
mod file;
mod reported;

pub use card::{CARD, Measured, card};
pub use file::{Donor, RECORD, Record};
pub use reported::Reported;

use calib::{Conversion, Goal, LayerReport, Objective, Trial, Width};
use mla_core::{CacheDtype, DecoderConfig, Patch};
use serde_json::{Value, json};
use train::eval::TokenBytes;

use crate::calibration::Calibration;
use crate::convert::{Request, objective};
use crate::report;
use crate::session::Opened;

/// `shrink.json`: where the model came from and what was done to it.
///
/// # Errors
/// When the donor's weight files cannot be read.
pub fn record(
    donor: &Opened,
    request: &Request,
    calibration: Option<&Calibration>,
    conversion: &Conversion,
) -> anyhow::Result<Record> {
    let plan = &conversion.plan;
    let objective = objective(plan, calibration.is_some());
    let text = calibration.map(|c| {
        json!({
            "source": c.source,
            "text_sha256": c.text_sha256(),
            "samples": c.fit.len(),
            "length": c.fit.iter().map(Vec::len).max(),
            "tokens": conversion.tokens,
            "selection_tokens": conversion.selection_tokens,
            "kinds": c.kinds.iter().map(|kind| json!({
                "name": kind.name,
                "samples": kind.counts.fit,
                "text_sha256": kind.text_sha256,
            })).collect::<Vec<_>>(),
        })
    });
    let asked = match (request.goal, plan.width) {
        (Some(Goal::Target(ratio)), _) => json!({ "target": ratio }),
        (Some(Goal::Divergence(most)), _) => json!({ "max_ppl_increase": most.exp_m1() }),
        (None, Width::Ratio(ratio)) => json!({ "compression_ratio": ratio }),
        (None, Width::Fixed(d_latent)) => json!({ "d_latent": d_latent }),
    };
    Ok(Record {
        shrink_version: env!("CARGO_PKG_VERSION").into(),
        donor: Some(Donor { name: donor.name(), weights_sha256: donor.weights_sha256()?.into() }),
        method: Some(plan.method.name().into()),
        parameters: json!(plan.method),
        objective: Some(objective.into()),
        ranks: Some(plan.ranks.name().into()),
        statistics: json!({
            "seed": request.options.seed,
            "sink_weight": request.options.sink,
            "fisher_windows": request.options.fisher_windows,
            "fisher_draws": request.options.fisher_draws,
        }),
        asked,
        compression_ratio: Some(conversion.factors.config().compression_ratio()),
        cache_dtype: Some(plan.cache.name().into()),
        cache_ratio: Some(calib::cache_ratio(conversion.factors.config())),
        dtype: request.dtype.map(|dtype| dtype.name().into()),
        calibration: json!(text),
        sequential: conversion.is_corrected(),
        trials: trials(conversion),
        reported: calibration.and_then(|text| Reported::of(conversion, text)),
        layers: Some(conversion.layers.clone()),
        training: None,
        other: serde_json::Map::new(),
    })
}

/// The plans that were tried, for `--json` and the record.
pub fn trials(conversion: &Conversion) -> Value {
    let trial = |(place, trial): (usize, &Trial)| {
        json!({
            "method": trial.plan.method.name(),
            "name": trial.plan.name(),
            "parameters": trial.plan.method,
            "objective": trial.plan.objective.name(),
            "ranks": trial.plan.ranks.name(),
            "compression_ratio": trial.compression_ratio,
            "cache_dtype": trial.plan.cache.name(),
            "cache_ratio": trial.cache_ratio,
            "discarded": trial.discarded,
            "predicted": trial.predicted,
            "kl": trial.kl,
            "decode_multiply_adds": trial.decode_cost,
            "chosen": place == conversion.chosen,
        })
    };
    conversion.trials.iter().enumerate().map(trial).collect()
}

/// The KL to the donor that the Fisher information foretells, to second order: half the loss.
fn foretold(trial: &Trial) -> Option<f64> {
    (trial.plan.objective == Objective::Fisher).then_some(trial.predicted / 2.0)
}

/// The table that a choice was made from.
pub fn trials_table(conversion: &Conversion) -> String {
    let row = |(place, trial): (usize, &Trial)| {
        vec![
            format!("{}{}", if place == conversion.chosen { "* " } else { "  " }, trial.plan.name()),
            format!("{:.2}x", trial.compression_ratio),
            format!("{:.2}x", trial.cache_ratio),
            foretold(trial).map_or("-".into(), |kl| format!("{kl:.4}")),
            trial.kl.map_or("-".into(), |kl| format!("{kl:.4}")),
            format!("{:.1} M", trial.decode_cost as f64 / 1e6),
        ]
    };
    let rows: Vec<_> = conversion.trials.iter().enumerate().map(row).collect();
    report::table(
        &["  method, metric, ranks", "numbers", "cache", "foretold", "KL to donor", "decode at 4096"],
        &rows,
    )
}

/// What the donor and the conversion cache a token, and in what, as people read it.
pub fn token_bytes(config: &DecoderConfig) -> (TokenBytes, String) {
    match config.cache_dtype {
        CacheDtype::F32 => (TokenBytes::plain(config, 2), "16 bit".into()),
        dtype => (TokenBytes::allocated(config, 2), format!("bf16 -> {}", dtype.name())),
    }
}

/// Mean share of the loss that was prevented in keys and in values, over the layers that were converted.
pub fn energy(layers: &[LayerReport]) -> [f64; 2] {
    let mean = |pick: fn(&LayerReport) -> Option<f64>| {
        let kept: Vec<f64> = layers.iter().filter_map(pick).collect();
        kept.iter().sum::<f64>() / kept.len().max(1) as f64
    };
    [mean(LayerReport::key_energy), mean(LayerReport::value_energy)]
}

/// What a conversion measured, for its card.
pub fn measured(conversion: &Conversion, reported: Option<&Reported>) -> Vec<Measured> {
    let kl = reported.map_or_else(Vec::new, Reported::rows);
    let [k, v] = energy(&conversion.layers).map(|part| 100.0 * part);
    let energy = ("energy kept, mean of layers".to_owned(), format!("K {k:.2}%, V {v:.2}%"));
    kl.into_iter().chain([energy]).collect()
}
