//! `shrink compare`: methods, metrics and ranks side by side on one model, and nothing written.

use calib::{Plan, Scratch};
use handlers::Model;
use mla_core::{CacheDtype, Decoder, DecoderConfig, Patch, WeightSource};
use serde_json::{Value, json};
use train::eval::{Pass, Windowing, perplexity};

use crate::args::{CompareArgs, Objective};
use crate::calibration::{Calibration, Mixture};
use crate::footprint::Footprint;
use crate::kept::Store;
use crate::report::table;
use crate::session::{Session, source_error};
use crate::{convert, forecast, plans};

/// Text to measure on.
struct Text {
    name: String,
    tokens: Vec<u32>,
    donor: f64,
}

/// Fits every plan on one set of statistics and measures each on the texts.
pub fn run(session: &Session, args: &CompareArgs) -> anyhow::Result<()> {
    plans::check_compared(args)?;
    for dtype in &args.cache_dtype {
        session.check_cache(dtype.dtype(), false)?;
    }
    let calibrated = !args.calibration.no_calibration;
    let fisher = match args.objective.as_slice() {
        [] => calibrated,
        asked => asked.contains(&Objective::Fisher),
    };
    let options = plans::options(&args.statistics, fisher, args.seed)?;
    let scratch_bytes = plans::scratch_bytes(args.scratch_memory);
    let scratch = Scratch::new(scratch_bytes, std::env::temp_dir());
    let donor = session.open(&args.model)?;
    let config = donor.model.config();
    let plans = every_plan(args, calibrated, config)?;
    let mixture = Mixture::of(session, &args.calibration, &donor.model, args.guard.overcommit)?;
    if !args.guard.overcommit {
        let (text, folder) = (mixture.as_ref(), std::env::temp_dir());
        forecast::comparison(&donor.model, &plans, &options, text, scratch_bytes, &folder).check()?;
    }
    let length = args.max_length.min(config.max_positions);
    let footprint = Footprint::of(&donor.model).windows(config, 1, length);
    footprint.check(session, "the comparison", args.guard.overcommit)?;
    let windowing = Windowing::Consecutive { length: args.max_length };
    let measure = |decoder: &Decoder, tokens: &[u32]| {
        perplexity(decoder, tokens, windowing, Some(args.windows), Pass::Full, &mut |_, _| {})
    };
    let decoder = session.load(&donor.model)?;
    let mut texts = Vec::new();
    for path in &args.data {
        let (files, field) = (std::slice::from_ref(path), &args.calibration.text_field);
        let tokens = session.tokens(&donor.model, files, field, Some(windowing.reach(args.windows)))?;
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        texts.push(Text { name, donor: measure(&decoder, &tokens)?.perplexity, tokens });
    }
    drop(decoder);
    let store = Store::new(args.statistics.keep);
    let calibration = match &mixture {
        Some(mixture) => Some(mixture.load(session, &args.calibration, &donor, &store, args.seed)?),
        None => None,
    };
    let device = &session.device;
    let text = calibration.as_ref().map(Calibration::text);
    let statistics = store.statistics(session, &donor, &plans, text, &options, &scratch)?;
    let select = text.filter(|_| args.measure_kl).map_or(&[][..], |text| text.select);
    let mut task = session.ui.task("comparing", plans.len() as u64);
    let mut lines = Vec::with_capacity(plans.len());
    for (done, &plan) in plans.iter().enumerate() {
        let found = calib::choose(&donor.model, &statistics, &[plan], select, device, &mut ())?;
        let factors = match text {
            Some(text) if args.sequential => {
                let (model, sink) = (&donor.model, options.sink);
                calib::method::refit(model, &found.factors, text.fit, sink, device, &scratch, &mut ())?
            }
            _ => found.factors,
        };
        let decoder = load(session, &factors, &donor.model)?;
        let measured: Vec<f64> = texts
            .iter()
            .map(|text| Ok::<_, anyhow::Error>(measure(&decoder, &text.tokens)?.perplexity))
            .collect::<Result<_, _>>()?;
        let trial = &found.trials[0];
        session.ui.note(&progress(&plan, trial.compression_ratio, &texts, &measured));
        lines.push(Line {
            plan,
            objective: convert::objective(&plan, calibrated),
            ratio: trial.compression_ratio,
            cache_ratio: trial.cache_ratio,
            cache_numbers: factors.config().cached_numbers_total(),
            discarded: trial.discarded,
            kl: trial.kl,
            decode_cost: trial.decode_cost,
            perplexity: measured,
        });
        task.at(done as u64 + 1, plans.len() as u64);
    }
    task.finish();
    session.print(&object(args, config, &texts, &lines), &table_of(&texts, &lines))
}

