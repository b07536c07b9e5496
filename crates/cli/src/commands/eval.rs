//! `shrink eval`.

use mla_core::{CacheDtype, Decoder, Padding, WeightDtype, WeightSource};
use serde_json::{Value, json};
use train::eval::{
    CacheSize, Divergence, Pass, Perplexity, TokenBytes, Windowing, cache_sizes, compare, perplexity,
};

use crate::args::EvalArgs;
use crate::error::UserError;
use crate::footprint::Footprint;
use crate::report;
use crate::session::{Opened, Session};
use crate::tasks;

/// Measures a model on text, or on a task.
pub fn run(session: &Session, args: &EvalArgs) -> anyhow::Result<()> {
    if let Some(task) = args.task.task {
        return tasks::run(session, args, task);
    }
    let windowing = windowing(args)?;
    let wanted = args.windows.map(|windows| windowing.reach(windows));
    // A donor that cannot be used says so before the model's weights are fetched.
    args.against.as_deref().map(|name| session.describe(name)).transpose()?;
    let opened = session.open_to_run(&args.model, args.cache)?;
    let tokens = session.tokens(&opened.model, &args.data, &args.text_field, wanted)?;
    let donor = args.against.as_deref().map(|name| session.open(name)).transpose()?;
    donor.as_ref().map_or(Ok(()), |donor| session.check_own_cache(donor.model.config()))?;
    footprint(&opened, donor.as_ref(), args, session.weights(args.weights)).check(
        session,
        "the evaluation",
        args.guard.overcommit,
    )?;
    let model = session.load_opened(&opened, args.weights)?;
    let pass = if args.through_cache { Pass::ThroughCache } else { Pass::Full };

    let beside = |opened: Opened| session.load_beside(&opened.model, &model).map(|donor| (opened, donor));
    let donor = donor.map(beside).transpose()?;

    let mut task = session.ui.task("scoring windows", 0);
    let mut on_window = |done: usize, total: usize| task.at(done as u64, total as u64);
    let (scored, gap) = match &donor {
        None => (perplexity(&model, &tokens, windowing, args.windows, pass, &mut on_window)?, None),
        Some((_, donor)) => {
            let gap = compare(&model, donor, &tokens, windowing, args.windows, pass, &mut on_window)?;
            (gap.model.clone(), Some(gap))
        }
    };
    task.finish();
    let cache = cache(&model, args.max_length);
    let dtype = model.config().cache_dtype;
    // Where this model's numbers are rounded, it stands against a donor in what donors are served in.
    let donor_dtype = if dtype == CacheDtype::F32 { "f32" } else { "bf16" };
    let mut object = json!({
        "model": opened.name(),
        "perplexity": scored.perplexity,
        "nll": scored.nll,
        "tokens": scored.tokens,
        "windows": scored.windows,
        "max_length": args.max_length,
        "stride": args.stride,
        "through_cache": args.through_cache,
        "compression_ratio": model.config().compression_ratio(),
        "cache": {
            "tokens": args.max_length,
            "dtype": dtype.name(),
            "bytes": cache.model_bytes,
            "donor_dtype": donor_dtype,
            "donor_bytes": cache.donor_bytes,
        },
    });
    let mut text = format!(
        "perplexity {:.3}  ({} tokens in {} windows of {})\ncache of {} tokens as allocated, {}: {} (donor, {}: {})\n",
        scored.perplexity,
        scored.tokens,
        scored.windows,
        args.max_length,
        args.max_length,
        dtype.name(),
        report::bytes(cache.model_bytes),
        donor_dtype,
        report::bytes(cache.donor_bytes),
    );
    if let (Some((donor, _)), Some(gap)) = (&donor, &gap) {
        object["against"] = json!({
            "model": donor.name(),
            "perplexity": gap.donor_perplexity,
            "kl": gap.kl,
            "top1_agreement": gap.top1_agreement,
        });
        text += &format!(
            "against {}: perplexity {:.3}, ratio {:.4}, KL {:.4} nats a token, same top token {:.1}%\n",
            donor.title(),
            gap.donor_perplexity,
            scored.perplexity / gap.donor_perplexity,
            gap.kl,
            100.0 * gap.top1_agreement,
        );
    }
    if args.by_position {
        object["by_position"] = positions(&scored, gap.as_ref());
        text += &position_table(&scored, gap.as_ref());
    }
    session.print(&object, &text)
}

