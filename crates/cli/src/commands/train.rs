//! `shrink train`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use handlers::{Existing, FolderPlan, MlaSection, Model, Output};
use mla_core::{Decoder, WeightMap, WeightSource};
use serde_json::{Value, json};
use train::eval::{Pass, Windowing, perplexity};
use train::{Loss, Originals, Schedule, Settings, Sources, StepReport, Trainer, windows};

use crate::args::{self, SettingArgs, TrainArgs};
use crate::convert::{MAX_SHARD_BYTES, write_shown};
use crate::error::UserError;
use crate::report::count;
use crate::run_folder::RunFolder;
use crate::session::{Opened, Session, source_error};

/// Tokens by which two tokenizers are compared.
const COMPARED_TOKENS: usize = 10_000;

/// Trains a converted model and writes the result.
pub fn run(session: &Session, args: &TrainArgs) -> anyhow::Result<()> {
    // What can be refused is refused before anything is computed.
    let settings = settings(args)?;
    settings.check().map_err(train::TrainError::from)?;
    if args.validation_windows == 0 {
        let (flag, found) = ("--validation-windows", "0".to_owned());
        return Err(UserError::Flag { flag, found, expected: "at least 1".into() }.into());
    }
    let opened = session.open(&args.model)?;
    let Some(section) = opened.model.section().cloned() else {
        return Err(UserError::NotConverted { path: args.model.clone() }.into());
    };
    let existing = if args.force { Existing::Replace } else { Existing::Keep };
    let output = Output::prepare(&args.output, existing, opened.model.folder())?;
    let run_dir = args.run_dir.clone().unwrap_or_else(|| beside(&args.output));
    let found = match args.resume {
        true => newest(session, &run_dir, &settings)?,
        false => None,
    };
    let tokens = session.tokens(&opened.model, &args.data, &args.text_field)?;
    let validation = match args.validation.is_empty() {
        true => None,
        false => Some(session.tokens(&opened.model, &args.validation, &args.text_field)?),
    };
    let student = session.load(&opened.model)?;
    let windows = windows(&tokens, settings.max_length, &student)?;
    let objective = settings.objective();
    let donor = match objective.needs_teacher() || (objective.needs_originals() && args.teacher.is_some()) {
        true => Some(donor(session, args, &opened, &tokens)?),
        false => None,
    };
    let teacher = match (&donor, objective.needs_teacher()) {
        (Some(donor), true) => Some(session.load(&donor.model)?),
        _ => None,
    };
    let originals = match objective.needs_originals() {
        true => Some(originals(session, &opened, donor.as_ref(), &section)?),
        false => None,
    };
    let sources = Sources { teacher: teacher.as_ref(), originals: originals.as_ref() };
    let mut trainer = Trainer::new(student, sources, &windows, settings.clone())?;
    let resumed = found.as_ref().map(|snapshot| snapshot.step);
    if let Some(snapshot) = found {
        trainer.restore(snapshot)?;
    }
    let mut folder = RunFolder::open(&run_dir, &settings, resumed)?;
    note_sizes(session, &trainer);
    let measure = |decoder: &Decoder| validated(decoder, validation.as_deref(), args, &settings);
    let before = match resumed {
        None => measure(trainer.student())?,
        Some(_) => None,
    };
    if let Some(before) = before {
        folder.log(&json!({ "step": 0, "validation_perplexity": before }))?;
        session.ui.note(&format!("before: perplexity {before:.3}"));
    }
    let (mut task, begun, steps) =
        (session.ui.task("training", trainer.steps() as u64), Instant::now(), trainer.steps());
    let (first, mut last) = (trainer.done(), None);
    let mut tokens_read = 0;
    while trainer.done() < steps {
        let report = trainer.step()?;
        tokens_read += report.tokens;
        let is_last = report.step == steps;
        if report.step.is_multiple_of(settings.logging_steps) || is_last {
            let elapsed = begun.elapsed().as_secs_f64();
            let line = line(&report, elapsed, tokens_read);
            session.ui.note(&progress(&report, steps, elapsed / (report.step - first) as f64));
            folder.log(&line)?;
        }
        if report.step.is_multiple_of(settings.check_orthonormality_steps) || is_last {
            folder.log(&json!({ "step": report.step, "orthonormality": trainer.orthonormality() }))?;
        }
        if report.step.is_multiple_of(settings.save_steps) || is_last {
            folder.snapshots.save(&trainer.snapshot())?;
            if let Some(perplexity) = measure(trainer.student())? {
                session.ui.note(&format!("step {}: perplexity {perplexity:.3}", report.step));
                folder.log(&json!({ "step": report.step, "validation_perplexity": perplexity }))?;
                last = Some(perplexity);
            }
        }
        task.at(report.step as u64, steps as u64);
    }
    task.finish();
    let orthonormality = trainer.orthonormality();
    write(session, &opened, section, &trainer, &settings, output)?;
    let object = json!({
        "output": args.output.display().to_string(),
        "run": run_dir.display().to_string(),
        "loss": objective.name(),
        "steps": steps,
        "trainable": trainable(&trainer),
        "perplexity_before": before,
        "perplexity": last,
        "orthonormality": orthonormality,
    });
    let text = format!(
        "{}: {steps} steps of {}{}\nW_up is orthonormal to {orthonormality:.0e}; log and snapshots in {}\n",
        args.output.display(),
        objective.name(),
        match (before, last) {
            (Some(before), Some(last)) => format!(", perplexity {before:.3} -> {last:.3}"),
            (None, Some(last)) => format!(", perplexity {last:.3}"),
            _ => String::new(),
        },
        run_dir.display(),
    );
    session.print(&object, &text)
}

