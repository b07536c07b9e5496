//! `shrink train`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use handlers::{Existing, FolderPlan, MlaSection, Output, read_companion};
use mla_core::{CacheDtype, WeightMap, WeightSource};
use serde_json::{Value, json};
use train::{Settings, Snapshot, Sources, StepReport, TrainError, Trainer, windows};

use crate::args::TrainArgs;
use crate::convert::{MAX_SHARD_BYTES, write_shown};
use crate::error::UserError;
use crate::footprint::Footprint;
use crate::record::{CARD, Measured, RECORD, Record, card};
use crate::report::count;
use crate::session::{Opened, Session};
use crate::training::{
    RunFolder, Validation, donor, donor_name, files, originals, rates, recorded_donor, settings, text,
};

/// Trains a converted model and writes the result.
pub fn run(session: &Session, args: &TrainArgs) -> anyhow::Result<()> {
    // What can be refused is refused before anything is computed.
    let (config, section) = session.describe(&args.model)?;
    let Some(section) = section else {
        return Err(UserError::NotConverted { path: args.model.clone() }.into());
    };
    let mut settings = settings(args, &config)?;
    check(args, &settings)?;
    let objective = settings.objective();
    let lacks_originals = objective.needs_originals() && !section.store_original_weights;
    if let Some(teacher) = args.teacher.as_deref().filter(|_| objective.needs_teacher() || lacks_originals) {
        session.describe(teacher)?;
    }
    let mut opened = session.open(&args.model)?;
    // Rounding has no gradient: what is cached in fewer bits is trained exact.
    let kept_in = opened.model.config().cache_dtype;
    opened.model.set_cache_dtype(CacheDtype::F32);
    let existing = if args.force { Existing::Replace } else { Existing::Keep };
    for name in [RECORD, CARD] {
        read_companion(opened.model.folder(), name)?;
    }
    let run_dir = run_dir(args)?;
    let inputs = inputs(args, &opened, &run_dir);
    let output = Output::prepare_beside(&args.output, existing, opened.model.folder(), &inputs)?;
    let found = match args.resume {
        true => newest(session, &run_dir, &settings)?,
        false => {
            RunFolder::check_is_new(&run_dir, &settings)?;
            None
        }
    };
    if objective.needs_teacher() {
        session.describe(&donor_name(args, &opened)?)?;
    }
    let tokens = text(session, args, &opened, &settings)?;
    let mut validation = Validation::open(session, args, &opened, &settings)?;
    if validation.is_some() && kept_in.bits().is_some() {
        session.ui.note(&format!(
            "note: perplexities here are of exact latents; {} keeps them in {}: shrink eval measures those",
            args.output.display(),
            kept_in.name()
        ));
    }
    let donor = match objective.needs_teacher() || (lacks_originals && args.teacher.is_some()) {
        true => Some(donor(session, args, &opened, &tokens)?),
        false => None,
    };
    let footprint = footprint(&opened, donor.as_ref(), &settings, tokens.len());
    footprint.check(session, "the training run", args.guard.overcommit)?;
    let student = session.load(&opened.model)?;
    let windows = windows(&tokens, settings.max_length, &student)?;
    if let (None, Some(teacher)) = (&donor, &args.teacher) {
        session.ui.note(&format!("note: the loss {} does not ask the teacher {teacher}", objective.name()));
    }
    let teacher = match (&donor, objective.needs_teacher()) {
        (Some(donor), true) => Some(session.load_beside(&donor.model, &student)?),
        _ => None,
    };
    let originals = match objective.needs_originals() {
        true => Some(originals(session, &opened, donor.as_ref(), &section)?),
        false => None,
    };
    let sources = Sources { teacher: teacher.as_ref(), originals: originals.as_ref() };
    let tried = match args.find_rates {
        None => None,
        Some(_) if args.resume && rates::resumed(&run_dir, &mut settings)? => None,
        Some(steps) => Some(rates::search(session, &student, sources, &windows, &mut settings, steps)?),
    };
    let mut trainer = Trainer::new(student, sources, &windows, settings.clone())?;
    if let Some(validation) = &validation {
        trainer.origin_mut().add_text("validation text", [validation.text()]);
    }
    // Stopped before its first snapshot, a run goes on from its beginning.
    let resumed = args.resume.then(|| found.as_ref().map_or(0, |snapshot| snapshot.step));
    if let Some(snapshot) = found {
        trainer.restore(snapshot)?;
    }
    let mut folder = RunFolder::open(&run_dir, &settings, resumed)?;
    if let Some(tried) = &tried {
        folder.log(json!({ "step": 0, "rates": tried }))?;
    }
    note_sizes(session, &trainer);
    if let Some(validation) = &mut validation {
        validation.remember(folder.validated());
        if validation.before().is_none() && trainer.done() == 0 {
            let before = validation.measure(trainer.student(), 0)?;
            folder.log(json!({ "step": 0, "validation_perplexity": before }))?;
            session.ui.note(&format!("before: perplexity {before:.3}"));
        }
    }
    let stopped = steps(session, &mut trainer, &settings, &mut folder, validation.as_mut())?;
    let (chosen, is_best) = chosen(session, &trainer, &folder, validation.as_ref());
    let orthonormality = trainer.orthonormality();
    let steps = trainer.done();
    let before = validation.as_ref().and_then(Validation::before);
    let after = validation.as_ref().and_then(|validation| validation.best()).filter(|_| is_best);
    let figures = before.zip(after.map(|(_, perplexity)| perplexity));
    write(session, &opened, section, &chosen, &settings, figures, output)?;
    let object = json!({
        "output": args.output.display().to_string(),
        "run": run_dir.display().to_string(),
        "loss": objective.name(),
        "steps": steps,
        "rates": { "euclidean_lr": settings.euclidean_lr, "riemannian_lr": settings.riemannian_lr, "tried": tried },
        "stopped_early": stopped,
        "written_step": chosen.step,
        "trainable": trainable(&trainer),
        "perplexity_before": before,
        "perplexity": after.map(|(_, perplexity)| perplexity),
        "orthonormality": orthonormality,
    });
    let text = format!(
        "{}: step {} of {steps}, {}{}\nW_up is orthonormal to {orthonormality:.0e}; log, curves and snapshots in {}\n",
        args.output.display(),
        chosen.step,
        objective.name(),
        match (before, after) {
            (Some(before), Some((_, after))) => format!(", perplexity {before:.3} -> {after:.3}"),
            (None, Some((_, after))) => format!(", perplexity {after:.3}"),
            _ => String::new(),
        },
        run_dir.display(),
    );
    session.print(&object, &text)
}

