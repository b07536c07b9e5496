//! `bench stiefel`: a step of Riemannian Adam beside geoopt's.

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::markdown::table;
use super::peer::{Peer, PeerArgs, nice, threaded_json};
use super::run::median;
use super::setting::Setting;
use super::{Common, write};
use crate::workspace::{Workspace, cargo};

/// Rows, columns and learning rate. The first is the one that has a bound.
const CASES: [(usize, usize, f64); 4] =
    [(4096, 1024, 1e-4), (4096, 1024, 1e-2), (576, 192, 1e-4), (192, 48, 1e-4)];
/// How many times as fast as geoopt the first case has to be.
const BOUND: f64 = 3.0;
const PEERS: [&str; 2] = ["torch==2.15.0", "geoopt==0.5.1"];

/// What to measure.
#[derive(Debug, Args)]
pub struct Request {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    peer: PeerArgs,
    /// Rounds, in each of which both sides run; the table has medians
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
}

/// `stiefel.json`.
#[derive(Debug, Serialize)]
struct Record {
    setting: Setting,
    rounds: usize,
    cases: Vec<Case>,
}

/// One size with one number of threads.
#[derive(Debug, Serialize)]
struct Case {
    rows: usize,
    columns: usize,
    learning_rate: f64,
    threads: usize,
    /// What each round printed.
    ours: Vec<Value>,
    geoopt: Vec<Value>,
}

/// Measures every case; whether the bound was kept.
///
/// # Errors
/// When the example or geoopt cannot be built, installed or run.
pub fn run(workspace: &Workspace, request: &Request) -> Result<bool> {
    if request.rounds == 0 {
        bail!("--rounds is 0; at least 1 is needed");
    }
    let out = request.common.out(workspace)?;
    let peer = request.peer.peer(workspace, &PEERS)?;
    let build = ["build", "--release", "--workspace", "--example", "step_time"];
    if !cargo(&workspace.root).args(build).status().context("cannot run cargo")?.success() {
        bail!("the example could not be built");
    }
    let (rounds, steps) = if request.common.quick { (1, 1) } else { (request.rounds, 7) };
    let program = env!("CARGO_PKG_VERSION");
    let mut record = Record {
        setting: Setting::now(&workspace.root, format!("stiefel-optim {program}")),
        rounds,
        cases: Vec::new(),
    };
    for threads in [1, 2] {
        for (rows, columns, learning_rate) in CASES {
            println!("==> {rows} x {columns}, rate {learning_rate}, {threads} thread(s)");
            let args = [rows.to_string(), columns.to_string(), learning_rate.to_string(), steps.to_string()];
            let mut case =
                Case { rows, columns, learning_rate, threads, ours: Vec::new(), geoopt: Vec::new() };
            // Each round has both, so that whatever else the machine does befalls both.
            for _ in 0..rounds {
                case.round(workspace, &peer, &args)?;
            }
            record.cases.push(case);
        }
    }
    write(&out.join("stiefel.json"), &(serde_json::to_string_pretty(&record)? + "\n"))?;
    write(&out.join("stiefel.md"), &page(&record)?)?;
    let bounded = record.cases.iter().filter(|case| case.is_bounded());
    Ok(bounded.map(Case::ratio).collect::<Result<Vec<_>>>()?.iter().all(|&ratio| ratio >= BOUND))
}

impl Case {
    fn round(&mut self, workspace: &Workspace, peer: &Peer, args: &[String]) -> Result<()> {
        let mut ours = nice(&workspace.target.join("release/examples/step_time"));
        self.ours.push(threaded_json(ours.args(args), self.threads)?);
        let script = workspace.root.join("xtask/bench/stiefel.py");
        self.geoopt.push(peer.json(&script, args, self.threads)?);
        Ok(())
    }

    fn is_bounded(&self) -> bool {
        (self.rows, self.columns, self.learning_rate) == CASES[0]
    }

