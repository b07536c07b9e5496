//! `bench plan`: what the planner of rank and bits finds at each size of the cache, and what it costs in perplexity.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::markdown::table;
use super::run::shown;
use super::setting::Setting;
use super::{Common, existing, write};
use crate::workspace::Workspace;

const MODEL: &str = "smollm2-135m-instruct";
const CALIBRATION: &str = "text/calib.txt";
/// What perplexity is measured on; bounds are those of the first.
const TEXTS: [&str; 2] = ["text/heldout.txt", "text/mobydick.txt"];
/// The donor's cache in bf16 over the new one's, and the perplexity that may cost, over the donor's.
const TARGETS: [(f64, f64); 4] = [(4.0, 1.03), (6.4, 1.04), (8.0, 1.09), (12.8, 1.18)];

/// What to measure.
#[derive(Debug, Args)]
pub struct Request {
    #[command(flatten)]
    common: Common,
    /// Keep the targets that plan.json holds already, and measure the rest only
    #[arg(long)]
    resume: bool,
}

/// `plan.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    setting: Setting,
    command: String,
    /// The donor's perplexity on each text.
    donor: Vec<f64>,
    cases: Vec<Case>,
}

/// One target.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Case {
    target: f64,
    most: f64,
    /// Perplexity on each text.
    perplexity: Vec<f64>,
    /// The donor's bytes in bf16 over those that were allocated.
    allocated: f64,
    /// When, and with what.
    setting: Setting,
    /// What `shrink convert --json` said.
    found: Value,
}

impl Case {
    fn ratio(&self, record: &Record, text: usize) -> f64 {
        self.perplexity[text] / record.donor[text]
    }

    /// Whether perplexity and bytes are within the bounds.
    fn kept(&self, record: &Record) -> bool {
        self.ratio(record, 0) <= self.most && self.allocated >= self.target
    }
}

/// Measures every target and writes the record and the page. Whether the bounds were kept.
///
/// # Errors
/// When the model or a text is missing, or the program fails.
pub fn run(workspace: &Workspace, request: &Request) -> Result<bool> {
    let (models, out) = (request.common.models()?, request.common.out(workspace)?);
    let model = existing(models.join(MODEL))?;
    let calibration = existing(models.join(CALIBRATION))?;
    let shrink = request.common.shrink(workspace)?;
    let (samples, windows) = if request.common.quick { ("2", "1") } else { ("32", "10") };
    let texts: Vec<_> = TEXTS.iter().map(|text| existing(models.join(text))).collect::<Result<_>>()?;
    let score = |folder: &Path| -> Result<Vec<Value>> {
        let one = |text: &std::path::PathBuf| {
            let args = ["eval".into(), folder.into(), "--data".into(), text.into()];
            let all: Vec<std::ffi::OsString> =
                args.into_iter().chain(["--windows".into(), windows.into()]).collect();
            println!("==> shrink {}", shown(&all));
            shrink.json(&all)
        };
        texts.iter().map(one).collect()
    };
    let perplexity = |found: &[Value]| -> Result<Vec<f64>> {
        found.iter().map(|found| found["perplexity"].as_f64().context("no perplexity")).collect()
    };
    let convert = |model: &Path, output: &Path, text: &Path, target: &str| -> Vec<std::ffi::OsString> {
        let mut args = vec!["convert".into(), model.into(), "-o".into(), output.into()];
        args.extend(["--target".into(), target.into(), "--calibration".into(), text.into()]);
        args.extend(["--num-calibration-samples".into(), samples.into()]);
        args
    };
    let typed = ["$SHRINK_MODELS", "out"].map(Path::new);
    let command = convert(&typed[0].join(MODEL), typed[1], &typed[0].join(CALIBRATION), "TARGETx");
    let path = out.join("plan.json");
    let mut record = match request.resume && path.exists() {
        true => serde_json::from_str(&fs::read_to_string(&path)?)
            .with_context(|| format!("{} is no record of this benchmark", path.display()))?,
        false => Record {
            setting: request.common.setting(workspace, shrink.version()),
            command: format!("shrink {}", shown(&command)),
            donor: perplexity(&score(&model)?)?,
            cases: Vec::new(),
        },
    };
    for (target, most) in TARGETS {
        if record.cases.iter().any(|case| case.target == target) {
            println!("==> {target}x: kept");
            continue;
        }
        let output = shrink.scratch().join("out");
        let args = convert(&model, &output, &calibration, &format!("{target}x"));
        println!("==> shrink {}", shown(&args));
        let mut found = shrink.json(&args)?;
        found["output"] = "out".into();
        let scored = score(&output)?;
        let cache = |field: &str| scored[0]["cache"][field].as_f64().context("no cache");
        let allocated = cache("donor_bytes")? / cache("bytes")?;
        let setting = request.common.setting(workspace, shrink.version());
        record.cases.push(Case { target, most, perplexity: perplexity(&scored)?, allocated, setting, found });
        record.cases.sort_by(|a, b| a.target.total_cmp(&b.target));
        fs::remove_dir_all(&output).with_context(|| format!("cannot remove {}", output.display()))?;
        write(&path, &(serde_json::to_string_pretty(&record)? + "\n"))?;
        write(&out.join("plan.md"), &page(&record))?;
    }
    write(&out.join("plan.md"), &page(&record))?;
    Ok(record.cases.iter().all(|case| case.kept(&record)))
}

