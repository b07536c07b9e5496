//! `bench big`: a conversion at the size of Qwen2.5-7B, held to bounds on memory.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use super::convert::{or_dash, predict};
use super::markdown::{bytes, seconds, table};
use super::run::{Cost, Predicted, folder_bytes, shown};
use super::setting::Setting;
use super::{Common, write};
use crate::synth::{self, Shape};
use crate::workspace::Workspace;

/// What is measured: a name, its bound on resident memory, and what it takes on the command line.
const CASES: [(&str, u64, &[&str]); 2] = [
    (
        "separate fisher, 4 windows of 128 tokens",
        6 << 30,
        &[
            "--method",
            "separate",
            "--objective",
            "fisher",
            "--calibration",
            "builtin:prose",
            "--num-calibration-samples",
            "4",
            "--max-calibration-length",
            "128",
        ],
    ),
    ("without calibration", 3 << 30, &["--no-calibration"]),
];
/// How far a prediction may be from what happens, as a share of that.
const TOLERANCE: f64 = 0.2;
/// Room on the disk beyond the model and its conversion: factors, scratch, and what others write meanwhile.
const SPARE_BYTES: u64 = 3 << 30;

/// What to measure.
#[derive(Debug, Args)]
pub struct Request {
    #[command(flatten)]
    common: Common,
    /// Layers, in place of the shape's 28 (with --quick: 2)
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
}

/// `big.json`.
#[derive(Clone, Debug, Serialize)]
struct Record {
    setting: Setting,
    shape: &'static str,
    layers: usize,
    weights: usize,
    weight_bytes: u64,
    /// Writing the synthetic model.
    synth_s: f64,
    cases: Vec<Case>,
}

/// One conversion.
#[derive(Clone, Debug, Serialize)]
struct Case {
    name: &'static str,
    command: String,
    bound_bytes: u64,
    predicted: Predicted,
    cost: Cost,
    output_bytes: u64,
    wall_s_a_layer: f64,
    /// What was not kept; empty if all was.
    broken: Vec<String>,
}

/// Writes the model, converts it in every way, and removes it; whether all bounds were kept.
///
/// # Errors
/// When there is too little room, or the program fails.
pub fn run(workspace: &Workspace, request: &Request) -> Result<bool> {
    let out = request.common.out(workspace)?;
    let layers = request.layers.or(request.common.quick.then_some(2));
    let model = Shape::Qwen25_7b.model(layers);
    let needed = 2 * model.weight_bytes() + SPARE_BYTES;
    let free = free_bytes(&workspace.target)?;
    if free < needed {
        let (needed, free) = (bytes(needed as f64), bytes(free as f64));
        bail!("{} has {free} free; the model and its conversion need {needed}", workspace.target.display());
    }
    let shrink = request.common.shrink(workspace)?;
    let setting = request.common.setting(workspace, shrink.version());
    let (donor, output) = (shrink.scratch().join("qwen2.5-7b-synthetic"), shrink.scratch().join("out"));
    println!("==> writing {} of random weights to {}", bytes(model.weight_bytes() as f64), donor.display());
    let begun = Instant::now();
    synth::write(&donor, &model, &workspace.root.join(synth::TOKENIZER))?;
    let synth_s = begun.elapsed().as_secs_f64();
    let mut cases = Vec::new();
    for (name, bound_bytes, flags) in CASES {
        let args = arguments(&donor, &output, flags);
        let predicted = predict(&shrink, &args)?;
        println!("==> {name}: shrink {}", shown(&args));
        let cost = shrink.timed(&args)?.1;
        let output_bytes = folder_bytes(&output)?;
        fs::remove_dir_all(&output).with_context(|| format!("cannot remove {}", output.display()))?;
        let broken = broken(bound_bytes, &predicted, &cost, output_bytes);
        let wall_s_a_layer = cost.wall_s / model.n_layers() as f64;
        println!("{name}: {} s a layer, peak {}", seconds(wall_s_a_layer), bytes(cost.peak_bytes as f64));
        for what in &broken {
            println!("{name}: NOT KEPT: {what}");
        }
        let command =
            format!("shrink {}", shown(&arguments("qwen2.5-7b-synthetic".as_ref(), "out".as_ref(), flags)));
        cases.push(Case {
            name,
            command,
            bound_bytes,
            predicted,
            cost,
            output_bytes,
            wall_s_a_layer,
            broken,
        });
    }
    let kept = cases.iter().all(|case| case.broken.is_empty());
    let record = Record {
        setting,
        shape: "Qwen2.5-7B",
        layers: model.n_layers(),
        weights: model.weights(),
        weight_bytes: model.weight_bytes(),
        synth_s,
        cases,
    };
    write(&out.join("big.json"), &(serde_json::to_string_pretty(&record)? + "\n"))?;
    write(&out.join("big.md"), &page(&record))?;
    Ok(kept)
}

fn arguments(model: &Path, output: &Path, flags: &[&str]) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["convert".into(), model.into(), "--output".into(), output.into()];
    args.extend(flags.iter().map(OsString::from));
    args
}

/// What of a run is out of bounds.
///
/// The predicted time is shown and not held to anything: it is off by as much as the machine is busy.
fn broken(bound: u64, predicted: &Predicted, cost: &Cost, output_bytes: u64) -> Vec<String> {
    let mut broken = Vec::new();
    if cost.peak_bytes >= bound {
        broken.push(format!("peak memory {}, bound {}", bytes(cost.peak_bytes as f64), bytes(bound as f64)));
    }
    let pairs = [
        ("peak memory", predicted.peak_memory_bytes, cost.peak_bytes),
        ("output", predicted.output_bytes, output_bytes),
    ];
    for (what, predicted, found) in pairs {
        let found = found as f64;
        if let Some(predicted) = predicted
            && (predicted - found).abs() > TOLERANCE * found
        {
            broken.push(format!("{what} {}, predicted {}", bytes(found), bytes(predicted)));
        }
    }
    broken
}

