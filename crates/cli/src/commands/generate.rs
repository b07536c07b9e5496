//! `shrink generate`.

use std::io::Read;
use std::ops::ControlFlow;

use handlers::Continuation;
use mla_core::WeightSource;
use mla_core::generate::{GenerateOptions, Generation, Sampling, generate};
use serde_json::{Value, json};

use crate::args::GenerateArgs;
use crate::error::UserError;
use crate::footprint::Footprint;
use crate::session::Session;

/// Continues prompts.
pub fn run(session: &Session, args: &GenerateArgs) -> anyhow::Result<()> {
    let sampling = sampling(args)?;
    let opened = session.open_to_run(&args.model, args.cache)?;
    let tokenizer = session.tokenizer(&opened.model)?;
    let prompts: Vec<String> = args.prompt.iter().map(|p| read_prompt(p)).collect::<Result<_, _>>()?;
    let ids: Vec<Vec<u32>> = prompts.iter().map(|p| tokenizer.encode_prompt(p)).collect::<Result<_, _>>()?;
    let config = opened.model.config();
    let longest = ids.iter().map(Vec::len).max().unwrap_or(0);
    let capacity = longest.saturating_add(args.max_new_tokens).min(config.max_positions);
    let footprint =
        Footprint::running(&opened.model, session.weights(args.weights)).cached(config, ids.len(), capacity);
    footprint.check(session, "the generation", args.guard.overcommit)?;
    let decoder = session.load_opened(&opened, args.weights)?;
    let options = GenerateOptions {
        max_new_tokens: args.max_new_tokens,
        sampling,
        stop: opened.model.generation().eos.clone(),
        ..Default::default()
    };
    let begun = std::time::Instant::now();
    let streams = !session.json && prompts.len() == 1;
    let mut stream = streams.then(|| Stream::new(session, &prompts[0], tokenizer.continuation(&ids[0])));
    let generation = generate(&decoder, &ids, &options, |_, token| match &mut stream {
        Some(stream) => stream.push(token),
        None => ControlFlow::Continue(()),
    })?;
    stream.map_or(Ok(()), Stream::end)?;
    let elapsed_s = begun.elapsed().as_secs_f64();

    if streams {
        let tokens = generation.tokens[0].len();
        session.ui.note(&format!(
            "{tokens} tokens, {:.1} a second, cache of {} allocated for {} tokens",
            tokens as f64 / elapsed_s,
            crate::report::bytes(generation.cache_bytes as u64),
            generation.cache_tokens
        ));
        return Ok(());
    }
    let rows = ids.iter().zip(&generation.tokens);
    let completions: Vec<String> =
        rows.map(|(prompt, new)| tokenizer.decode_after(prompt, new)).collect::<Result<_, _>>()?;
    let text: String = prompts.iter().zip(&completions).map(|(p, c)| format!("{p}{c}\n")).collect();
    session.print(&object(&prompts, &completions, &generation, elapsed_s), &text)
}

/// One prompt gives one object; several give a list under `completions`.
fn object(prompts: &[String], completions: &[String], generation: &Generation, elapsed_s: f64) -> Value {
    let one = |i: usize| {
        json!({
            "prompt": prompts[i],
            "completion": completions[i],
            "tokens": generation.tokens[i],
            "finish_reason": generation.finish[i].name(),
        })
    };
    let mut object = match prompts.len() {
        1 => one(0),
        n => json!({ "completions": (0..n).map(one).collect::<Vec<_>>() }),
    };
    object["cache_bytes"] = generation.cache_bytes.into();
    object["cache_tokens"] = generation.cache_tokens.into();
    object["elapsed_s"] = elapsed_s.into();
    object
}

fn sampling(args: &GenerateArgs) -> Result<Sampling, UserError> {
    if args.temperature > 0.0 {
        let (top_p, seed) = (args.top_p.unwrap_or(1.0), args.seed.unwrap_or(0));
        return Ok(Sampling::Random { temperature: args.temperature, top_k: args.top_k, top_p, seed });
    }
    let idle = [
        ("--top-p", args.top_p.map(|p| p.to_string())),
        ("--top-k", args.top_k.map(|k| k.to_string())),
        ("--seed", args.seed.map(|seed| seed.to_string())),
    ];
    match idle.into_iter().find_map(|(name, given)| Some((name, given?))) {
        Some((flag, found)) => {
            let expected = "a --temperature above 0 with it: at 0 nothing is drawn".into();
            Err(UserError::Flag { flag, found, expected })
        }
        None => Ok(Sampling::Greedy),
    }
}

fn read_prompt(prompt: &str) -> Result<String, UserError> {
    if prompt != "-" {
        return Ok(prompt.into());
    }
    let mut text = String::new();
    let read = std::io::stdin().lock().read_to_string(&mut text);
    read.map_err(|source| UserError::Stdio { action: "read the prompt from stdin", source })?;
    Ok(text.trim_end_matches('\n').into())
}

/// Prints a text while it grows.
///
/// The prompt comes with the first token, so that a prompt which is refused leaves stdout empty.
struct Stream<'a> {
    session: &'a Session,
    prompt: Option<&'a str>,
    continuation: Continuation<'a>,
    failure: Option<anyhow::Error>,
}

impl<'a> Stream<'a> {
    fn new(session: &'a Session, prompt: &'a str, continuation: Continuation<'a>) -> Self {
        Self { session, prompt: Some(prompt), continuation, failure: None }
    }

    /// Breaks the generation off when nobody reads any more.
    fn push(&mut self, token: u32) -> ControlFlow<()> {
        match self.print(token) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.failure = Some(error);
                ControlFlow::Break(())
            }
        }
    }

    fn print(&mut self, token: u32) -> anyhow::Result<()> {
        if let Some(prompt) = self.prompt.take() {
            self.session.write(prompt)?;
        }
        let new = self.continuation.push(token)?;
        if new.is_empty() { Ok(()) } else { self.session.write(&new) }
    }

    fn end(self) -> anyhow::Result<()> {
        if let Some(error) = self.failure {
            return Err(error);
        }
        let rest = self.continuation.finish()?;
        self.session.write(&format!("{}{rest}\n", self.prompt.unwrap_or_default()))
    }
}
