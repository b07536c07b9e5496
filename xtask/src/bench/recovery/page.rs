//! `recovery.md`.

use anyhow::{Context, Result};

use super::super::markdown::{bytes, table};
use super::record::{Record, Run, conversions};

/// The page of a record.
///
/// # Errors
/// When nothing was run.
pub fn page(record: &Record) -> Result<String> {
    let protocol = &record.protocol;
    let names: Vec<&str> = protocol.texts.iter().map(|text| text.trim_end_matches(".txt")).collect();
    let date = |run: &&Run| run.setting.as_ref().map(|setting| setting.date.clone());
    let last = record.runs.iter().max_by_key(date).context("nothing was run")?;
    let donor: Vec<String> =
        names.iter().zip(&record.donor).map(|(name, donor)| format!("{donor:.3} on `{name}.txt`")).collect();
    let mut text = format!(
        "# What training brings back\n\n\
         Made by `cargo xtask bench recovery`; every run is in [recovery.json](recovery.json).\n\n\
         SmolLM2-135M-Instruct, converted with `--objective fisher --ranks global` on {windows} windows of {length} tokens of \
         `{training}`, and trained on the same text for {steps} steps of {batch} windows of {tokens} tokens. Measured on the \
         first {measured} windows of {measured_length} tokens of {texts}, where the donor has {donor}. *Back* is the share of the \
         lost log-perplexity that came back: 100% is the donor's perplexity. Rates are those of W_down (AdamW) and of W_up \
         (Riemannian Adam); each conversion's best is bold. Minutes are of runs beside other work, on one thread or two.\n\n\
         Training on a text lowers perplexity on text of its kind by itself. *donor* is the control: the model at full rank, \
         which loses nothing, with the same matrices trained in the same way. What it gains was not lost.\n",
        windows = protocol.calibration[0],
        length = protocol.calibration[1],
        training = protocol.training,
        steps = protocol.steps,
        batch = protocol.batch[0],
        tokens = protocol.batch[1],
        measured = protocol.windows,
        measured_length = protocol.window_length,
        texts = protocol.texts.iter().map(|text| format!("`{text}`")).collect::<Vec<_>>().join(" and "),
        donor = donor.join(", "),
    );
    for conversion in conversions() {
        let runs: Vec<&Run> = record.runs.iter().filter(|run| run.conversion == conversion.name).collect();
        if runs.is_empty() {
            continue;
        }
        text += &format!("\n## {}\n\n{}", conversion.name, runs_table(&runs, &names, &record.donor));
    }
    let setting = last.setting.as_ref().map_or(String::new(), |setting| setting.line());
    text += &format!("\nThe last run: {setting}:\n\n```text\n{}\n```\n", last.command);
    Ok(text)
}

fn runs_table(runs: &[&Run], names: &[&str], donor: &[f64]) -> String {
    let mut titles = vec!["loss".to_owned(), "rates".to_owned()];
    for name in names {
        titles.extend([format!("{name} before"), "after".to_owned(), "back".to_owned()]);
    }
    titles.extend(["minutes", "peak memory", "off Stiefel"].map(str::to_owned));
    let best = runs.iter().map(|run| run.after[0]).fold(f64::INFINITY, f64::min);
    let row = |run: &&Run| {
        let trained = &run.trained;
        let of = if trained.is_cacheshrinks { " (cacheshrink)" } else { "" };
        let mut cells = vec![
            trained.loss.clone(),
            format!("{:e}, {:e}{of}", trained.euclidean_lr, trained.riemannian_lr),
        ];
        let recovered = run.recovered(donor);
        for (text, share) in recovered.iter().enumerate() {
            let after = format!("{:.3}", run.after[text] / donor[text]);
            let after = if text == 0 && run.after[0] == best { format!("**{after}**") } else { after };
            let share = share.map_or("–".to_owned(), |share| format!("{:.0}%", 100.0 * share));
            cells.extend([format!("{:.3}", run.before[text] / donor[text]), after, share]);
        }
        cells.extend([
            format!("{:.1}", run.train_s / 60.0),
            bytes(run.peak_bytes as f64),
            format!("{:.0e}", run.orthonormality),
        ]);
        cells
    };
    table(&titles, 2, &runs.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::super::record::Protocol;
    use super::*;

    #[test]
    fn a_run_stands_with_what_it_brought_back() {
        let trained = conversions()[0].trained();
        let run = |at: usize, after: f64| Run {
            conversion: "separate 4x".into(),
            trained: trained[at].clone(),
            command: "shrink train".into(),
            setting: None,
            elapsed_s: 700.0,
            train_s: 600.0,
            peak_bytes: 1 << 30,
            orthonormality: 3e-7,
            before: vec![40.0, 20.0],
            after: vec![after, 20.0],
        };
        let record = Record {
            protocol: Protocol::full(),
            donor: vec![10.0, 10.0],
            runs: vec![run(0, 40.0), run(1, 20.0)],
        };
        let page = page(&record).expect("a run");
        let rows = [
            "| reconstruction | 1e-5, 1e-4 (cacheshrink) | 4.000 | 4.000 | 0% | 2.000 | 2.000 | 0% | 10.0 | 1.00 GiB | 3e-7 |",
            "4.000 | **2.000** | 50% |",
        ];
        for row in rows {
            assert!(page.contains(row), "{row}\n{page}");
        }
        assert!(!page.contains("## donor"));
    }
}