/// `OUT.run`.
fn beside(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".run");
    name.into()
}

/// The settings of the file, with the flags over them.
fn settings(args: &TrainArgs) -> anyhow::Result<Settings> {
    let mut settings = match &args.config {
        None => Settings::default(),
        Some(path) => {
            let bad = |reason: String| UserError::Settings { path: path.display().to_string(), reason };
            let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
            toml::from_str(&text).map_err(|e| bad(e.message().to_owned()))?
        }
    };
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

/// The snapshot to go on from; what was damaged is said.
fn newest(session: &Session, run_dir: &Path, settings: &Settings) -> anyhow::Result<Option<train::Snapshot>> {
    let (found, damaged) = RunFolder::snapshots(run_dir, settings).newest()?;
    for error in damaged {
        session.ui.note(&format!("note: {error}; taking the one before it"));
    }
    match &found {
        Some(snapshot) => session.ui.note(&format!("going on from step {}", snapshot.step)),
        None => session.ui.note("note: there is no snapshot yet; beginning anew"),
    }
    Ok(found)
}

/// The donor, which has to read the text as the model does.
fn donor(session: &Session, args: &TrainArgs, opened: &Opened, tokens: &[u32]) -> anyhow::Result<Opened> {
    let name = match &args.teacher {
        Some(name) => name.clone(),
        None => recorded_donor(opened).ok_or_else(|| UserError::NoDonor { path: args.model.clone() })?,
    };
    let donor = session.open(&name)?;
    let theirs = session.tokens(&donor.model, &args.data, &args.text_field)?;
    let compared = COMPARED_TOKENS.min(tokens.len().max(theirs.len()));
    match (0..compared).find(|&place| tokens.get(place) != theirs.get(place)) {
        Some(place) => Err(UserError::OtherTokenizer { teacher: name, place }.into()),
        None => Ok(donor),
    }
}

/// The donor that `shrink.json` names.
fn recorded_donor(opened: &Opened) -> Option<String> {
    let text = std::fs::read_to_string(opened.model.folder().join("shrink.json")).ok()?;
    let record: Value = serde_json::from_str(&text).ok()?;
    record["donor"]["name"].as_str().map(str::to_owned)
}

/// The original `W_k` and `W_v`: of the folder, or of the teacher that was named.
fn originals(
    session: &Session,
    opened: &Opened,
    donor: Option<&Opened>,
    section: &MlaSection,
) -> anyhow::Result<Originals> {
    let source: &Model = match (section.store_original_weights, donor) {
        (true, _) => &opened.model,
        (false, Some(donor)) => &donor.model,
        (false, None) => {
            return Err(UserError::NoOriginals { path: opened.model.folder().display().to_string() }.into());
        }
    };
    let latent: Vec<bool> = section.layers.iter().map(Option::is_some).collect();
    Originals::load(source, &latent, &session.device).map_err(source_error)
}

fn trainable(trainer: &Trainer<'_>) -> usize {
    trainer.factors().iter().map(train::Factor::size).sum()
}

fn note_sizes(session: &Session, trainer: &Trainer<'_>) {
    use burn::module::Module;
    let (trainable, total) = (trainable(trainer), trainer.student().num_params());
    session.ui.note(&format!(
        "{} of {} numbers train ({:.1}%), {} steps",
        count(trainable as u64),
        count(total as u64),
        100.0 * trainable as f64 / total as f64,
        trainer.steps()
    ));
}

/// Perplexity on the validation text, where there is one.
fn validated(
    decoder: &Decoder,
    tokens: Option<&[u32]>,
    args: &TrainArgs,
    settings: &Settings,
) -> anyhow::Result<Option<f64>> {
    let Some(tokens) = tokens else { return Ok(None) };
    let windowing = Windowing::Consecutive { length: settings.max_length };
    let limit = Some(args.validation_windows);
    Ok(Some(perplexity(decoder, tokens, windowing, limit, Pass::Full, &mut |_, _| {})?.perplexity))
}

/// A step's line of the log.
fn line(report: &StepReport, elapsed: f64, tokens: usize) -> Value {
    json!({
        "step": report.step,
        "loss": report.loss.total,
        "lm": report.loss.lm,
        "kl": report.loss.kl,
        "reconstruction": report.loss.reconstruction,
        "grad_norm": report.grad_norm,
        "euclidean_lr": report.rates.euclidean,
        "riemannian_lr": report.rates.riemannian,
        "elapsed_s": elapsed,
        "tokens_a_second": tokens as f64 / elapsed,
    })
}

/// A step for people.
fn progress(report: &StepReport, steps: usize, seconds_a_step: f64) -> String {
    let part =
        |name: &str, part: Option<f64>| part.map_or(String::new(), |part| format!("  {name} {part:.4}"));
    let left = seconds_a_step * (steps - report.step) as f64;
    format!(
        "step {}/{steps}  loss {:.4}  lm {:.4}{}{}  norm {:.2}  {:.0} tokens/s  {:.0} s left",
        report.step,
        report.loss.total,
        report.loss.lm,
        part("kl", report.loss.kl),
        part("reconstruction", report.loss.reconstruction),
        report.grad_norm,
        report.tokens as f64 / seconds_a_step,
        left,
    )
}

/// Writes the trained model: the folder it came from, with other numbers in the factors.
fn write(
    session: &Session,
    opened: &Opened,
    section: MlaSection,
    trainer: &Trainer<'_>,
    settings: &Settings,
    output: Output,
) -> anyhow::Result<()> {
    let mut factors = WeightMap::new(opened.model.config().clone());
    for (slot, matrix) in trainer.snapshot().factors {
        factors.insert(slot, matrix.transpose());
    }
    let folder = opened.model.folder();
    let mut extra = Vec::new();
    let record = std::fs::read_to_string(folder.join("shrink.json")).ok();
    let mut record: Value =
        record.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_else(|| json!({}));
    record["training"] = json!({ "settings": settings, "steps": trainer.done(), "model": opened.name() });
    extra.push(("shrink.json".to_owned(), format!("{record:#}\n").into_bytes()));
    if let Ok(card) = std::fs::read_to_string(folder.join("README.md")) {
        let trained = format!(
            "\nTrained by shrink {}: {} steps, loss {}.\n",
            env!("CARGO_PKG_VERSION"),
            trainer.done(),
            settings.objective().name()
        );
        extra.push(("README.md".to_owned(), (card + &trained).into_bytes()));
    }
    let plan = FolderPlan {
        donor: &opened.model,
        section,
        factors: &factors,
        dtype: None,
        extra,
        max_shard_bytes: MAX_SHARD_BYTES,
    };
    write_shown(session, &plan, output)?;
    Ok(())
}