/// What no run could have.
fn check(args: &TrainArgs, settings: &Settings) -> anyhow::Result<()> {
    settings.check().map_err(TrainError::from)?;
    match settings.early_stopping_patience {
        Some(patience) if args.validation.is_empty() => Err(UserError::Flag {
            flag: "--early-stopping-patience",
            found: patience.to_string(),
            expected: "a text to measure on: --validation FILE".into(),
        }
        .into()),
        _ => Ok(()),
    }
}

/// What the run takes: the models, and what trains.
fn footprint(opened: &Opened, donor: Option<&Opened>, settings: &Settings, tokens: usize) -> Footprint {
    let (model, config) = (&opened.model, opened.model.config());
    let objective = settings.objective();
    let windows = tokens / settings.max_length.max(1);
    let mut footprint = Footprint::of(model).trained(config, settings, windows);
    if let (Some(donor), true) = (donor, objective.needs_teacher()) {
        footprint = footprint.beside(&donor.model, model);
    }
    if objective.needs_originals() {
        footprint = footprint.originals(config);
    }
    footprint
}

/// All steps that are left; whether they ended before their number.
fn steps(
    session: &Session,
    trainer: &mut Trainer<'_>,
    settings: &Settings,
    folder: &mut RunFolder,
    mut validation: Option<&mut Validation>,
) -> anyhow::Result<bool> {
    let (first, steps, begun) = (trainer.done(), trainer.steps(), Instant::now());
    let is_over = |validation: Option<&mut Validation>| validation.is_some_and(|found| found.is_exhausted());
    let mut task = session.ui.task("training", steps as u64);
    let mut tokens_read = 0;
    while trainer.done() < steps && !is_over(validation.as_deref_mut()) {
        let report = match trainer.step() {
            Ok(report) => report,
            Err(error) => {
                return Err(match folder.snapshots.newest() {
                    Ok((Some(last), _)) => {
                        let snapshot = folder.snapshots.path(last.step);
                        UserError::Diverged { error, snapshot }.into()
                    }
                    _ => error.into(),
                });
            }
        };
        tokens_read += report.tokens;
        let is_last = report.step == steps;
        let is_time = |every: usize| report.step.is_multiple_of(every) || is_last;
        if is_time(settings.logging_steps) {
            let elapsed = begun.elapsed().as_secs_f64();
            session.ui.note(&progress(&report, steps, elapsed / (report.step - first) as f64));
            folder.log(line(&report, elapsed, tokens_read))?;
        }
        if is_time(settings.check_orthonormality_steps) {
            folder.log(json!({ "step": report.step, "orthonormality": trainer.orthonormality() }))?;
        }
        if is_time(settings.save_steps) {
            keep(session, trainer, folder, validation.as_deref_mut())?;
        }
        task.at(report.step as u64, steps as u64);
    }
    task.finish();
    let stopped = trainer.done() < steps;
    if stopped {
        session.ui.note(&format!("stopped at step {}: the validation text has it no better", trainer.done()));
    }
    Ok(stopped)
}

