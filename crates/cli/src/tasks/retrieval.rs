//! `shrink eval --task retrieval`: lines of words and numbers, and one word asked again.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use train::eval::tasks::{Lookups, sequences_at_once};

use super::exam::{Exam, doubled};
use crate::error::UserError;
use crate::report;

const TRIALS: usize = 32;
/// The fewest and the most lines that are tried without being asked for.
const DEFAULT_PAIRS: (usize, usize) = (4, 64);
/// Tokens that a line takes at most, for the defaults: a longer one is refused where it does not fit.
const LINE_TOKENS: usize = 12;
/// Digits of a value.
const DIGITS: u32 = 4;
/// Tokens of an answer beyond those of a value.
const MARGIN_TOKENS: usize = 2;
/// Letters of a key.
const LETTERS: std::ops::RangeInclusive<usize> = 4..=8;
/// Tokens of the text that words are taken from at most.
const TEXT_TOKENS: usize = 100_000;

/// Asks for values.
pub fn run(exam: &Exam<'_>) -> anyhow::Result<()> {
    let trials = exam.trials(TRIALS);
    let counts = match exam.args.task.pairs.as_slice() {
        [] => doubled(DEFAULT_PAIRS.0, DEFAULT_PAIRS.1.min(exam.context() / LINE_TOKENS).max(1)),
        given => given.to_vec(),
    };
    let most = counts.iter().copied().max().unwrap_or(0);
    let words = words(exam, most)?;
    let values = exam.numbers(words.len(), DIGITS)?;
    let lookups = lookups(exam, &words, &values, counts, trials)?;
    let line = lookups.lines.iter().map(Vec::len).max().unwrap_or(0);
    let longest = (most * line + lookups.opening.len() + line + lookups.new_tokens).min(exam.context());
    let models = exam.load(sequences_at_once(longest).min(trials), longest)?;
    let prompts = lookups.counts.len() * trials;
    let all = if models.donor.is_some() { 2 * prompts } else { prompts };
    let mut task = exam.session.ui.task("looking up", all as u64);
    let right = |line: usize, new: &[u32]| exam.says(&lookups.questions[line], new, &values[line]);
    let found = lookups.ask(&models.model, &right, &mut |done| task.at(done as u64, all as u64))?;
    let mut on_donor = |done: usize| task.at((prompts + done) as u64, all as u64);
    let donor = models.donor.as_ref().map(|donor| lookups.ask(donor, &right, &mut on_donor)).transpose()?;
    task.finish();

    let percent = |share: f64| format!("{:.0}%", 100.0 * share);
    let listed = lookups.counts.iter().enumerate().map(|(i, count)| {
        let mut entry = json!({ "pairs": count, "accuracy": found[i] });
        if let Some(donor) = &donor {
            entry["donor"] = json!(donor[i]);
        }
        entry
    });
    let listed: Vec<Value> = listed.collect();
    let rows = lookups.counts.iter().enumerate().map(|(i, count)| {
        let mut row = vec![report::count(*count as u64), percent(found[i])];
        row.extend(donor.iter().map(|donor| percent(donor[i])));
        row
    });
    let header = ["lines", "right", "donor"];
    let header = if donor.is_some() { &header[..] } else { &header[..2] };
    exam.print(trials, json!({ "pairs": listed }), &report::table(header, &rows.collect::<Vec<_>>()))
}

fn lookups(
    exam: &Exam<'_>,
    words: &[String],
    values: &[String],
    counts: Vec<usize>,
    trials: usize,
) -> anyhow::Result<Lookups> {
    let tokenizer = &exam.tokenizer;
    let encode = |text: String| tokenizer.encode(&text);
    let pairs = || words.iter().zip(values);
    let lines =
        pairs().map(|(word, value)| encode(format!("{word}: {value}\n"))).collect::<Result<Vec<_>, _>>()?;
    let questions = words.iter().map(|word| encode(format!("{word}:"))).collect::<Result<Vec<_>, _>>()?;
    let answers =
        lines.iter().zip(&questions).map(|(line, question)| line.len().saturating_sub(question.len()));
    let new_tokens = answers.max().unwrap_or(0) + MARGIN_TOKENS;
    let opening = tokenizer.encode_prompt("")?;
    Ok(Lookups { opening, lines, questions, counts, trials, new_tokens, seed: exam.seed() })
}

/// The different words of the text in small letters, in the order of the alphabet.
///
/// # Errors
/// When there are fewer than `needed`.
fn words(exam: &Exam<'_>, needed: usize) -> anyhow::Result<Vec<String>> {
    let mut ids = exam.text(Some(TEXT_TOKENS))?;
    ids.truncate(TEXT_TOKENS);
    let text = exam.tokenizer.decode(&ids)?;
    let words: BTreeSet<&str> = text
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| word.chars().all(char::is_lowercase) && LETTERS.contains(&word.chars().count()))
        .collect();
    match words.len() < needed {
        true => Err(UserError::FewWords { words: words.len(), needed }.into()),
        false => Ok(words.into_iter().map(str::to_owned).collect()),
    }
}