/// A score for each range of positions, `from` the first to before `to`.
fn positions(scored: &Perplexity, gap: Option<&Divergence>) -> Value {
    let buckets = scored.by_position.iter().enumerate().map(|(i, at)| {
        let mut bucket = json!({
            "from": at.positions.start,
            "to": at.positions.end,
            "tokens": at.tokens,
            "nll": at.nll,
            "perplexity": at.nll.exp(),
        });
        if let Some(gap) = gap.map(|gap| &gap.by_position[i]) {
            bucket["against"] = json!({
                "perplexity": gap.donor_perplexity,
                "ratio": gap.ratio,
                "kl": gap.kl,
                "top1_agreement": gap.top1_agreement,
            });
        }
        bucket
    });
    buckets.collect()
}

fn position_table(scored: &Perplexity, gap: Option<&Divergence>) -> String {
    let rows = scored.by_position.iter().enumerate().map(|(i, at)| {
        let mut row = vec![
            format!("{} to {}", at.positions.start, at.positions.end - 1),
            report::count(at.tokens as u64),
            format!("{:.4}", at.nll),
            format!("{:.3}", at.nll.exp()),
        ];
        row.extend(gap.iter().flat_map(|gap| {
            let at = &gap.by_position[i];
            [
                format!("{:.4}", at.ratio),
                format!("{:.4}", at.kl),
                format!("{:.1}%", 100.0 * at.top1_agreement),
            ]
        }));
        row
    });
    let header = ["positions", "tokens", "nll", "perplexity", "ratio", "KL", "same top"];
    let header = if gap.is_some() { &header[..] } else { &header[..4] };
    report::table(header, &rows.collect::<Vec<_>>())
}

fn footprint(opened: &Opened, donor: Option<&Opened>, args: &EvalArgs, weights: WeightDtype) -> Footprint {
    let (model, config) = (&opened.model, opened.model.config());
    // No window is longer than the context; one that was asked for is refused when the text is cut.
    let length = args.max_length.min(config.max_positions);
    let passes = Footprint::running(model, weights).windows(config, 1, length);
    let has_cache = Pass::Full.step_tokens(length) < length;
    let alone = if has_cache { passes } else { passes.cached(config, 1, length) };
    match donor {
        Some(donor) => alone.beside(&donor.model, model).windows(donor.model.config(), 1, length),
        None => alone,
    }
}

fn windowing(args: &EvalArgs) -> Result<Windowing, UserError> {
    let length = args.max_length;
    match args.stride {
        None => Ok(Windowing::Consecutive { length }),
        Some(stride) if stride < length => Ok(Windowing::Strided { length, stride }),
        Some(stride) => Err(UserError::Flag {
            flag: "--stride",
            found: stride.to_string(),
            expected: format!("less than --max-length = {length}"),
        }),
    }
}

/// What a cache of one window takes: read off one that is really allocated, beside the donor's by the formula.
fn cache(model: &Decoder, tokens: usize) -> CacheSize {
    let mut full = model.cache(Padding::none(1), tokens);
    // A layer that keeps a window allocates it as it goes.
    full.fill(tokens).expect("an empty cache of as many tokens");
    let allocated = full.bytes() as u64;
    let element_bytes = if model.config().cache_dtype == CacheDtype::F32 { 4 } else { 2 };
    let by_formula = cache_sizes(&TokenBytes::allocated(model.config(), element_bytes), &[tokens], 1)[0];
    CacheSize { model_bytes: allocated, ..by_formula }
}