/// Bytes free on the disk of a folder.
fn free_bytes(folder: &Path) -> Result<u64> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let output = Command::new("df").args(["-Pk"]).arg(folder).output().context("cannot run df")?;
    parse_df(&String::from_utf8_lossy(&output.stdout)).context("df printed no number of free blocks")
}

/// The `Available` column of `df -Pk`, which POSIX fixes as the fourth.
fn parse_df(text: &str) -> Option<u64> {
    let kib: u64 = text.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    Some(kib << 10)
}

fn page(record: &Record) -> String {
    let titles = [
        "conversion",
        "wall s",
        "s a layer",
        "predicted s",
        "CPU s",
        "peak memory",
        "bound",
        "predicted",
        "written",
        "predicted",
        "kept",
    ];
    let row = |case: &Case| {
        vec![
            case.name.to_owned(),
            seconds(case.cost.wall_s),
            seconds(case.wall_s_a_layer),
            or_dash(case.predicted.seconds, seconds),
            seconds(case.cost.cpu_s),
            bytes(case.cost.peak_bytes as f64),
            bytes(case.bound_bytes as f64),
            or_dash(case.predicted.peak_memory_bytes, bytes),
            bytes(case.output_bytes as f64),
            or_dash(case.predicted.output_bytes, bytes),
            if case.broken.is_empty() {
                "yes".to_owned()
            } else {
                format!("**no**: {}", case.broken.join("; "))
            },
        ]
    };
    let rows: Vec<Vec<String>> = record.cases.iter().map(row).collect();
    let commands: Vec<&str> = record.cases.iter().map(|case| case.command.as_str()).collect();
    format!(
        "# A model of the size of {shape}\n\n\
         Made by `cargo xtask bench big`; the numbers are in [big.json](big.json).\n\n\
         A folder of the shape of {shape} with {layers} layers and {weights} random weights ({size} in bf16, written by \
         `cargo xtask synth` in {synth} s), converted at 4x by one process at niceness 10. Time and memory depend on \
         shapes and hardly on values. Peak memory is resident memory as GNU time reports it; *predicted* is what \
         `shrink convert --dry-run` said before, and *kept* says that memory stayed below its bound and that the \
         predicted memory and output are within {tolerance}% of what happened.\n\n\
         {table}\n\
         Measured {setting}:\n\n```text\ncargo xtask synth qwen2.5-7b-synthetic\n{commands}\n```\n",
        shape = record.shape,
        layers = record.layers,
        weights = record.weights,
        size = bytes(record.weight_bytes as f64),
        synth = seconds(record.synth_s),
        tolerance = 100.0 * TOLERANCE,
        table = table(&titles.map(str::to_owned), 1, &rows),
        setting = record.setting.line(),
        commands = commands.join("\n"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn cost(peak_bytes: u64) -> Cost {
        Cost { wall_s: 56.0, cpu_s: 100.0, peak_bytes }
    }

    fn predicted(peak: f64) -> Predicted {
        Predicted { peak_memory_bytes: Some(peak * GIB as f64), ..Predicted::default() }
    }

    #[test]
    fn memory_beyond_its_bound_and_a_prediction_far_off_are_told() {
        assert!(broken(6 * GIB, &predicted(4.4), &cost(4 * GIB), 0).is_empty());
        assert!(broken(6 * GIB, &Predicted::default(), &cost(4 * GIB), 0).is_empty());
        assert_eq!(broken(3 * GIB, &predicted(4.4), &cost(4 * GIB), 0).len(), 1);
        for far in [3.1, 4.9] {
            assert_eq!(broken(6 * GIB, &predicted(far), &cost(4 * GIB), 0).len(), 1, "{far}");
        }
        let output = Predicted { output_bytes: Some(10.0), ..Predicted::default() };
        assert_eq!(broken(6 * GIB, &output, &cost(GIB), 20).len(), 1);
    }

    #[test]
    fn free_room_is_read_from_df() {
        let text = "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/vda 100 60 40 60% /\n";
        assert_eq!(parse_df(text), Some(40 << 10));
        assert_eq!(parse_df(""), None);
    }

    #[test]
    fn a_broken_bound_stands_in_the_table() {
        let case = Case {
            name: "without calibration",
            command: "shrink convert x".into(),
            bound_bytes: 3 * GIB,
            predicted: Predicted::default(),
            cost: cost(4 * GIB),
            output_bytes: GIB,
            wall_s_a_layer: 2.0,
            broken: broken(3 * GIB, &Predicted::default(), &cost(4 * GIB), GIB),
        };
        let record = Record {
            setting: Setting::now(Path::new("/"), "shrink 0.1.0".into()),
            shape: "Qwen2.5-7B",
            layers: 28,
            weights: 10,
            weight_bytes: 20,
            synth_s: 1.0,
            cases: vec![case],
        };
        let page = page(&record);
        assert!(page.contains("**no**: peak memory 4.00 GiB, bound 3.00 GiB |"), "{page}");
        assert!(page.contains("| 56.0 | 2.00 | – | 100 | 4.00 GiB | 3.00 GiB | – |"), "{page}");
    }
}
