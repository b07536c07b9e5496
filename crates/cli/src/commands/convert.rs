//! `shrink convert`.

use std::path::PathBuf;

use calib::{Conversion, Goal, Scratch, Width};
use handlers::{Existing, Output, Written, beyond_deepseek};
use mla_core::{DecoderConfig, Patch, WeightSource};
use serde_json::json;
use train::eval::cache_sizes;

use crate::args::{CacheDtype, ConvertArgs, Method, Objective};
use crate::calibration::{Calibration, Mixture};
use crate::error::UserError;
use crate::kept::Store;
use crate::record::Reported;
use crate::session::Session;
use crate::{calibration, convert, forecast, plans, record, report};

/// Converts a donor and writes the result.
pub fn run(session: &Session, args: &ConvertArgs) -> anyhow::Result<()> {
    // What can be refused is refused before anything is downloaded or computed.
    if args.output.exists() && !args.force && !args.dry_run {
        return Err(handlers::Error::OutputExists { path: args.output.clone() }.into());
    }
    let goal = plans::goal(args)?;
    let width = match goal {
        // What the methods start from; the planner finds its own.
        Some(_) => Width::Ratio(2.0),
        None => plans::width(args.compression_ratio, args.d_latent),
    };
    let cache = args.cache_dtype.map(CacheDtype::dtype);
    let dense = args.method.method == Method::Xkv && args.method.keep_early_layers_original;
    cache.map_or(Ok(()), |dtype| session.check_cache(dtype, dense))?;
    plans::check_flags(&args.method)?;
    let fisher = args.method.objective.unwrap_or(match args.calibration.no_calibration {
        true => Objective::Mse,
        false => Objective::Fisher,
    });
    let options = plans::options(&args.method.statistics, fisher == Objective::Fisher, args.seed)?;
    let scratch_bytes = plans::scratch_bytes(args.scratch_memory);
    let donor = session.open(&args.model)?;
    let config = donor.model.config();
    let mut request = convert::Request {
        plans: plans::plans(
            &args.method,
            width,
            cache.unwrap_or_default(),
            !args.calibration.no_calibration,
            config,
        )?,
        goal,
        dtypes: match cache {
            Some(dtype) => vec![dtype],
            None => {
                plans::PLANNED.into_iter().filter(|dtype| dtype.runs_on(&session.device, dense)).collect()
            }
        },
        options,
        sequential: args.sequential,
        store_original_weights: args.store_original_weights,
        dtype: args.dtype.map(crate::args::StoreDtype::dtype),
    };
    if goal.is_some() && args.method.ranks.is_none() {
        // Uniform ranks have not been the better ones yet, and a planner fits each plan many times.
        request.plans.retain(|plan| plan.ranks == calib::Ranks::Global);
    }
    convert::check(&request, &donor.model)?;
    if request.plans.iter().any(|plan| plans::is_series(&plan.method))
        && let Some(reason) = beyond_deepseek(config)
    {
        session.ui.note(&format!("note: shrink export --format deepseek will refuse this model: {reason}"));
    }
    if args.sequential && args.method.method == Method::Xkv {
        return Err(UserError::Flag {
            flag: "--sequential",
            found: "given with --method xkv".into(),
            expected: "another method: xkv's layers share the decoder that would be fitted to each".into(),
        }
        .into());
    }
    if args.sequential && args.method.method == Method::Deepseek {
        return Err(UserError::Flag {
            flag: "--sequential",
            found: "given with --method deepseek".into(),
            expected: "another method: its keys stand for no keys of the donor's that could be fitted to"
                .into(),
        }
        .into());
    }
    if args.method.method == Method::Auto {
        session.ui.note(&format!(
            "attention: {} ({} kv heads for {} query heads)",
            config.sharing(),
            config.n_kv_heads,
            config.n_heads
        ));
    }
    if args.method.method == Method::Auto
        && plans::cascade_keeps_more(config, plans::width(args.compression_ratio, args.d_latent))
        && drop_cascade(&mut request)
    {
        session.ui.note(
            "note: cascade is left out: what layers with a window cache would have to be kept for layers without one",
        );
    }
    let mixture = Mixture::of(session, &args.calibration, &donor.model, args.overcommit)?;
    let forecast_of = |request: &convert::Request| {
        let text = mixture.as_ref();
        forecast::forecast(session, &donor.model, request, text, scratch_bytes, beside(&args.output))
    };
    let mut forecast = forecast_of(&request);
    if args.method.method == Method::Auto
        && !args.overcommit
        && forecast.check().is_err()
        && drop_cascade(&mut request)
    {
        session.ui.note(
            "note: cascade is left out: its statistics do not fit (--dry-run --method cascade shows them)",
        );
        forecast = forecast_of(&request);
    }
    if args.dry_run {
        session.print(&forecast.object(), &forecast.text())?;
        return Ok(forecast.check()?);
    }
    if !args.overcommit {
        forecast.check()?;
    }
    let existing = if args.force { Existing::Replace } else { Existing::Keep };
    let texts = args.calibration.calibration.iter().filter(|source| calibration::is_file(source));
    let texts: Vec<PathBuf> = texts.map(PathBuf::from).collect();
    let output = Output::prepare_beside(&args.output, existing, donor.model.folder(), &texts)?;
    let store = Store::new(args.method.statistics.keep);
    let calibration = match &mixture {
        Some(mixture) => Some(mixture.load(session, &args.calibration, &donor, &store, args.seed)?),
        None => None,
    };
    let scratch = Scratch::new(scratch_bytes, beside(&args.output));
    let (conversion, separate) = match (args.method.method, &calibration) {
        (Method::Xkv, Some(text)) if goal.is_none() => {
            convert::xkv_and_separate(session, &donor, &request, text, &store, &scratch)?
        }
        _ => (convert::factors(session, &donor, &request, calibration.as_ref(), &store, &scratch)?, None),
    };
    if goal.is_none() {
        note_rounding(session, width, convert::ratio(&conversion));
    }
    if conversion.trials.len() > 1 {
        session.ui.note(&format!("\n{}", record::trials_table(&conversion)));
    }
    if let Some(kl) = conversion.corrected_kl {
        let verdict = if conversion.is_corrected() { "kept" } else { "not kept" };
        session.ui.note(&format!("sequential correction: KL {kl:.4}, {verdict}"));
    }
    if let (Some(xkv), Some(separate)) = (conversion.selection_kl(), separate) {
        session.ui.note(&format!(
            "note: xkv shares W_up among layers, which saves weights and no cache; at the same cache bytes separate has KL \
             {separate:.4} to the donor, xkv {xkv:.4}"
        ));
    }
    if let (Some(Goal::Divergence(most)), Some(reported)) =
        (goal, calibration.as_ref().and_then(|text| Reported::of(&conversion, text)))
        && reported.kl > most
    {
        session.ui.note(&format!(
            "note: {most:.4} nats a token were asked for; on text by which nothing was chosen it is {}",
            reported.kl_text()
        ));
    }
    let written = convert::write(session, &donor, &request, calibration.as_ref(), &conversion, output)?;
    report(session, args, calibration.as_ref(), &conversion, &written)
}

