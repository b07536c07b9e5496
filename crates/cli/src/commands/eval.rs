//! `shrink eval`.

use mla_core::{Decoder, Padding};
use serde_json::json;
use train::eval::{Pass, Windowing, compare, perplexity};

use crate::args::EvalArgs;
use crate::error::UserError;
use crate::report;
use crate::session::Session;

/// Measures a model on text.
pub fn run(session: &Session, args: &EvalArgs) -> anyhow::Result<()> {
    let windowing = windowing(args)?;
    let opened = session.open(&args.model)?;
    let tokens = session.tokens(&opened.model, &args.data, &args.text_field)?;
    let donor = args.against.as_deref().map(|name| session.open(name)).transpose()?;
    let model = session.load(&opened.model)?;
    let pass = if args.through_cache { Pass::ThroughCache } else { Pass::Full };

    let mut task = session.ui.task("scoring windows", 0);
    let mut on_window = |done: usize, total: usize| task.at(done as u64, total as u64);
    let scored = perplexity(&model, &tokens, windowing, args.windows, pass, &mut on_window)?;
    task.finish();
    let cache = cache(&model, args.max_length);
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
        "cache": cache,
    });
    let mut text = format!(
        "perplexity {:.3}  ({} tokens in {} windows of {})\ncache of {} tokens as allocated: {} (donor {})\n",
        scored.perplexity,
        scored.tokens,
        scored.windows,
        args.max_length,
        args.max_length,
        report::bytes(cache["bytes"].as_u64().unwrap_or(0)),
        report::bytes(cache["donor_bytes"].as_u64().unwrap_or(0)),
    );
    if let Some(donor) = donor {
        let donor_model = session.load(&donor.model)?;
        let mut task = session.ui.task("comparing windows", 0);
        let mut on_window = |done: usize, total: usize| task.at(done as u64, total as u64);
        let gap = compare(&model, &donor_model, &tokens, windowing, args.windows, pass, &mut on_window)?;
        task.finish();
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
    session.print(&object, &text)
}

fn windowing(args: &EvalArgs) -> Result<Windowing, UserError> {
    let length = args.max_length;
    let flag =
        |flag, found: usize, expected: String| UserError::Flag { flag, found: found.to_string(), expected };
    if length < 2 {
        return Err(flag("--max-length", length, "at least 2".into()));
    }
    if args.windows == Some(0) {
        return Err(flag("--windows", 0, "at least 1".into()));
    }
    match args.stride {
        None => Ok(Windowing::Consecutive { length }),
        Some(stride) if (1..=length).contains(&stride) => Ok(Windowing::Strided { length, stride }),
        Some(stride) => Err(flag("--stride", stride, format!("from 1 to --max-length = {length}"))),
    }
}

/// What a cache of one window takes, read off caches that are really allocated.
fn cache(model: &Decoder, tokens: usize) -> serde_json::Value {
    let device = model.device();
    let bytes = |config| mla_core::Cache::new(config, Padding::none(1), tokens, &device).bytes();
    json!({
        "tokens": tokens,
        "bytes": bytes(model.config()),
        "donor_bytes": bytes(&model.config().donor()),
    })
}
