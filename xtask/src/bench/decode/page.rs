//! What was measured as a page, and what is promised of it.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::super::markdown::{bytes, table};
use super::super::run::median;
use super::{Case, PREFILL, Record, Runs, Side, Subject};

/// A field of one measurement of a round.
fn measured(round: &Value, what: &str, tokens: usize, field: &str) -> Option<f64> {
    let rows = round["measured"].as_array()?;
    rows.iter().find(|row| row["what"] == what && row["tokens"] == tokens)?[field].as_f64()
}

impl Runs {
    /// The median over rounds of a field of one measurement.
    fn of(&self, what: &str, tokens: usize, field: &str) -> Option<f64> {
        let fields = self.rounds.iter().map(|round| measured(round, what, tokens, field));
        median(fields.collect::<Option<_>>()?)
    }

    fn peak(&self) -> Option<f64> {
        median(self.rounds.iter().map(|round| round["peak_bytes"].as_f64()).collect::<Option<_>>()?)
    }
}

impl Case {
    /// Rounds, in each of which every side ran.
    pub fn rounds(&self) -> usize {
        self.sides.first().map_or(0, |runs| runs.rounds.len())
    }

    fn side(&self, side: Side) -> Result<&Runs> {
        self.sides.iter().find(|runs| runs.side == side).with_context(|| format!("no {side:?} was measured"))
    }

    /// How many times as fast one side is as another: the median of the rounds' ratios, in each of which both ran.
    fn ratio(&self, over: Side, under: Side, what: &str, tokens: usize) -> Result<f64> {
        let speeds = |side| {
            let speed = |round: &Value| measured(round, what, tokens, "tokens_per_s");
            let found: Option<Vec<f64>> = self.side(side)?.rounds.iter().map(speed).collect();
            found.with_context(|| format!("{side:?} printed no {what} of {tokens} tokens"))
        };
        let ratios = speeds(over)?.iter().zip(speeds(under)?).map(|(over, under)| over / under).collect();
        median(ratios).context("there was no round")
    }
}

/// A ratio, and the least of it that is promised, if anything is.
pub struct Promise {
    what: String,
    found: f64,
    least: Option<f64>,
}

