//! `shrink eval --task copy`: random tokens, and the same again.

use serde_json::{Value, json};
use train::eval::tasks::{Copied, Copies};

use super::exam::Exam;
use crate::report;

const TRIALS: usize = 4;
/// Tokens of the text that sequences are drawn from at most.
const TEXT_TOKENS: usize = 100_000;

/// Scores second copies.
pub fn run(exam: &Exam<'_>) -> anyhow::Result<()> {
    let lengths = exam.lengths()?;
    let trials = exam.trials(TRIALS);
    let mut text = exam.text(Some(TEXT_TOKENS))?;
    text.truncate(TEXT_TOKENS);
    let opening = exam.tokenizer.encode_prompt("")?;
    let copies = Copies { opening, text, lengths, trials, seed: exam.seed() };
    let models = exam.load(1, copies.lengths.iter().copied().max().unwrap_or(0))?;
    let sequences = copies.lengths.len() * trials;
    let all = if models.donor.is_some() { 2 * sequences } else { sequences };
    let mut task = exam.session.ui.task("copying", all as u64);
    let found = copies.measure(&models.model, &mut |done| task.at(done as u64, all as u64))?;
    let mut on_donor = |done: usize| task.at((sequences + done) as u64, all as u64);
    let donor = models.donor.as_ref().map(|donor| copies.measure(donor, &mut on_donor)).transpose()?;
    task.finish();

    let listed = copies.lengths.iter().enumerate().map(|(i, length)| {
        let mut entry = object(&found[i]);
        entry["tokens"] = json!(length);
        if let Some(donor) = &donor {
            entry["donor"] = object(&donor[i]);
        }
        entry
    });
    let listed: Vec<Value> = listed.collect();
    let rows = copies.lengths.iter().enumerate().map(|(i, length)| {
        let mut row = vec![report::count(*length as u64)];
        row.extend(cells(&found[i]));
        row.extend(donor.iter().flat_map(|donor| cells(&donor[i])));
        row
    });
    let header = ["tokens", "copied", "nll", "donor copied", "donor nll"];
    let header = if donor.is_some() { &header[..] } else { &header[..3] };
    exam.print(trials, json!({ "lengths": listed }), &report::table(header, &rows.collect::<Vec<_>>()))
}

fn object(copied: &Copied) -> Value {
    json!({ "scored": copied.tokens, "accuracy": copied.accuracy, "nll": copied.nll })
}

fn cells(copied: &Copied) -> [String; 2] {
    [format!("{:.1}%", 100.0 * copied.accuracy), format!("{:.3}", copied.nll)]
}
