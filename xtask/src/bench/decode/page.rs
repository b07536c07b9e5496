//! What was measured as a page, and what is promised of it.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::super::markdown::{bytes, table};
use super::super::run::median;
use super::{Case, PREFILL, Record, Runs, Side, Subject};

impl Runs {
    /// The median over rounds of a field of one measurement.
    fn of(&self, what: &str, tokens: usize, field: &str) -> Option<f64> {
        let row = |round: &Value| {
            let rows = round["measured"].as_array()?;
            rows.iter().find(|row| row["what"] == what && row["tokens"] == tokens)?[field].as_f64()
        };
        median(self.rounds.iter().map(row).collect::<Option<_>>()?)
    }

    fn peak(&self) -> Option<f64> {
        median(self.rounds.iter().map(|round| round["peak_bytes"].as_f64()).collect::<Option<_>>()?)
    }
}

impl Case {
    fn side(&self, side: Side) -> Result<&Runs> {
        self.sides.iter().find(|runs| runs.side == side).with_context(|| format!("no {side:?} was measured"))
    }

    /// Tokens a second of a side.
    fn speed(&self, side: Side, what: &str, tokens: usize) -> Result<f64> {
        self.side(side)?
            .of(what, tokens, "tokens_per_s")
            .with_context(|| format!("{side:?} printed no {what} of {tokens} tokens"))
    }
}

/// Something that is promised, and what was found.
pub struct Promise {
    what: String,
    found: f64,
    least: f64,
}

impl Promise {
    /// Whether it was.
    pub fn kept(&self) -> bool {
        self.found >= self.least
    }
}

/// What is promised of what was measured.
///
/// # Errors
/// When a side printed less than was asked for.
pub fn promises(record: &Record) -> Result<Vec<Promise>> {
    let (Some(&shortest), Some(&longest)) = (record.contexts.first(), record.contexts.last()) else {
        return Ok(Vec::new());
    };
    let mut all = Vec::new();
    for case in &record.cases {
        let name = format!("{:?}, batch {}", case.model, case.batch).to_lowercase();
        let mut ratio = |over: Side, under: Side, what: &str, tokens: usize, least: f64| {
            let found = case.speed(over, what, tokens)? / case.speed(under, what, tokens)?;
            let what = format!("{name}: {} over {}, {what} {tokens}", over.title(), under.title());
            all.push(Promise { what, found, least });
            Ok::<_, anyhow::Error>(())
        };
        if case.batch == 1 {
            ratio(Side::Latent4, Side::Dense, "decode", shortest, 0.95)?;
            if case.model == Subject::Gpt2 {
                ratio(Side::Latent4, Side::Dense, "decode", longest, 1.3)?;
            }
            if case.side(Side::Cacheshrink).is_ok() {
                ratio(Side::Latent4, Side::Cacheshrink, "decode", longest, 3.0)?;
            }
            ratio(Side::Dense, Side::TorchF32, "prefill", PREFILL, 1.0)?;
            for &context in &record.contexts {
                ratio(Side::Dense, Side::TorchF32, "decode", context, 1.0)?;
            }
        } else {
            let [dense, latent] = [case.side(Side::Dense)?, case.side(Side::Latent4)?];
            let gap =
                |get: fn(&Runs, usize) -> Option<f64>| Some(get(dense, longest)? - get(latent, longest)?);
            let cache = gap(|runs, tokens| runs.of("decode", tokens, "cache_bytes"));
            let peak = gap(|runs, _| runs.peak());
            let (Some(cache), Some(peak)) = (cache, peak) else { bail!("a round printed no bytes") };
            let what = format!("{name}: peak memory saved at 4x over the cache's saving, decode {longest}");
            all.push(Promise { what, found: peak / cache, least: 1.0 });
        }
    }
    Ok(all)
}

