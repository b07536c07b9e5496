//! Text that the donor writes itself, drawn at temperature 1.
//!
//! A model's own text is of all the kinds that it knows, in the shares in which it knows them; for pruning and quantisation
//! it serves better than a corpus (Williams & Aletras 2024). Every document goes on from an opening of another kind; of a model
//! that is made for conversations, every other is its answer to a request, in its chat template.

use std::collections::HashMap;
use std::ops::ControlFlow;

use handlers::{ChatTemplate, Message, Model, Tokenizer};
use mla_core::generate::{Finish, GenerateOptions, Sampling, generate};
use mla_core::{Decoder, WeightSource};

use super::builtin;
use crate::error::UserError;
use crate::session::Session;

/// Documents that are written at a time.
pub const BATCH: usize = 32;
/// Documents are written until there is enough, but no more of them than this for each that would do.
const PATIENCE: usize = 16;
/// A document of which one token makes up more than this share is no text, and a model that writes more such documents than this
/// share writes none.
const MONOTONOUS: f64 = 0.5;

/// Writes text: `count` tokens, in documents of `length` at most.
///
/// # Errors
/// When the model cannot be loaded, the chat template fails, or what the model writes is no text: one token for ever, or
/// nothing.
pub fn sample(
    session: &Session,
    model: &Model,
    count: usize,
    length: usize,
    seed: u64,
) -> anyhow::Result<Vec<u32>> {
    let tokenizer = session.tokenizer(model)?;
    let prompts = prompts(&tokenizer, ChatTemplate::open(model.folder())?.as_ref(), length)?;
    let decoder = session.load(model)?;
    let mut task = session.ui.task("sampling text", count as u64);
    let mut text = Vec::with_capacity(count + length);
    let mut monotonous: Vec<u32> = Vec::new();
    let documents = count.div_ceil(length).max(1);
    let mut begun = 0;
    while text.len() < count {
        if begun >= PATIENCE * documents.max(BATCH) {
            return Err(UserError::SampledNothing { documents: begun, tokens: text.len() }.into());
        }
        let batch: Vec<Vec<u32>> =
            (0..BATCH.min(documents)).map(|i| prompts[(begun + i) % prompts.len()].clone()).collect();
        let found = write(&decoder, model, &batch, length, seed.wrapping_add(begun as u64), &mut |tokens| {
            task.at((text.len() + tokens).min(count) as u64, count as u64);
        })?;
        begun += batch.len();
        for (prompt, new) in batch.iter().zip(found) {
            monotonous.extend(only_token(&new));
            text.extend(prompt.iter().copied().chain(new));
        }
    }
    task.finish();
    if let (Some(&token), true) = (monotonous.first(), monotonous.len() as f64 > MONOTONOUS * begun as f64) {
        return Err(UserError::SampledOneToken { token, documents: monotonous.len(), of: begun }.into());
    }
    text.truncate(count);
    Ok(text)
}

/// The token that makes up most of a document, if one does.
fn only_token(document: &[u32]) -> Option<u32> {
    let mut counts: HashMap<u32, usize> = HashMap::new();
    document.iter().for_each(|&token| *counts.entry(token).or_default() += 1);
    let most = counts.into_iter().max_by_key(|&(token, times)| (times, token));
    most.filter(|&(_, times)| times as f64 > MONOTONOUS * document.len().max(2) as f64)
        .map(|(token, _)| token)
}

/// Goes on from some prompts up to `length` tokens each, the token that ends a document with it.
fn write(
    decoder: &Decoder,
    model: &Model,
    prompts: &[Vec<u32>],
    length: usize,
    seed: u64,
    on_tokens: &mut dyn FnMut(usize),
) -> anyhow::Result<Vec<Vec<u32>>> {
    let shortest = prompts.iter().map(Vec::len).min().unwrap_or(0);
    let stop = model.generation().eos.clone();
    let options = GenerateOptions {
        max_new_tokens: length.saturating_sub(shortest).max(1),
        sampling: Sampling::Random { temperature: 1.0, top_k: None, top_p: 1.0, seed },
        stop: stop.clone(),
        ..Default::default()
    };
    let mut tokens = 0;
    let found = generate(decoder, prompts, &options, |_, _| {
        tokens += 1;
        on_tokens(tokens);
        ControlFlow::Continue(())
    })?;
    let end = stop.first().copied().filter(|&end| (end as usize) < model.config().vocab_size);
    let document = |(place, mut new): (usize, Vec<u32>)| {
        new.truncate(length.saturating_sub(prompts[place].len()));
        new.extend(end.filter(|_| found.finish[place] == Finish::Stop));
        new
    };
    Ok(found.tokens.into_iter().enumerate().map(document).collect())
}

/// What documents begin with: openings, and for a model made for conversations requests between them. Half a document at most.
fn prompts(
    tokenizer: &Tokenizer,
    chat: Option<&ChatTemplate>,
    length: usize,
) -> anyhow::Result<Vec<Vec<u32>>> {
    let mut requests = builtin::requests().cycle();
    let mut prompts = Vec::new();
    for opening in builtin::openings() {
        prompts.push(tokenizer.encode_prompt(opening)?);
        if let Some(chat) = chat {
            let request = requests.next().unwrap_or(opening);
            prompts.push(tokenizer.encode(&chat.render(&[Message::of_user(request)], true)?)?);
        }
    }
    prompts.iter_mut().for_each(|prompt| prompt.truncate((length / 2).max(1)));
    prompts.retain(|prompt| !prompt.is_empty());
    Ok(prompts)
}
