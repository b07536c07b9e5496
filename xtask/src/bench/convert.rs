//! `bench convert`: time and memory of conversions, beside what the program predicts.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use super::markdown::{bytes, seconds, table};
use super::run::{Cost, Predicted, Shrink, folder_bytes, shown};
use super::setting::Setting;
use super::{Common, existing, write};
use crate::workspace::Workspace;

const MODEL: &str = "smollm2-135m-instruct";
const TEXT: &str = "text/calib.txt";
/// What is measured: a name and what it takes on the command line.
const CASES: [(&str, &[&str]); 4] = [
    ("separate mse", &["--method", "separate", "--objective", "mse"]),
    ("separate fisher", &["--method", "separate", "--objective", "fisher"]),
    ("cascade fisher", &["--method", "cascade", "--objective", "fisher"]),
    ("auto", &["--method", "auto"]),
];

/// What to measure.
#[derive(Debug, Args)]
pub struct Request {
    #[command(flatten)]
    common: Common,
    /// Runs of each conversion; the table has the median
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,
}

/// `convert.json`.
#[derive(Clone, Debug, Serialize)]
struct Record {
    setting: Setting,
    model: &'static str,
    windows: usize,
    length: usize,
    cases: Vec<Case>,
}

/// One conversion, run several times.
#[derive(Clone, Debug, Serialize)]
struct Case {
    name: &'static str,
    command: String,
    predicted: Predicted,
    /// Bytes of the folder written.
    output_bytes: u64,
    runs: Vec<Cost>,
    median: Cost,
}

/// Measures every case and writes the record and the page.
///
/// # Errors
/// When the model or the text is missing, or the program fails.
pub fn run(workspace: &Workspace, request: &Request) -> Result<()> {
    if request.runs == 0 {
        bail!("--runs is 0; at least 1 is needed");
    }
    let (models, out) = (request.common.models()?, request.common.out(workspace)?);
    let (model, text) = (existing(models.join(MODEL))?, existing(models.join(TEXT))?);
    let (runs, windows, length) = if request.common.quick { (1, 2, 128) } else { (request.runs, 32, 512) };
    let shrink = request.common.shrink(workspace)?;
    let mut record = Record {
        setting: request.common.setting(workspace, shrink.version()),
        model: MODEL,
        windows,
        length,
        cases: Vec::new(),
    };
    for (name, flags) in CASES {
        let output = shrink.scratch().join("out");
        let args = arguments(&model, &output, &text, [windows, length], flags);
        let typed = ["$SHRINK_MODELS", "out"].map(Path::new);
        let typed =
            arguments(&typed[0].join(MODEL), typed[1], &typed[0].join(TEXT), [windows, length], flags);
        let predicted = predict(&shrink, &args)?;
        let mut costs = Vec::new();
        let mut output_bytes = 0;
        for at in 0..runs {
            println!("==> {name}, run {} of {runs}: shrink {}", at + 1, shown(&args));
            costs.push(shrink.timed(&args)?.1);
            output_bytes = folder_bytes(&output)?;
            fs::remove_dir_all(&output).with_context(|| format!("cannot remove {}", output.display()))?;
        }
        let median = Cost::median(&costs).context("no runs")?;
        let command = format!("shrink {}", shown(&typed));
        record.cases.push(Case { name, command, predicted, output_bytes, runs: costs, median });
        write(&out.join("convert.json"), &(serde_json::to_string_pretty(&record)? + "\n"))?;
        write(&out.join("convert.md"), &page(&record))?;
    }
    Ok(())
}

/// What the program says that a conversion will take.
///
/// # Errors
/// When it cannot say, since it has no room.
pub fn predict(shrink: &Shrink, args: &[OsString]) -> Result<Predicted> {
    let args: Vec<OsString> = args.iter().cloned().chain(["--dry-run".into()]).collect();
    Ok(Predicted::parse(&shrink.json(&args)?))
}

fn arguments(
    model: &Path,
    output: &Path,
    text: &Path,
    [windows, length]: [usize; 2],
    flags: &[&str],
) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["convert".into(), model.into(), "--output".into(), output.into()];
    args.extend(flags.iter().map(OsString::from));
    args.extend(["--calibration".into(), text.into()]);
    args.extend(["--num-calibration-samples".into(), windows.to_string().into()]);
    args.extend(["--max-calibration-length".into(), length.to_string().into()]);
    args
}

fn page(record: &Record) -> String {
    let titles =
        ["conversion", "wall s", "predicted", "CPU s", "peak memory", "predicted", "written", "predicted"];
    let row = |case: &Case| {
        let Predicted { seconds: time, peak_memory_bytes, output_bytes, .. } = case.predicted;
        vec![
            case.name.to_owned(),
            seconds(case.median.wall_s),
            or_dash(time, seconds),
            seconds(case.median.cpu_s),
            bytes(case.median.peak_bytes as f64),
            or_dash(peak_memory_bytes, bytes),
            bytes(case.output_bytes as f64),
            or_dash(output_bytes, bytes),
        ]
    };
    let rows: Vec<Vec<String>> = record.cases.iter().map(row).collect();
    let runs = record.cases.first().map_or(0, |case| case.runs.len());
    let commands: Vec<&str> = record.cases.iter().map(|case| case.command.as_str()).collect();
    format!(
        "# Time and memory of a conversion\n\n\
         Made by `cargo xtask bench convert`; every run is in [convert.json](convert.json).\n\n\
         {model} at 4x, calibrated on {windows} windows of {length} tokens of `calib.txt`; median of {runs} run(s), each \
         number by itself. Runs have niceness 10. Peak memory is resident memory as GNU time reports it; *predicted* is \
         what `shrink convert --dry-run` said before. `auto` fits and measures several methods, each with both \
         allocations of ranks.\n\n\
         {table}\n\
         Measured {setting}:\n\n```text\n{commands}\n```\n",
        model = record.model,
        windows = record.windows,
        length = record.length,
        table = table(&titles.map(str::to_owned), 1, &rows),
        setting = record.setting.line(),
        commands = commands.join("\n"),
    )
}

/// A number that the program may not have given.
pub fn or_dash(value: Option<f64>, format: impl Fn(f64) -> String) -> String {
    value.map_or("–".to_owned(), format)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_a_row_of_what_was_measured_and_what_was_predicted() {
        let cost = Cost { wall_s: 12.34, cpu_s: 20.0, peak_bytes: 1 << 30 };
        let case = Case {
            name: "auto",
            command: "shrink convert x".into(),
            predicted: Predicted { seconds: Some(10.0), ..Predicted::default() },
            output_bytes: 3 << 20,
            runs: vec![cost],
            median: cost,
        };
        let setting = Setting::now(Path::new("/"), "shrink 0.1.0".into());
        let page = page(&Record { setting, model: MODEL, windows: 32, length: 512, cases: vec![case] });
        assert!(page.contains("| auto | 12.3 | 10.0 | 20.0 | 1.00 GiB | – | 3.00 MiB | – |"), "{page}");
        assert!(page.contains("median of 1 run(s)") && page.contains("shrink convert x"), "{page}");
    }
}