/// Measures, draws and saves. The log comes first: a run that is stopped in between drops what it says of this step, and does
/// the step again.
fn keep(
    session: &Session,
    trainer: &Trainer<'_>,
    folder: &mut RunFolder,
    validation: Option<&mut Validation>,
) -> anyhow::Result<()> {
    let (snapshot, step) = (trainer.snapshot(), trainer.done());
    if let Some(validation) = validation {
        let perplexity = validation.measure(trainer.student(), step)?;
        session.ui.note(&format!("step {step}: perplexity {perplexity:.3}"));
        folder.log(json!({ "step": step, "validation_perplexity": perplexity }))?;
        if validation.best().is_some_and(|(best, _)| best == step) {
            folder.snapshots.save_best(&snapshot)?;
        }
    }
    // The log is on the disk before the snapshot is, which stands for all that it says.
    folder.sync()?;
    folder.snapshots.save(&snapshot)?;
    Ok(())
}

/// The snapshot to write: the best on the validation text, else the last; and whether it is the best.
fn chosen(
    session: &Session,
    trainer: &Trainer<'_>,
    folder: &RunFolder,
    validation: Option<&Validation>,
) -> (Snapshot, bool) {
    let last = trainer.snapshot();
    let Some((step, perplexity)) = validation.and_then(Validation::best) else { return (last, false) };
    if let Some(before) = validation.and_then(Validation::before).filter(|before| *before <= perplexity) {
        session.ui.note(&format!(
            "note: training has not helped: perplexity {before:.3} before, {perplexity:.3} at its best; try other \
             learning rates"
        ));
    }
    if step == last.step {
        return (last, true);
    }
    match folder.snapshots.best() {
        Ok(best) if best.step == step => (best, true),
        other => {
            let reason = other.map_or_else(
                |error| error.to_string(),
                |best| format!("the best kept is of step {}", best.step),
            );
            session.ui.note(&format!("note: {reason}; writing the last step, not the best, {step}"));
            (last, false)
        }
    }
}

/// The run's folder: `OUT.run` unless another was named, and not a part of OUT, which may be replaced.
fn run_dir(args: &TrainArgs) -> anyhow::Result<PathBuf> {
    // By its components a path has no slash at its end.
    let output: PathBuf = args.output.components().collect();
    let run_dir = args.run_dir.clone().unwrap_or_else(|| {
        let mut name = output.clone().into_os_string();
        name.push(".run");
        name.into()
    });
    let absolute =
        |path: &Path| std::path::absolute(path).with_context(|| format!("cannot resolve {}", path.display()));
    if absolute(&run_dir)?.starts_with(absolute(&output)?) {
        let (run_dir, output) = (run_dir.display().to_string(), output.display().to_string());
        return Err(UserError::RunInOutput { run_dir, output }.into());
    }
    Ok(run_dir)
}

/// What the run reads and keeps, and OUT must not take away: the donor that the model names is one, asked or not.
fn inputs(args: &TrainArgs, opened: &Opened, run_dir: &Path) -> Vec<PathBuf> {
    let texts = files(args).chain(args.validation.iter().cloned()).chain(args.config.clone());
    let teacher = args.teacher.clone().or_else(|| recorded_donor(opened)).map(PathBuf::from);
    texts.chain(teacher).chain([run_dir.to_owned()]).collect()
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

/// Writes the trained model: the folder it came from, with other numbers in the factors. `figures` are the perplexities on the
/// validation text before training and of what is written.
fn write(
    session: &Session,
    opened: &Opened,
    section: MlaSection,
    trained: &Snapshot,
    settings: &Settings,
    figures: Option<(f64, f64)>,
    output: Output,
) -> anyhow::Result<()> {
    let mut factors = WeightMap::new(opened.model.config().clone());
    for (slot, matrix) in &trained.factors {
        factors.insert(*slot, matrix.transpose());
    }
    let folder = opened.model.folder();
    let mut record = Record::read(folder)?.unwrap_or_default().of_other_weights();
    record.training = Some(json!({
        "settings": settings,
        "steps": trained.step,
        "model": opened.name(),
        "validation": figures.map(|(before, after)| json!({ "perplexity_before": before, "perplexity": after })),
    }));
    let trained =
        ("trained".to_owned(), format!("{} steps, loss {}", trained.step, settings.objective().name()));
    let measured: Vec<Measured> = [trained]
        .into_iter()
        .chain(figures.map(|(before, after)| {
            (
                "perplexity on the validation text".to_owned(),
                format!("{after:.3} ({before:.3} before training)"),
            )
        }))
        .collect();
    let card = card(&record, opened.model.config(), folder, &measured)?;
    let extra = vec![(RECORD.to_owned(), record.bytes()), (CARD.to_owned(), card.into_bytes())];
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