    /// The median over rounds of what `pick` finds in each.
    fn median(rounds: &[Value], pick: impl Fn(&Value) -> Option<f64>) -> Result<f64> {
        let found: Option<Vec<f64>> = rounds.iter().map(pick).collect();
        found.and_then(median).context("a round printed no median_s")
    }

    fn theirs(&self) -> Result<f64> {
        Self::median(&self.geoopt, |round| round["median_s"].as_f64())
    }

    fn named(&self, name: &str, field: &str) -> Result<f64> {
        Self::median(&self.ours, |round| {
            round.as_array()?.iter().find(|found| found["name"] == name)?[field].as_f64()
        })
    }

    /// geoopt's time over ours.
    fn ratio(&self) -> Result<f64> {
        Ok(self.theirs()? / self.named("polar", "median_s")?)
    }
}

fn page(record: &Record) -> Result<String> {
    let titles = [
        "matrix",
        "rate",
        "threads",
        "geoopt ms",
        "polar ms",
        "times faster",
        "polar, set right every step, ms",
        "qr, set right every step, ms",
        "residual",
        "geoopt's",
    ];
    let ms = |seconds: f64| format!("{:.2}", 1e3 * seconds);
    let mut rows = Vec::new();
    for case in &record.cases {
        let residual = Case::median(&case.geoopt, |round| round["residual"].as_f64())?;
        rows.push(vec![
            format!("{} × {}", case.rows, case.columns),
            format!("{}", case.learning_rate),
            case.threads.to_string(),
            ms(case.theirs()?),
            ms(case.named("polar", "median_s")?),
            format!("**{:.1}**", case.ratio()?),
            ms(case.named("polar, every step set right", "median_s")?),
            ms(case.named("qr, every step set right", "median_s")?),
            format!("{:.0e}", case.named("polar", "residual")?),
            format!("{residual:.0e}"),
        ]);
    }
    Ok(format!(
        "# A step of Riemannian Adam\n\n\
         Made by `cargo xtask bench stiefel`; every round is in [stiefel.json](stiefel.json).\n\n\
         One step on a Stiefel manifold in f32, with a second moment a matrix: stiefel-optim on burn's CPU backend, and \
         geoopt 0.5.1 on torch. Medians of {rounds} round(s), in each of which both run; a round's own number is the median of \
         seven steps.\n\n\
         *polar* is the default: its retraction is put off until the drift, ‖U‖² a step of length ‖U‖, adds up to 1e-6. With \
         a rate of 1e-4 that is once in some hundred steps, with 1e-2 it is every step. *Set right every step* has no such \
         room. geoopt does a QR decomposition in every step.\n\n\
         The bound: the first row of each number of threads at least {BOUND} times as fast as geoopt.\n\n\
         {table}\n\
         Measured {setting}.\n",
        rounds = record.rounds,
        table = table(&titles.map(str::to_owned), 1, &rows),
        setting = record.setting.line(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;

    fn case(ours: f64, theirs: f64) -> Case {
        let names = ["polar", "polar, every step set right", "qr, every step set right"];
        let ours = names.map(|name| json!({ "name": name, "median_s": ours, "residual": 7e-7 }));
        let geoopt = vec![json!({ "median_s": theirs, "residual": 9e-7 })];
        let (rows, columns, learning_rate) = CASES[0];
        Case { rows, columns, learning_rate, threads: 1, ours: vec![json!(ours)], geoopt }
    }

    #[test]
    fn a_row_says_how_many_times_faster() {
        let setting = Setting::now(Path::new("/"), "stiefel-optim".into());
        let page = page(&Record { setting, rounds: 1, cases: vec![case(0.25, 0.8)] }).expect("complete");
        assert!(page.contains("| 4096 × 1024 | 0.0001 | 1 | 800.00 | 250.00 | **3.2** | 250.00 |"), "{page}");
    }

    #[test]
    fn a_round_without_its_number_is_an_error() {
        let mut broken = case(1.0, 1.0);
        broken.geoopt[0]["median_s"] = Value::Null;
        assert!(broken.ratio().is_err());
    }
}