fn load(session: &Session, factors: &calib::Factors, donor: &Model) -> anyhow::Result<Decoder> {
    Decoder::load(&factors.over(donor), &session.device).map_err(source_error)
}

/// A plan's result as soon as it is there: a comparison can take long.
fn progress(plan: &Plan, ratio: f64, texts: &[Text], measured: &[f64]) -> String {
    let one = |(text, perplexity): (&Text, &f64)| format!("{} {perplexity:.3}", text.name);
    let measured: Vec<String> = texts.iter().zip(measured).map(one).collect();
    format!("{ratio:.2}x {}: {}", plan.name(), measured.join(", "))
}

/// Every combination that was asked for and that the model can take.
fn every_plan(args: &CompareArgs, calibrated: bool, config: &DecoderConfig) -> anyhow::Result<Vec<Plan>> {
    let mut all: Vec<Plan> = Vec::new();
    for &ratio in &args.compression_ratio {
        let width = plans::width(ratio, None);
        for plan in plans::combinations(args, width, calibrated, config)? {
            plan.check(config)?;
            if !all.contains(&plan) {
                all.push(plan);
            }
        }
    }
    Ok(all)
}

/// What became of one plan.
struct Line {
    plan: Plan,
    objective: &'static str,
    ratio: f64,
    cache_numbers: usize,
    cache_ratio: f64,
    discarded: f64,
    kl: Option<f64>,
    decode_cost: u64,
    perplexity: Vec<f64>,
}

fn object(args: &CompareArgs, config: &DecoderConfig, texts: &[Text], lines: &[Line]) -> Value {
    let line = |line: &Line| {
        json!({
            "name": line.plan.name(),
            "method": line.plan.method.name(),
            "title": line.plan.method.title(),
            "objective": line.objective,
            "ranks": line.plan.ranks.name(),
            "compression_ratio": line.ratio,
            "cached_numbers_a_token": line.cache_numbers,
            "cache_dtype": line.plan.cache.name(),
            "cache_ratio": line.cache_ratio,
            "discarded": line.discarded,
            "kl": line.kl,
            "decode_multiply_adds": line.decode_cost,
            "perplexity": line.perplexity,
        })
    };
    json!({
        "model": args.model,
        "donor_cached_numbers_a_token": config.cached_numbers_total(),
        "max_length": args.max_length,
        "windows": args.windows,
        "seed": args.seed,
        "sequential": args.sequential,
        "texts": texts.iter().map(|text| json!({ "name": text.name, "donor_perplexity": text.donor })).collect::<Vec<_>>(),
        "plans": lines.iter().map(line).collect::<Vec<_>>(),
    })
}

/// The plan, with the objective as it came out, and the type where it is not what is computed in.
fn name(line: &Line) -> String {
    let name = format!("{} {} {}", line.plan.method.title(), line.objective, line.plan.ranks.name());
    match line.plan.cache {
        CacheDtype::F32 => name,
        dtype => format!("{name} {}", dtype.name()),
    }
}

fn table_of(texts: &[Text], lines: &[Line]) -> String {
    let mut titles = vec!["cache".to_owned(), "method, metric, ranks".into(), "KL to donor".into()];
    titles.extend(texts.iter().flat_map(|text| [text.name.clone(), "/ donor".into()]));
    let row = |line: &Line| {
        let mut row = vec![
            format!("{:.2}x", line.cache_ratio),
            name(line),
            line.kl.map_or("-".into(), |kl| format!("{kl:.4}")),
        ];
        for (text, perplexity) in texts.iter().zip(&line.perplexity) {
            row.push(format!("{perplexity:.3}"));
            row.push(format!("{:.4}", perplexity / text.donor));
        }
        row
    };
    let mut donor = vec!["1.00x".to_owned(), "donor".into(), "0".into()];
    donor.extend(texts.iter().flat_map(|text| [format!("{:.3}", text.donor), "1".into()]));
    let rows: Vec<_> = std::iter::once(donor).chain(lines.iter().map(row)).collect();
    let titles: Vec<&str> = titles.iter().map(String::as_str).collect();
    table(&titles, &rows)
}
