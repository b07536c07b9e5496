//! `shrink eval`.

use mla_core::{Decoder, Padding};
use serde_json::json;
use train::eval::{CacheSize, Pass, Windowing, cache_sizes, compare, perplexity};

use crate::args::EvalArgs;
use crate::error::UserError;
use crate::report;
use crate::session::{Opened, Session};

/// Measures a model on text.
pub fn run(session: &Session, args: &EvalArgs) -> anyhow::Result<()> {
    let windowing = windowing(args)?;
    let opened = session.open(&args.model)?;
    let tokens = session.tokens(&opened.model, &args.data, &args.text_field)?;
    let donor = args.against.as_deref().map(|name| session.open(name)).transpose()?;
    let model = session.load(&opened.model)?;
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
        "cache": { "tokens": args.max_length, "dtype": "f32", "bytes": cache.model_bytes, "donor_bytes": cache.donor_bytes },
    });
    let mut text = format!(
        "perplexity {:.3}  ({} tokens in {} windows of {})\ncache of {} tokens as allocated, f32: {} (donor {})\n",
        scored.perplexity,
        scored.tokens,
        scored.windows,
        args.max_length,
        args.max_length,
        report::bytes(cache.model_bytes),
        report::bytes(cache.donor_bytes),
    );
    if let (Some((donor, _)), Some(gap)) = (&donor, gap) {
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
        Some(stride) if (1..length).contains(&stride) => Ok(Windowing::Strided { length, stride }),
        Some(stride) => {
            Err(flag("--stride", stride, format!("at least 1 and less than --max-length = {length}")))
        }
    }
}

/// What a cache of one window takes: read off one that is really allocated, beside the donor's by the formula.
fn cache(model: &Decoder, tokens: usize) -> CacheSize {
    let allocated = model.cache(Padding::none(1), tokens).bytes() as u64;
    let by_formula = cache_sizes(model.config(), &[tokens], 1, std::mem::size_of::<f32>())[0];
    CacheSize { model_bytes: allocated, ..by_formula }
}