impl Promise {
    /// Whether it was.
    pub fn kept(&self) -> bool {
        self.least.is_none_or(|least| self.found >= least)
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
        let mut ratio = |over: Side, under: Side, what: &str, tokens: usize, least: Option<f64>| {
            if case.side(over).is_err() || case.side(under).is_err() {
                return Ok(());
            }
            let found = case.ratio(over, under, what, tokens)?;
            let what = format!("{name}: {} over {}, {what} {tokens}", over.title(), under.title());
            all.push(Promise { what, found, least });
            Ok::<_, anyhow::Error>(())
        };
        ratio(Side::Latent4, Side::Dense, "decode", shortest, Some(0.95))?;
        // Keys with a rotary embedding are rebuilt: how that compares is told, and not promised.
        let absorbed = (case.model == Subject::Gpt2).then_some(1.3);
        ratio(Side::Latent4, Side::Dense, "decode", longest, absorbed)?;
        ratio(Side::Int4, Side::Dense, "decode", longest, None)?;
        // Every score is absorbed, and half as much is read.
        let faster = if case.batch == 1 { 1.05 } else { 1.2 };
        ratio(Side::Deepseek2, Side::Dense, "decode", longest, Some(faster))?;
        ratio(Side::Deepseek2, Side::Latent2, "decode", longest, Some(2.5))?;
        ratio(Side::Latent4, Side::Cacheshrink, "decode", longest, Some(3.0))?;
        ratio(Side::Dense, Side::TorchF32, "prefill", PREFILL, Some(1.0))?;
        for &context in &record.contexts {
            ratio(Side::Dense, Side::TorchF32, "decode", context, Some(1.0))?;
            ratio(Side::Dense, Side::LlamaCpp, "decode", context, None)?;
        }
        // What one sequence saves is lost among what else a process holds.
        if let (true, Ok(dense), Ok(latent)) =
            (case.batch > 1, case.side(Side::Dense), case.side(Side::Latent4))
        {
            let gap =
                |get: fn(&Runs, usize) -> Option<f64>| Some(get(dense, longest)? - get(latent, longest)?);
            let cache = gap(|runs, tokens| runs.of("decode", tokens, "cache_bytes"));
            let peak = gap(|runs, _| runs.peak());
            let (Some(cache), Some(peak)) = (cache, peak) else { bail!("a round printed no bytes") };
            let what = format!("{name}: peak memory saved at 4x over the cache's saving, decode {longest}");
            all.push(Promise { what, found: peak / cache, least: Some(1.0) });
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
         threads, medians of rounds in each of which every side runs; a round's own figure is the median of {repeat} steps \
         behind a cache filled to that context. Prefill is {PREFILL} tokens a sequence of which the last one's logits are \
         made. The cache is that of the longest context as \
         allocated, peak memory the most that was resident from start to end. Conversions are `separate` with uniform ranks, and `deepseek` with a \
         shared key of 64. Why the \
         figures are as they are: [decoding](../decoding.md).\n",
        threads = record.threads,
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
        let rounds = match case.rounds() {
            1 => "One round.".to_owned(),
            many => format!("{many} rounds."),
        };
        let title = format!("{}, batch {}", case.model.title(), case.batch);
        text += &format!("\n## {title}\n\n{rounds}\n\n{}", table(&titles, 1, &rows));
    }
    let rows: Vec<_> = promises(record)?
        .iter()
        .map(|promise| {
            let kept = match promise.least {
                None => "",
                Some(_) if promise.kept() => "kept",
                Some(_) => "**not kept**",
            };
            let least = promise.least.map_or_else(String::new, |least| format!("{least:.2}"));
            vec![promise.what.clone(), format!("{:.2}", promise.found), least, kept.to_owned()]
        })
        .collect();
    let titles = ["ratio", "found", "at least", ""].map(str::to_owned);
    text += &format!("\n## Ratios\n\nMedians of the rounds' ratios.\n\n{}", table(&titles, 1, &rows));
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
                runs(Side::Int4, 7.0, 1e9, 1e9),
                runs(Side::TorchF32, 5.0, 8e9, 9e9),
                runs(Side::LlamaCpp, 11.0, 8e9, 9e9),
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
        assert_eq!(kept(&record(20.0, 2.9e9)), [true; 17]);
        let speeds = [true, false, true, true, true, true, true, true];
        assert_eq!(kept(&record(9.8, 4e9)), [&speeds[..], &speeds, &[false]].concat());
    }

    #[test]
    fn a_page_has_a_table_a_case_and_its_bounds() {
        let page = page(&record(20.0, 2.9e9)).expect("complete");
        assert!(page.contains("| shrink, latent 4x, f32 | 20.0 | 20.0 | 20.0 | 1.86 GiB |"), "{page}");
        assert!(page.contains("batch 1: shrink, latent 4x, f32 over shrink, dense cache, f32, decode 8000 | 2.00 | 1.30 | kept |"), "{page}");
    }

    #[test]
    fn earlier_cases_are_taken_over_if_they_are_whole() {
        let whole = || {
            let sides = Subject::Gpt2.sides(1).into_iter().map(|side| runs(side, 1.0, 1.0, 1.0)).collect();
            Case { model: Subject::Gpt2, batch: 1, sides }
        };
        let earlier = || Record { cases: vec![whole()], ..record(1.0, 1.0) };
        let taken = |earlier: Record, asked: Option<usize>| {
            let mut now = Record { cases: Vec::new(), ..record(1.0, 1.0) };
            now.take(earlier, |_| asked);
            now.cases.len()
        };
        assert_eq!(taken(earlier(), Some(1)), 1);
        assert_eq!(taken(earlier(), None), 1, "not asked for");
        assert_eq!(taken(earlier(), Some(3)), 0, "too few rounds");
        assert_eq!(taken(Record { repeat: 2, ..earlier() }, Some(1)), 0, "measured otherwise");
        assert_eq!(taken(record(1.0, 1.0), Some(1)), 0, "sides are missing");
    }

    #[test]
    fn a_side_that_printed_nothing_is_an_error() {
        let mut broken = record(20.0, 2.9e9);
        broken.cases[0].sides[1].rounds[0]["measured"] = Value::Null;
        assert!(promises(&broken).is_err());
    }
}