/// Leaves `cascade` out where there is something else.
fn drop_cascade(request: &mut convert::Request) -> bool {
    let is_cascade = |plan: &calib::Plan| matches!(plan.method, calib::Method::Cascade(_));
    let others = request.plans.iter().filter(|plan| !is_cascade(plan)).count();
    let drop = others > 0 && others < request.plans.len();
    if drop {
        request.plans.retain(|plan| !is_cascade(plan));
    }
    drop
}

/// The folder that holds OUT.
fn beside(output: &std::path::Path) -> &std::path::Path {
    match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => std::path::Path::new("."),
    }
}

fn report(
    session: &Session,
    args: &ConvertArgs,
    calibration: Option<&Calibration>,
    conversion: &Conversion,
    written: &Written,
) -> anyhow::Result<()> {
    let config = conversion.factors.config();
    let [kept_k, kept_v] = record::energy(&conversion.layers);
    let (a_token, dtype) = record::token_bytes(config);
    let size = cache_sizes(&a_token, &[4096], 1)[0];
    let objective = convert::objective(&conversion.plan, calibration.is_some());
    let reported = calibration.and_then(|text| Reported::of(conversion, text));
    let object = json!({
        "output": args.output.display().to_string(),
        "method": conversion.plan.method.name(),
        "objective": objective,
        "ranks": conversion.plan.ranks.name(),
        "layers": config.n_layers(),
        "d_kv": config.d_kv(),
        "latent_numbers": (0..config.n_layers()).map(|layer| config.cached_numbers(layer)).collect::<Vec<_>>(),
        "compression_ratio": config.compression_ratio(),
        "cache_dtype": config.cache_dtype.name(),
        "cache_ratio": calib::cache_ratio(config),
        "calibration_tokens": conversion.tokens,
        "selection_tokens": conversion.selection_tokens,
        "selection_kl": conversion.selection_kl(),
        "kl": reported.as_ref().map(|reported| reported.kl),
        "reported": reported,
        "sequential": conversion.is_corrected(),
        "corrected_kl": conversion.corrected_kl,
        "trials": record::trials(conversion),
        "energy_kept_k": kept_k,
        "energy_kept_v": kept_v,
        "weight_bytes": written.weight_bytes,
        "tensors": written.tensors,
    });
    let measured = reported.map_or_else(String::new, |reported| reported.text());
    let text = format!(
        "{out}: {method}, {objective}, {ranks} ranks\n\
         {n} layers, {widths}, cache {ratio:.2}x smaller\n\
         energy kept: K {k:.2}%, V {v:.2}% (mean of layers)\n{measured}\
         cache of 4096 tokens, {dtype}: {theirs} -> {ours}\n",
        out = args.output.display(),
        method = conversion.plan.method.name(),
        ranks = conversion.plan.ranks.name(),
        n = config.n_layers(),
        widths = widths(config),
        ratio = calib::cache_ratio(config),
        k = 100.0 * kept_k,
        v = 100.0 * kept_v,
        theirs = report::bytes(size.donor_bytes),
        ours = report::bytes(size.model_bytes),
    );
    session.print(&object, &text)
}

/// `K and V of 192 + 192 -> 48 to 96 latent numbers`.
fn widths(config: &DecoderConfig) -> String {
    let numbers = || (0..config.n_layers()).map(|layer| config.cached_numbers(layer));
    let (least, most) = (numbers().min().unwrap_or(0), numbers().max().unwrap_or(0));
    let range = if least == most { least.to_string() } else { format!("{least} to {most}") };
    format!("{} -> {range} numbers a token and layer", 2 * config.d_kv())
}

/// Says so when whole latent numbers give a ratio that is not the one asked for.
fn note_rounding(session: &Session, width: Width, ratio: f64) {
    if let Width::Ratio(asked) = width
        && (ratio / asked - 1.0).abs() > 0.02
    {
        session.ui.note(&format!("note: {asked}x was asked for; this conversion gives {ratio:.2}x"));
    }
}