fn page(record: &Record) -> String {
    let titles = ["target", "allocated", "plan", "heldout", "at most", "", "mobydick"];
    let row = |case: &Case| {
        let ratio = case.ratio(record, 0);
        let chosen = case.found["trials"].as_array().and_then(|all| all.iter().find(|t| t["chosen"] == true));
        let name = chosen.map_or("–", |trial| trial["name"].as_str().unwrap_or("–"));
        vec![
            format!("{}x", case.target),
            format!("{:.2}x", case.allocated),
            name.to_owned(),
            format!("{:.2} ({ratio:.3}×)", case.perplexity[0]),
            format!("{:.2}×", case.most),
            if case.kept(record) { "kept" } else { "**not kept**" }.to_owned(),
            format!("{:.2} ({:.3}×)", case.perplexity[1], case.ratio(record, 1)),
        ]
    };
    let rows: Vec<Vec<String>> = record.cases.iter().map(row).collect();
    let frontiers: String = record.cases.iter().map(frontier).collect();
    format!(
        "# Rank and bits together\n\n\
         Made by `cargo xtask bench plan`; all of it is in [plan.json](plan.json). What `shrink convert --target` chose for \
         SmolLM2-135M-Instruct, calibrated on 32 windows of 512 tokens of `calib.txt`, without training: perplexity on the \
         first 10 windows of each text, and over the donor's ({:.2} and {:.2}). *Allocated* is the donor's cache in bf16 over \
         the bytes of the new one, scales and offsets included.\n\n{}\n\
         What it chose from, at each target. *Foretold* is the second-order prediction of the KL to the donor, *measured* the \
         KL on held-back calibration text, in nats a token.\n{frontiers}\n\
         Measured {}:\n\n```text\n{}\n```\n",
        record.donor[0],
        record.donor[1],
        table(&titles.map(str::to_owned), 3, &rows),
        record.setting.line(),
        record.command,
    )
}

/// What was tried at a target.
fn frontier(case: &Case) -> String {
    let number = |trial: &Value, field: &str| trial[field].as_f64().unwrap_or(f64::NAN);
    let row = |trial: &Value| {
        let mark = if trial["chosen"] == true { "**" } else { "" };
        vec![
            format!("{mark}{}{mark}", trial["name"].as_str().unwrap_or("–")),
            format!("{:.2}x", number(trial, "compression_ratio")),
            format!("{:.2}x", number(trial, "cache_ratio")),
            format!("{:.4}", number(trial, "predicted") / 2.0),
            format!("{:.4}", number(trial, "kl")),
            format!("{:.0} M", number(trial, "decode_multiply_adds") / 1e6),
        ]
    };
    let titles = ["plan", "numbers", "bytes", "foretold", "measured", "decode at 4096"];
    let trials: Vec<Vec<String>> = case.found["trials"].as_array().into_iter().flatten().map(row).collect();
    format!("\n## {}x\n\n{}", case.target, table(&titles.map(str::to_owned), 1, &trials))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(perplexity: f64, allocated: f64) -> Record {
        let setting = || Setting::now(Path::new("/"), "shrink".into());
        let trial = |name: &str, chosen: bool| {
            json!({
                "name": name, "compression_ratio": 2.0, "cache_ratio": 6.4, "predicted": 0.02, "kl": 0.03,
                "decode_multiply_adds": 5e6, "chosen": chosen,
            })
        };
        let found = json!({ "trials": [trial("joint int4", false), trial("cascade int4", true)] });
        let case = Case {
            target: 6.4,
            most: 1.04,
            perplexity: vec![perplexity, 60.0],
            allocated,
            setting: setting(),
            found,
        };
        Record {
            setting: setting(),
            command: "shrink convert".into(),
            donor: vec![20.0, 50.0],
            cases: vec![case],
        }
    }

    #[test]
    fn a_target_is_kept_in_perplexity_and_in_bytes() {
        let kept = page(&record(20.6, 6.41));
        assert!(
            kept.contains("| 6.4x | 6.41x | cascade int4 | 20.60 (1.030×) | 1.04× | kept | 60.00 (1.200×) |"),
            "{kept}"
        );
        assert!(kept.contains("| **cascade int4** | 2.00x | 6.40x | 0.0100 | 0.0300 | 5 M |"), "{kept}");
        for broken in [record(20.9, 6.41), record(20.6, 6.3)] {
            assert!(page(&broken).contains("**not kept**"));
        }
    }
}
