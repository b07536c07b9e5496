//! `bench train`: a step of `shrink train` beside cacheshrink's trainer.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::markdown::{bytes, table};
use super::peer::{Peer, PeerArgs};
use super::run::{Cost, Shrink, median, shown};
use super::setting::Setting;
use super::{Common, existing, write};
use crate::workspace::Workspace;

const MODEL: &str = "smollm2-135m-instruct";
const TEXT: &str = "text/calib.txt";
/// Windows a step, and tokens a window.
const BATCH: [usize; 2] = [4, 128];
/// What cacheshrink runs on; it wants them and does not bring them at these versions.
const PEERS: [&str; 4] = ["cacheshrink==0.1.5", "torch==2.15.0", "transformers==5.23.0", "geoopt==0.5.1"];
/// The most that we may take of cacheshrink's time, and of its memory.
const BOUND: f64 = 0.5;

/// What to measure.
#[derive(Debug, Args)]
pub struct Request {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    peer: PeerArgs,
    /// Rounds, in each of which both sides run; the table has medians
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
}

/// `train.json`.
#[derive(Debug, Serialize)]
struct Record {
    setting: Setting,
    model: &'static str,
    batch: usize,
    length: usize,
    steps: usize,
    /// What was run, as it could be typed.
    command: String,
    cases: Vec<Case>,
}

/// Both sides with one number of threads.
#[derive(Debug, Serialize)]
struct Case {
    threads: usize,
    ours: Vec<Step>,
    /// What the script printed each round.
    cacheshrink: Vec<Value>,
}

/// Our side of a round.
#[derive(Clone, Debug, Serialize)]
struct Step {
    /// The middle one of the round's steps.
    median_s: f64,
    cost: Cost,
}

/// Measures every case; whether the bound was kept.
///
/// # Errors
/// When the model or the text is missing, or one side cannot be installed or run.
pub fn run(workspace: &Workspace, request: &Request) -> Result<bool> {
    if request.rounds == 0 {
        bail!("--rounds is 0; at least 1 is needed");
    }
    let (models, out) = (request.common.models()?, request.common.out(workspace)?);
    let (model, text) = (existing(models.join(MODEL))?, existing(models.join(TEXT))?);
    let peer = request.peer.peer(workspace, &PEERS)?;
    let shrink = request.common.shrink(workspace)?;
    let (rounds, steps) = if request.common.quick { (1, 2) } else { (request.rounds, 7) };
    let converted = shrink.scratch().join("converted");
    // What is in the matrices does not matter here, so a conversion without text will do.
    let convert = ["convert", "--compression-ratio", "4", "--no-calibration", "--output"].map(OsString::from);
    shrink.json(&convert.into_iter().chain([(&converted).into(), (&model).into()]).collect::<Vec<_>>())?;
    let typed = arguments(Path::new("converted"), Path::new("out"), Path::new("calib.txt"), steps);
    let mut record = Record {
        setting: request.common.setting(workspace, shrink.version()),
        model: MODEL,
        batch: BATCH[0],
        length: BATCH[1],
        steps,
        command: format!("shrink {}", shown(&typed)),
        cases: Vec::new(),
    };
    for threads in [1, 2] {
        let mut case = Case { threads, ours: Vec::new(), cacheshrink: Vec::new() };
        // Each round has both, so that whatever else the machine does befalls both.
        for round in 1..=rounds {
            println!("==> {threads} thread(s), round {round} of {rounds}");
            case.ours.push(ours(&shrink, &converted, &text, steps, threads)?);
            case.cacheshrink.push(theirs(workspace, &peer, [&model, &text], steps, threads)?);
        }
        record.cases.push(case);
        write(&out.join("train.json"), &(serde_json::to_string_pretty(&record)? + "\n"))?;
        write(&out.join("train.md"), &page(&record)?)?;
    }
    let shares = record.cases.iter().map(Case::shares).collect::<Result<Vec<_>>>()?;
    Ok(shares.iter().flatten().all(|&share| share <= BOUND))
}

fn arguments(model: &Path, out: &Path, text: &Path, steps: usize) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["train".into(), model.into(), "--output".into(), out.into()];
    args.extend(["--data".into(), text.into()]);
    let numbers = [
        ("--batch-size", BATCH[0]),
        ("--max-length", BATCH[1]),
        ("--max-steps", steps + 1),
        ("--logging-steps", 1),
    ];
    args.extend(numbers.iter().flat_map(|(flag, number)| [OsString::from(flag), number.to_string().into()]));
    args.extend(["--loss".into(), "distillation".into()]);
    args
}

fn ours(shrink: &Shrink, model: &Path, text: &Path, steps: usize, threads: usize) -> Result<Step> {
    let out = shrink.scratch().join("trained");
    let run = shrink.scratch().join("trained.run");
    let (_, cost) = shrink.timed_with(&arguments(model, &out, text, steps), Some(threads))?;
    let log = fs::read_to_string(run.join("log.jsonl")).context("the run has no log")?;
    for folder in [&out, &run] {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let median_s = step_time(&log).context("the log has no two steps")?;
    Ok(Step { median_s, cost })
}

/// The median time between two lines of a log; the first step pays for threads and pages.
fn step_time(log: &str) -> Option<f64> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let ends: Vec<f64> = lines.filter_map(|line| line["elapsed_s"].as_f64()).collect();
    median(ends.windows(2).map(|pair| pair[1] - pair[0]).collect())
}

