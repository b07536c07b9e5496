//! `shrink generate`.

use std::io::Read;

use handlers::Tokenizer;
use mla_core::generate::{GenerateOptions, Generation, Sampling, generate};
use serde_json::{Value, json};

use crate::args::GenerateArgs;
use crate::error::UserError;
use crate::session::Session;

/// Continues prompts.
pub fn run(session: &Session, args: &GenerateArgs) -> anyhow::Result<()> {
    let sampling = sampling(args)?;
    let opened = session.open(&args.model)?;
    let tokenizer = Tokenizer::open(opened.model.folder())?;
    let prompts: Vec<String> = args.prompt.iter().map(|p| read_prompt(p)).collect::<Result<_, _>>()?;
    let ids: Vec<Vec<u32>> = prompts.iter().map(|p| tokenizer.encode_prompt(p)).collect::<Result<_, _>>()?;
    let decoder = session.load(&opened.model)?;
    let options = GenerateOptions {
        max_new_tokens: args.max_new_tokens,
        sampling,
        stop: opened.model.generation().eos.clone(),
        ..Default::default()
    };
    let begun = std::time::Instant::now();
    let streams = !session.json && prompts.len() == 1;
    let mut stream = Stream::new(session, &tokenizer, streams.then(|| prompts[0].clone()));
    let generation = generate(&decoder, &ids, &options, |_, token| stream.push(token))?;
    stream.end()?;
    let elapsed_s = begun.elapsed().as_secs_f64();

    let completions: Vec<String> =
        generation.tokens.iter().map(|t| tokenizer.decode(t)).collect::<Result<_, _>>()?;
    if streams {
        let tokens = generation.tokens[0].len();
        session.ui.note(&format!(
            "{tokens} tokens, {:.1} a second, cache {} for {} tokens",
            tokens as f64 / elapsed_s,
            crate::report::bytes(generation.cache_bytes as u64),
            generation.cache_tokens
        ));
        return Ok(());
    }
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
    let flag =
        |flag, found: String, expected: &str| UserError::Flag { flag, found, expected: expected.into() };
    if !(args.temperature >= 0.0 && args.temperature.is_finite()) {
        return Err(flag("--temperature", args.temperature.to_string(), "a number from 0 up"));
    }
    if !(args.top_p > 0.0 && args.top_p <= 1.0) {
        return Err(flag("--top-p", args.top_p.to_string(), "above 0, at most 1"));
    }
    if args.top_k == Some(0) {
        return Err(flag("--top-k", "0".into(), "at least 1"));
    }
    Ok(match args.temperature {
        0.0 => Sampling::Greedy,
        temperature => {
            Sampling::Random { temperature, top_k: args.top_k, top_p: args.top_p, seed: args.seed }
        }
    })
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

/// Prints a text while it grows: whole characters only, since a token may be part of one.
///
/// The prompt comes with the first token, so that a prompt which is refused leaves stdout empty.
struct Stream<'a> {
    session: &'a Session,
    tokenizer: &'a Tokenizer,
    on: bool,
    prompt: Option<String>,
    tokens: Vec<u32>,
    printed: usize,
    failure: Option<anyhow::Error>,
}

impl<'a> Stream<'a> {
    fn new(session: &'a Session, tokenizer: &'a Tokenizer, prompt: Option<String>) -> Self {
        let on = prompt.is_some();
        Self { session, tokenizer, on, prompt, tokens: Vec::new(), printed: 0, failure: None }
    }

    fn push(&mut self, token: u32) {
        if !self.on || self.failure.is_some() {
            return;
        }
        self.tokens.push(token);
        if let Err(error) = self.print_new(false) {
            self.failure = Some(error);
        }
    }

    fn print_new(&mut self, at_end: bool) -> anyhow::Result<()> {
        if let Some(prompt) = self.prompt.take() {
            self.session.write(&prompt)?;
        }
        let text = self.tokenizer.decode(&self.tokens)?;
        if text.ends_with('\u{FFFD}') && !at_end {
            return Ok(());
        }
        if let Some(new) = text.get(self.printed..) {
            self.session.write(new)?;
            self.printed = text.len();
        }
        Ok(())
    }

    fn end(mut self) -> anyhow::Result<()> {
        match self.failure.take() {
            Some(error) => Err(error),
            None if self.on => {
                self.print_new(true)?;
                self.session.write("\n")
            }
            None => Ok(()),
        }
    }
}
