//! The settings of a run: a file's, with the flags over them.

use std::path::Path;

use mla_core::DecoderConfig;
use train::{Loss, Schedule, Settings, default_rates};

use crate::args::{self, SettingArgs, TrainArgs};
use crate::error::UserError;

/// The settings of a file, and what it names of them.
///
/// # Errors
/// When it cannot be read, or has what is no setting.
pub(super) fn from_file(path: &Path) -> Result<(Settings, toml::Table), UserError> {
    let bad = |reason: String| UserError::Settings { path: path.display().to_string(), reason };
    let refused = |e: toml::de::Error| bad(e.message().to_owned());
    let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
    Ok((toml::from_str(&text).map_err(refused)?, text.parse().map_err(refused)?))
}

/// The settings of the file, with the flags over them; rates that neither names are those for a model of this graph.
pub fn settings(args: &TrainArgs, config: &DecoderConfig) -> anyhow::Result<Settings> {
    let (mut settings, file) = match &args.config {
        None => (Settings::default(), toml::Table::new()),
        Some(path) => from_file(path)?,
    };
    let rates = default_rates(config);
    for (setting, name, rate) in [
        (&mut settings.euclidean_lr, "euclidean_lr", rates.euclidean),
        (&mut settings.riemannian_lr, "riemannian_lr", rates.riemannian),
    ] {
        if !file.contains_key(name) {
            *setting = rate;
        }
    }
    let SettingArgs { loss, schedule, .. } = &args.settings;
    if let Some(loss) = loss {
        settings.loss = match loss {
            args::Loss::Lm => Loss::Lm,
            args::Loss::Kl => Loss::Kl,
            args::Loss::Distillation => Loss::Distillation,
            args::Loss::Reconstruction => Loss::Reconstruction,
        };
    }
    if let Some(schedule) = schedule {
        settings.schedule = match schedule {
            args::Schedule::Constant => Schedule::Constant,
            args::Schedule::Linear => Schedule::Linear,
            args::Schedule::Cosine => Schedule::Cosine,
        };
    }
    let given = &args.settings;
    settings.max_steps = given.max_steps.or(settings.max_steps);
    settings.early_stopping_patience = given.early_stopping_patience.or(settings.early_stopping_patience);
    settings.seed = given.seed.unwrap_or(settings.seed);
    for (setting, given) in [
        (&mut settings.euclidean_lr, given.euclidean_lr),
        (&mut settings.riemannian_lr, given.riemannian_lr),
        (&mut settings.max_grad_norm, given.max_grad_norm),
        (&mut settings.weight_decay, given.weight_decay),
        (&mut settings.temperature, given.temperature),
        (&mut settings.distillation_alpha, given.distillation_alpha),
        (&mut settings.reconstruction_alpha, given.reconstruction_alpha),
    ] {
        *setting = given.unwrap_or(*setting);
    }
    for (setting, given) in [
        (&mut settings.num_epochs, given.num_epochs),
        (&mut settings.batch_size, given.batch_size),
        (&mut settings.max_length, given.max_length),
        (&mut settings.gradient_accumulation_steps, given.gradient_accumulation_steps),
        (&mut settings.warmup_steps, given.warmup_steps),
        (&mut settings.logging_steps, given.logging_steps),
        (&mut settings.save_steps, given.save_steps),
        (&mut settings.save_total_limit, given.save_total_limit),
        (&mut settings.check_orthonormality_steps, given.check_orthonormality_steps),
    ] {
        *setting = given.unwrap_or(*setting);
    }
    Ok(settings)
}
