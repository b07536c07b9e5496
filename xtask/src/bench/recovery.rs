//! `bench recovery`: how much of what a conversion loses training brings back.

mod page;
mod record;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::Value;

use super::run::{Shrink, shown};
use super::{Common, existing, write};
use crate::workspace::Workspace;
use record::{Conversion, Protocol, Record, Run, Trained};

const MODEL: &str = "smollm2-135m-instruct";
const JSON: &str = "recovery.json";

/// What to measure.
#[derive(Debug, Args)]
pub struct Request {
    #[command(flatten)]
    common: Common,
    /// Measure these conversions only, e.g. "separate 4x", and keep what recovery.json says of the others
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Keep the runs that recovery.json holds already, and do the rest only
    #[arg(long)]
    resume: bool,
    /// Measure nothing: write the page of what recovery.json holds
    #[arg(long, conflicts_with_all = ["only", "resume"])]
    render: bool,
}

/// Converts, trains and measures, and writes the record and the page anew after each run.
///
/// # Errors
/// When the model or a text is missing, or the program fails.
pub fn run(workspace: &Workspace, request: &Request) -> Result<()> {
    let out = request.common.out(workspace)?;
    let protocol = if request.common.quick { Protocol::quick() } else { Protocol::full() };
    let mut record = Record::load(&out.join(JSON), &protocol)?;
    if request.render {
        return write(&out.join("recovery.md"), &page::page(&record)?);
    }
    let models = request.common.models()?;
    let (model, texts) = (existing(models.join(MODEL))?, models.join("text"));
    let measured: Vec<PathBuf> =
        protocol.texts.iter().map(|text| existing(texts.join(text))).collect::<Result<_>>()?;
    let bench = Bench {
        shrink: request.common.shrink(workspace)?,
        training: existing(texts.join(&protocol.training))?,
        model,
        measured,
        protocol,
    };
    let save = |record: &Record| {
        write(&out.join(JSON), &(serde_json::to_string_pretty(record)? + "\n"))?;
        write(&out.join("recovery.md"), &page::page(record)?)
    };
    if record.donor.is_empty() {
        record.donor = bench.perplexities(&bench.model)?;
    }
    for conversion in record::conversions() {
        if !request.only.is_empty() && !request.only.iter().any(|name| name == conversion.name) {
            continue;
        }
        if !request.resume {
            record.runs.retain(|run| run.conversion != conversion.name);
        }
        let missing: Vec<Trained> =
            conversion.trained().into_iter().filter(|trained| !record.has(&conversion, trained)).collect();
        if missing.is_empty() {
            continue;
        }
        let folder = bench.shrink.scratch().join("converted");
        let before = bench.convert(&conversion, &folder)?;
        for trained in missing {
            let begun = Instant::now();
            let mut run = bench.train(&conversion, &trained, &folder, before.clone())?;
            run.elapsed_s = begun.elapsed().as_secs_f64();
            run.setting = Some(request.common.setting(workspace, bench.shrink.version()));
            record.keep(run);
            save(&record)?;
        }
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    save(&record)
}

/// What all runs share.
struct Bench {
    shrink: Shrink,
    protocol: Protocol,
    model: PathBuf,
    training: PathBuf,
    measured: Vec<PathBuf>,
}

impl Bench {
    /// Converts the model, and measures what came out.
    fn convert(&self, conversion: &Conversion, out: &Path) -> Result<Vec<f64>> {
        let args = conversion.arguments(&self.protocol, &self.model, &self.training, out);
        println!("==> {}: shrink {}", conversion.name, shown(&args));
        self.shrink.json(&args)?;
        self.perplexities(out)
    }

    /// Trains a conversion, and measures what came out.
    fn train(
        &self,
        conversion: &Conversion,
        trained: &Trained,
        folder: &Path,
        before: Vec<f64>,
    ) -> Result<Run> {
        let out = self.shrink.scratch().join("trained");
        let run_folder = self.shrink.scratch().join("trained.run");
        let args = trained.arguments(&self.protocol, &self.model, &self.training, folder, &out);
        println!("==> {}, {trained}: shrink {}", conversion.name, shown(&args));
        let (found, cost) = self.shrink.timed(&args)?;
        let after = self.perplexities(&out)?;
        for folder in [&out, &run_folder] {
            fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        let names = ["$SHRINK_MODELS", "$SHRINK_MODELS/text", "converted", "trained"].map(Path::new);
        let typed = trained.arguments(
            &self.protocol,
            &names[0].join(MODEL),
            &names[1].join(&self.protocol.training),
            names[2],
            names[3],
        );
        Ok(Run {
            conversion: conversion.name.to_owned(),
            trained: trained.clone(),
            command: format!("shrink {}", shown(&typed)),
            setting: None,
            elapsed_s: 0.0,
            train_s: cost.wall_s,
            peak_bytes: cost.peak_bytes,
            orthonormality: found["orthonormality"].as_f64().context("no orthonormality was printed")?,
            before,
            after,
        })
    }

    /// Perplexity of a model on each text.
    fn perplexities(&self, model: &Path) -> Result<Vec<f64>> {
        let one = |text: &PathBuf| {
            let mut args: Vec<OsString> = vec!["eval".into(), model.into(), "--data".into(), text.into()];
            let numbers =
                [("--windows", self.protocol.windows), ("--max-length", self.protocol.window_length)];
            args.extend(
                numbers.iter().flat_map(|(flag, number)| [OsString::from(flag), number.to_string().into()]),
            );
            let found: Value = self.shrink.json(&args)?;
            found["perplexity"].as_f64().context("eval printed no perplexity")
        };
        self.measured.iter().map(one).collect()
    }
}
