//! `shrink eval --task agreement`: greedy continuations beside the donor's.

use serde_json::{Value, json};
use train::eval::tasks::{agreement, excerpts, sequences_at_once};

use super::exam::Exam;
use crate::report;

const TRIALS: usize = 16;
const NEW_TOKENS: usize = 64;
/// Tokens of context without being asked for.
const DEFAULT_LENGTH: usize = 512;

/// Continues excerpts of a text with both models.
pub fn run(exam: &Exam<'_>) -> anyhow::Result<()> {
    let new_tokens = exam.args.task.max_new_tokens.unwrap_or(NEW_TOKENS);
    let lengths = match exam.args.task.lengths.is_empty() {
        true => vec![DEFAULT_LENGTH.min(exam.context())],
        false => exam.lengths()?,
    };
    let trials = exam.trials(TRIALS);
    let opening = exam.tokenizer.encode_prompt("")?;
    let text = exam.text(None)?;
    let cut = |&length: &usize| excerpts(&text, &opening, length.saturating_sub(new_tokens), trials);
    let prompts = lengths.iter().map(cut).collect::<Result<Vec<_>, _>>()?;
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let models = exam.load(sequences_at_once(longest).min(trials), longest)?;
    let Some(donor) = &models.donor else { anyhow::bail!("agreement has no donor to agree with") };
    let all = 2 * prompts.iter().map(Vec::len).sum::<usize>();
    let mut task = exam.session.ui.task("continuing", all as u64);
    let (mut before, mut rows, mut listed) = (0, Vec::new(), Vec::new());
    for (length, prompts) in lengths.iter().zip(&prompts) {
        let mut on_done = |done: usize| task.at((before + done) as u64, all as u64);
        let found = agreement(&models.model, donor, prompts, new_tokens, &mut on_done)?;
        before += 2 * prompts.len();
        rows.push(vec![
            report::count(*length as u64),
            found.prompts.to_string(),
            format!("{:.1} of {new_tokens}", found.common_tokens),
            format!("{:.1}%", 100.0 * found.equal_tokens),
            format!("{:.0}%", 100.0 * found.equal_wholes),
        ]);
        listed.push(json!({
            "tokens": length,
            "prompts": found.prompts,
            "common_tokens": found.common_tokens,
            "equal_tokens": found.equal_tokens,
            "equal_wholes": found.equal_wholes,
        }));
    }
    task.finish();
    let header = ["tokens", "prompts", "in common from the start", "equal tokens", "equal as a whole"];
    let found: Value = json!({ "max_new_tokens": new_tokens, "lengths": listed });
    exam.print(trials, found, &report::table(&header, &rows))
}
