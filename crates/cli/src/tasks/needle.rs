//! `shrink eval --task needle`: a pass key hidden in text (Mohtashami & Jaggi 2023).

use std::collections::HashMap;

use serde_json::{Value, json};
use train::eval::tasks::{Found, Haystack, Passkeys, sequences_at_once};

use super::exam::Exam;
use crate::report;

/// What every prompt begins with.
const OPENING: &str = "There is important information hidden inside a lot of irrelevant text. Find it and memorize it. I will \
                       quiz you about the important information.\n";
/// What every prompt ends with.
const QUESTION: &str = "\nWhat is the pass key? The pass key is";
/// Digits of a key.
const DIGITS: u32 = 5;
/// Tokens of an answer beyond those of a key: a word or a quotation mark may come before it.
const MARGIN_TOKENS: usize = 4;
/// Filler that is read for each token that is wanted, so that trials begin at different places.
const READ_FOR_EACH: usize = 8;
/// The share of what the donor finds that a model is to find, to hold at a length.
const HOLDS: f64 = 0.95;

const TRIALS: usize = 4;
const DEPTHS: [f64; 5] = [0.1, 0.3, 0.5, 0.7, 0.9];

/// Hides keys and asks for them.
pub fn run(exam: &Exam<'_>) -> anyhow::Result<()> {
    let lengths = exam.lengths()?;
    let depths = match exam.args.task.depths.as_slice() {
        [] => DEPTHS.to_vec(),
        given => given.to_vec(),
    };
    let keys = exam.numbers(exam.trials(TRIALS), DIGITS)?;
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let passkeys = passkeys(exam, &keys, lengths, depths, longest)?;
    let question = passkeys.haystack.question.clone();
    let prompts = passkeys.prompts()?.len();
    let cases = keys.len() * passkeys.depths.len();
    let at_once = passkeys.lengths.iter().map(|&length| (sequences_at_once(length).min(cases), length));
    let (sequences, length) =
        at_once.max_by_key(|(sequences, length)| sequences * length).unwrap_or((1, longest));
    let models = exam.load(sequences, length)?;
    let all = if models.donor.is_some() { 2 * prompts } else { prompts };
    let mut task = exam.session.ui.task("finding keys", all as u64);
    let right = |trial: usize, new: &[u32]| exam.says(&question, new, &keys[trial]);
    let found = passkeys.ask(&models.model, &right, &mut |done| task.at(done as u64, all as u64))?;
    let mut on_donor = |done: usize| task.at((prompts + done) as u64, all as u64);
    let donor = models.donor.as_ref().map(|donor| passkeys.ask(donor, &right, &mut on_donor)).transpose()?;
    task.finish();
    print(exam, &passkeys, &found, donor.as_ref())
}

fn passkeys(
    exam: &Exam<'_>,
    keys: &[String],
    lengths: Vec<usize>,
    depths: Vec<f64>,
    longest: usize,
) -> anyhow::Result<Passkeys> {
    let tokenizer = &exam.tokenizer;
    let sentence = |key: &String| format!("\nThe pass key is {key}. Remember it. {key} is the pass key.\n");
    let needles = keys.iter().map(|key| tokenizer.encode(&sentence(key))).collect::<Result<Vec<_>, _>>()?;
    let answers =
        keys.iter().map(|key| tokenizer.encode(&format!(" {key}"))).collect::<Result<Vec<_>, _>>()?;
    let new_tokens = answers.iter().map(Vec::len).max().unwrap_or(0) + MARGIN_TOKENS;
    let filler = exam.text(Some(longest.saturating_mul(READ_FOR_EACH)))?;
    let haystack = Haystack {
        opening: tokenizer.encode_prompt(OPENING)?,
        breaks: breaks(exam, &filler)?,
        filler,
        question: tokenizer.encode(QUESTION)?,
    };
    Ok(Passkeys { haystack, needles, lengths, depths, new_tokens, seed: exam.seed() })
}

/// The start, and every place behind a token that ends a line or a sentence.
fn breaks(exam: &Exam<'_>, filler: &[u32]) -> anyhow::Result<Vec<usize>> {
    let mut ends: HashMap<u32, bool> = HashMap::new();
    let mut breaks = vec![0];
    for (place, &token) in filler.iter().enumerate() {
        let is_end = match ends.get(&token) {
            Some(&is_end) => is_end,
            None => {
                let is_end = exam.tokenizer.decode(&[token])?.ends_with(['\n', '.', '!', '?', '。']);
                ends.insert(token, is_end);
                is_end
            }
        };
        if is_end {
            breaks.push(place + 1);
        }
    }
    Ok(breaks)
}

fn print(exam: &Exam<'_>, passkeys: &Passkeys, found: &Found, donor: Option<&Found>) -> anyhow::Result<()> {
    let (lengths, depths) = (&passkeys.lengths, &passkeys.depths);
    let of = |found: &Found, length: usize| {
        let by_depth = depths
            .iter()
            .enumerate()
            .map(|(i, depth)| json!({ "depth": depth, "found": found.at(length, i) }));
        (found.of_length(length), by_depth.collect::<Vec<Value>>())
    };
    let mut rows = Vec::new();
    let mut listed = Vec::new();
    for (i, length) in lengths.iter().enumerate() {
        let (share, by_depth) = of(found, i);
        let mut entry = json!({ "tokens": length, "found": share, "by_depth": by_depth });
        let mut row = vec![report::count(*length as u64)];
        row.extend((0..depths.len()).map(|depth| percent(found.at(i, depth))));
        row.push(percent(share));
        if let Some(donor) = donor {
            let (share, by_depth) = of(donor, i);
            let kept = found.of_the_donors(donor, i);
            entry["donor"] = json!({ "found": share, "by_depth": by_depth });
            entry["of_the_donors"] = json!(kept);
            row.extend([percent(share), kept.map_or("–".into(), percent)]);
        }
        rows.push(row);
        listed.push(entry);
    }
    let mut header: Vec<String> = vec!["tokens".into()];
    header.extend(depths.iter().map(|depth| format!("at {depth}")));
    header.push("found".into());
    header.extend(donor.iter().flat_map(|_| ["donor".into(), "of the donor's".into()]));
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut object = json!({ "lengths": listed });
    let mut text = report::table(&header, &rows);
    if let Some((donor, title)) = donor.zip(exam.donor_title()) {
        let holds_to = found.holds_to(donor, HOLDS).map(|length| lengths[length]);
        object["holds_to"] = json!(holds_to);
        text += &match holds_to {
            Some(length) => format!(
                "finds {} or more of what {title} finds at up to {} tokens\n",
                percent(HOLDS),
                report::count(length as u64)
            ),
            None => format!("finds {} of what {title} finds at no length\n", percent(HOLDS)),
        };
    }
    exam.print(passkeys.needles.len(), object, &text)
}

fn percent(share: f64) -> String {
    format!("{:.0}%", 100.0 * share)
}
