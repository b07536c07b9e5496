//! `shrink bench`.

use std::time::Instant;

use mla_core::generate::{GenerateOptions, prefill};
use mla_core::{Decoder, Padding, WeightSource};
use serde_json::{Value, json};

use crate::args::BenchArgs;
use crate::error::UserError;
use crate::footprint::Footprint;
use crate::report::{bytes, table};
use crate::session::Session;

/// Tokens in the cache before a step, of a model whose context is that long.
const DEFAULT_CONTEXTS: [usize; 2] = [128, 1024];

/// What is timed.
#[derive(Clone, Copy)]
enum Pass {
    /// Prompts from an empty cache to the logits of the first new token.
    Prefill,
    /// A token a sequence behind `tokens` others.
    Decode,
}

struct Case {
    what: Pass,
    tokens: usize,
    batch: usize,
}

/// One line of the table.
struct Row {
    what: &'static str,
    tokens: usize,
    batch: usize,
    /// Median seconds of one pass, and tokens it makes or takes over all sequences.
    pass_s: f64,
    pass_tokens: usize,
    cache_bytes: usize,
}

impl Case {
    fn time(&self, decoder: &Decoder, repeat: usize) -> anyhow::Result<Row> {
        match self.what {
            Pass::Prefill => time_prefill(decoder, self.tokens, self.batch, repeat.min(3)),
            Pass::Decode => time_decoding(decoder, self.tokens, self.batch, repeat),
        }
    }
}

impl Row {
    fn per_second(&self) -> f64 {
        self.pass_tokens as f64 / self.pass_s
    }

    fn json(&self) -> Value {
        json!({
            "what": self.what,
            "tokens": self.tokens,
            "batch_size": self.batch,
            "pass_s": self.pass_s,
            "tokens_per_s": self.per_second(),
            "cache_bytes": self.cache_bytes,
        })
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.what.into(),
            self.tokens.to_string(),
            self.batch.to_string(),
            format!("{:.1}", self.pass_s * 1e3),
            format!("{:.1}", self.per_second()),
            bytes(self.cache_bytes as u64),
        ]
    }
}

/// Times a model.
pub fn run(session: &Session, args: &BenchArgs) -> anyhow::Result<()> {
    let opened = session.open_to_run(&args.model, args.cache)?;
    let longest = opened.model.config().max_positions;
    let fits = |flag, tokens: &[usize], room: usize| match tokens.iter().find(|&&tokens| tokens > room) {
        None => Ok(()),
        Some(tokens) => {
            let expected = format!("at most {room}: the model's context is {longest}");
            Err(UserError::Flag { flag, found: tokens.to_string(), expected })
        }
    };
    fits("--prefill", &args.prefill, longest)?;
    // Behind the context come the steps: one that is not counted, and those that are.
    fits("--repeat", &[args.repeat], longest.saturating_sub(1))?;
    let room = longest - 1 - args.repeat;
    let contexts = match &args.context {
        Some(contexts) => contexts.clone(),
        None => {
            let mut contexts = DEFAULT_CONTEXTS.map(|tokens| tokens.min(room)).to_vec();
            contexts.dedup();
            contexts
        }
    };
    fits("--context", &contexts, room)?;
    let (batch, tokens) = (args.batch_size.iter().max(), contexts.iter().chain(&args.prefill).max());
    // With the steps behind the context.
    let tokens = tokens.map_or(0, |tokens| tokens + args.repeat + 1);
    let config = opened.model.config();
    let footprint = Footprint::running(&opened.model, session.weights(args.weights)).cached(
        config,
        batch.copied().unwrap_or(1),
        tokens,
    );
    footprint.check(session, "the measurement", args.guard.overcommit)?;
    let decoder = session.load_opened(&opened, args.weights)?;
    let cases = |batch: usize| {
        let prefill = args.prefill.iter().map(move |&tokens| Case { what: Pass::Prefill, tokens, batch });
        prefill.chain(contexts.iter().map(move |&tokens| Case { what: Pass::Decode, tokens, batch }))
    };
    let cases: Vec<Case> = args.batch_size.iter().flat_map(|&batch| cases(batch)).collect();
    let mut task = session.ui.task("measuring", cases.len() as u64);
    let mut rows: Vec<Option<Row>> = cases.iter().map(|_| None).collect();
    // The largest cache first: the allocator keeps some of what is freed, in which the smaller ones find room and a larger one
    // would not.
    let mut order: Vec<usize> = (0..cases.len()).collect();
    order.sort_by_key(|&case| std::cmp::Reverse(cases[case].tokens * cases[case].batch));
    for (done, case) in order.into_iter().enumerate() {
        rows[case] = Some(cases[case].time(&decoder, args.repeat)?);
        task.at(done as u64 + 1, cases.len() as u64);
    }
    let rows: Vec<Row> = rows.into_iter().flatten().collect();
    task.finish();
    let header = ["", "tokens", "batch", "ms a pass", "tokens/s", "cache"];
    let text = table(&header, &rows.iter().map(Row::cells).collect::<Vec<_>>());
    let object = json!({
        "compression_ratio": decoder.config().compression_ratio(),
        "repeat": args.repeat,
        "measured": rows.iter().map(Row::json).collect::<Vec<_>>(),
    });
    session.print(&object, &text)
}

/// [`Pass::Decode`], a pass more than is counted, the first.
fn time_decoding(decoder: &Decoder, tokens: usize, batch: usize, repeat: usize) -> anyhow::Result<Row> {
    let mut cache = decoder.cache(Padding::none(batch), tokens + repeat + 1);
    cache.fill(tokens)?;
    let column = some_tokens(decoder, 1, batch);
    let mut pass = || {
        let begun = Instant::now();
        let hidden = decoder.hidden_cached(&column, &mut cache)?;
        decoder.logits(hidden).into_data();
        Ok::<_, anyhow::Error>(begun.elapsed().as_secs_f64())
    };
    pass()?;
    let pass_s = median((0..repeat).map(|_| pass()).collect::<Result<_, _>>()?);
    Ok(Row { what: "decode", tokens, batch, pass_s, pass_tokens: batch, cache_bytes: cache.bytes() })
}

/// [`Pass::Prefill`].
fn time_prefill(decoder: &Decoder, tokens: usize, batch: usize, repeat: usize) -> anyhow::Result<Row> {
    let prompts = some_tokens(decoder, tokens, batch);
    let chunk = GenerateOptions::default().prefill_chunk;
    let mut cache_bytes = 0;
    let mut pass = || {
        let mut cache = decoder.cache(Padding::none(batch), tokens);
        let begun = Instant::now();
        let hidden = prefill(decoder, &prompts, chunk, &mut cache)?;
        decoder.logits(hidden).into_data();
        cache_bytes = cache.bytes();
        Ok::<_, anyhow::Error>(begun.elapsed().as_secs_f64())
    };
    let pass_s = median((0..repeat).map(|_| pass()).collect::<Result<_, _>>()?);
    Ok(Row { what: "prefill", tokens, batch, pass_s, pass_tokens: batch * tokens, cache_bytes })
}

/// Token ids that go through the whole vocabulary.
fn some_tokens(decoder: &Decoder, tokens: usize, batch: usize) -> Vec<Vec<u32>> {
    let vocab = decoder.config().vocab_size;
    let id = |row: usize, column: usize| ((row * 131 + column * 7919 + 11) % vocab) as u32;
    (0..batch).map(|row| (0..tokens).map(|column| id(row, column)).collect()).collect()
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