fn theirs(
    workspace: &Workspace,
    peer: &Peer,
    [model, text]: [&Path; 2],
    steps: usize,
    threads: usize,
) -> Result<Value> {
    let numbers = [BATCH[0], BATCH[1], steps].map(|number| number.to_string());
    let args: Vec<String> =
        [model, text].map(|path| path.display().to_string()).into_iter().chain(numbers).collect();
    peer.json(&workspace.root.join("xtask/bench/train.py"), &args, threads)
}

impl Case {
    /// Medians over rounds: our time, our memory, theirs.
    fn medians(&self) -> Result<[f64; 4]> {
        let theirs = |field: &str| -> Option<f64> {
            let found: Option<Vec<f64>> =
                self.cacheshrink.iter().map(|round| round[field].as_f64()).collect();
            median(found?)
        };
        let numbers = [
            median(self.ours.iter().map(|step| step.median_s).collect()),
            median(self.ours.iter().map(|step| step.cost.peak_bytes as f64).collect()),
            theirs("median_s"),
            theirs("peak_bytes"),
        ];
        match numbers {
            [Some(time), Some(memory), Some(their_time), Some(their_memory)] => {
                Ok([time, memory, their_time, their_memory])
            }
            _ => bail!("a round printed no median_s or peak_bytes"),
        }
    }

    /// Our share of their time and of their memory.
    fn shares(&self) -> Result<[f64; 2]> {
        let [time, memory, their_time, their_memory] = self.medians()?;
        Ok([time / their_time, memory / their_memory])
    }
}

fn page(record: &Record) -> Result<String> {
    let titles = [
        "threads",
        "shrink, s a step",
        "cacheshrink",
        "share",
        "shrink, peak memory",
        "cacheshrink",
        "share",
    ];
    let mut rows = Vec::new();
    for case in &record.cases {
        let [time, memory, their_time, their_memory] = case.medians()?;
        let [of_time, of_memory] = case.shares()?;
        rows.push(vec![
            case.threads.to_string(),
            format!("{time:.2}"),
            format!("{their_time:.2}"),
            format!("**{of_time:.2}**"),
            bytes(memory),
            bytes(their_memory),
            format!("**{of_memory:.2}**"),
        ]);
    }
    Ok(format!(
        "# A step of training\n\n\
         Made by `cargo xtask bench train`; every round is in [train.json](train.json).\n\n\
         {model} converted at 4x by `separate`, in f32, distilled from its donor on batches of {batch} windows of {length} tokens: \
         `shrink train`, and cacheshrink 0.1.5's own trainer on torch with its default settings. A step is forward and \
         backward pass of the model, forward pass of the donor, and both optimisers. Medians of {rounds} round(s), in each of \
         which both run; a round's own time is the median of {steps} steps after the first. Memory is the most that was resident: \
         of shrink from start to end, of cacheshrink while it trained, after what its conversion left was given back.\n\n\
         The bound: a share of at most {BOUND} of each.\n\n\
         {table}\n\
         Measured {setting}:\n\n```text\n{command}\n```\n",
        model = record.model,
        batch = record.batch,
        length = record.length,
        rounds = record.cases.first().map_or(0, |case| case.ours.len()),
        steps = record.steps,
        table = table(&titles.map(str::to_owned), 1, &rows),
        setting = record.setting.line(),
        command = record.command,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn case(ours: f64, theirs: f64) -> Case {
        let cost = Cost { wall_s: 1.0, cpu_s: 1.0, peak_bytes: (ours * 1e9) as u64 };
        let cacheshrink = vec![json!({ "median_s": theirs, "peak_bytes": theirs * 1e9 })];
        Case { threads: 1, ours: vec![Step { median_s: ours, cost }], cacheshrink }
    }

    #[test]
    fn a_row_says_what_share_we_take() {
        let record = Record {
            setting: Setting::now(Path::new("/"), "shrink".into()),
            model: MODEL,
            batch: 4,
            length: 128,
            steps: 7,
            command: "shrink train".into(),
            cases: vec![case(1.5, 6.0)],
        };
        let page = page(&record).expect("complete");
        assert!(page.contains("| 1 | 1.50 | 6.00 | **0.25** |"), "{page}");
    }

    #[test]
    fn a_round_without_its_number_is_an_error() {
        let mut broken = case(1.0, 1.0);
        broken.cacheshrink[0]["peak_bytes"] = Value::Null;
        assert!(broken.shares().is_err());
    }

    #[test]
    fn a_steps_time_lies_between_two_lines_of_the_log() {
        let log = "{\"step\": 0}\n{\"elapsed_s\": 9.0}\n{\"elapsed_s\": 10.0}\n{\"elapsed_s\": 14.0}\n{\"elapsed_s\": 16.0}\n";
        assert_eq!(step_time(log), Some(2.0));
        assert_eq!(step_time("{\"elapsed_s\": 9.0}\n"), None);
    }
}