/// `decode.md`.
///
/// # Errors
/// As [`promises`].
pub fn page(record: &Record) -> Result<String> {
    let mut text = format!(
        "# Decoding speed\n\n\
         Made by `cargo xtask bench decode`; every round is in [decode.json](decode.json). Tokens a second over all sequences, {threads} \
         threads, medians of {rounds} round(s) in each of which every side runs; a round's own figure is the median of {repeat} steps \
         behind a cache filled to that context. Prefill is {PREFILL} tokens a sequence. The cache is that of the longest context as \
         allocated, peak memory the most that was resident from start to end. Conversions are `separate` with uniform ranks. Why the \
         figures are as they are: [decoding](../decoding.md).\n",
        threads = record.threads,
        rounds = record.cases.first().and_then(|case| case.sides.first()).map_or(0, |runs| runs.rounds.len()),
        repeat = record.repeat,
    );
    let longest = record.contexts.last().copied().unwrap_or(0);
    for case in &record.cases {
        let mut titles = vec![String::new(), "prefill".to_owned()];
        titles.extend(record.contexts.iter().map(|context| format!("decode at {context}")));
        titles.extend(["cache", "peak memory"].map(str::to_owned));
        let number = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.1}"));
        let size = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), bytes);
        let row = |runs: &Runs| {
            let mut cells =
                vec![runs.side.title().to_owned(), number(runs.of("prefill", PREFILL, "tokens_per_s"))];
            let speed = |&context: &usize| number(runs.of("decode", context, "tokens_per_s"));
            cells.extend(record.contexts.iter().map(speed));
            cells.extend([size(runs.of("decode", longest, "cache_bytes")), size(runs.peak())]);
            cells
        };
        let rows: Vec<_> = case.sides.iter().map(row).collect();
        text += &format!("\n## {}, batch {}\n\n{}", case.model.title(), case.batch, table(&titles, 1, &rows));
    }
    let rows: Vec<_> = promises(record)?
        .iter()
        .map(|promise| {
            let kept = if promise.kept() { "kept" } else { "**not kept**" };
            vec![
                promise.what.clone(),
                format!("{:.2}", promise.found),
                format!("{:.2}", promise.least),
                kept.to_owned(),
            ]
        })
        .collect();
    let titles = ["ratio", "found", "at least", ""].map(str::to_owned);
    text += &format!("\n## Bounds\n\n{}", table(&titles, 1, &rows));
    text += &format!("\nMeasured {}:\n\n```text\n{}\n```\n", record.setting.line(), record.command);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::bench::setting::Setting;

    fn runs(side: Side, speed: f64, cache: f64, peak: f64) -> Runs {
        let row = |what: &str, tokens: usize| json!({ "what": what, "tokens": tokens, "tokens_per_s": speed, "cache_bytes": cache });
        let measured = [row("prefill", PREFILL), row("decode", 128), row("decode", 8000)];
        Runs { side, rounds: vec![json!({ "peak_bytes": peak, "measured": measured })] }
    }

    fn record(latent_speed: f64, latent_peak: f64) -> Record {
        let sides = || {
            vec![
                runs(Side::Dense, 10.0, 8e9, 9e9),
                runs(Side::Latent4, latent_speed, 2e9, latent_peak),
                runs(Side::TorchF32, 5.0, 8e9, 9e9),
            ]
        };
        let case = |batch| Case { model: Subject::Gpt2, batch, sides: sides() };
        Record {
            setting: Setting::now(Path::new("/"), "shrink".into()),
            threads: 2,
            contexts: vec![128, 8000],
            repeat: 9,
            command: "shrink bench".into(),
            cases: vec![case(1), case(8)],
        }
    }

    #[test]
    fn what_is_promised_is_counted_from_what_was_measured() {
        let kept = |record: &Record| {
            promises(record).expect("complete").iter().map(Promise::kept).collect::<Vec<_>>()
        };
        assert_eq!(kept(&record(20.0, 2.9e9)), [true; 6]);
        assert_eq!(kept(&record(9.8, 4e9)), [true, false, true, true, true, false]);
    }

    #[test]
    fn a_page_has_a_table_a_case_and_its_bounds() {
        let page = page(&record(20.0, 2.9e9)).expect("complete");
        assert!(page.contains("| shrink, latent 4x, f32 | 20.0 | 20.0 | 20.0 | 1.86 GiB |"), "{page}");
        assert!(page.contains("batch 1: shrink, latent 4x, f32 over shrink, dense cache, f32, decode 8000 | 2.00 | 1.30 | kept |"), "{page}");
    }

    #[test]
    fn a_side_that_printed_nothing_is_an_error() {
        let mut broken = record(20.0, 2.9e9);
        broken.cases[0].sides[1].rounds[0]["measured"] = Value::Null;
        assert!(promises(&broken).is_err());
    }
}
