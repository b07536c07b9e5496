//! `bench quality`: what each method costs in perplexity, at each size of the cache.

mod chart;
mod grid;
mod page;
mod record;

use std::ffi::OsString;
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::Value;

use super::run::shown;
use super::{Common, existing, write};
use crate::workspace::Workspace;
use grid::{Call, Subject};
use record::{Answer, Protocol, Record};

/// What is kept between runs.
const JSON: &str = "quality.json";
/// The texts, in the folder of models.
const TEXTS: &str = "text";

/// What to measure.
#[derive(Debug, Args)]
pub struct Request {
    #[command(flatten)]
    common: Common,
    /// Measure this model only, and keep what quality.json says of the others
    #[arg(long, value_enum, value_name = "NAME")]
    model: Option<Subject>,
    /// Keep the answers that quality.json holds already, and ask for the rest only
    #[arg(long)]
    resume: bool,
    /// Measure nothing: write the page and the chart of what quality.json holds
    #[arg(long, conflicts_with_all = ["model", "resume"])]
    render: bool,
}

/// Measures the models and writes the record, the page and the chart, anew after each process.
///
/// # Errors
/// When a model that was asked for or a text is missing, or the program fails.
pub fn run(workspace: &Workspace, request: &Request) -> Result<()> {
    let out = request.common.out(workspace)?;
    let protocol = if request.common.quick { Protocol::quick() } else { Protocol::full() };
    let mut record = Record::load(&out.join(JSON), &protocol)?;
    if request.render {
        return render(&out, &record);
    }
    let models = request.common.models()?;
    let shrink = request.common.shrink(workspace)?;
    let setting = request.common.setting(workspace, shrink.version());
    for &subject in request.model.as_ref().map_or(Subject::ALL, std::slice::from_ref) {
        let folder = models.join(subject.folder());
        if !folder.join("config.json").exists() {
            let missing = format!("{} is missing{}", folder.display(), subject.remedy());
            if request.model.is_some() {
                bail!(missing);
            }
            println!("SKIPPED: {}: {missing}", subject.name());
            continue;
        }
        let config: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("config.json"))?)?;
        let calls = subject.calls(grid::d_kv(&config), &protocol.ratios, request.common.quick);
        let ask = |call| {
            Ok::<_, anyhow::Error>((
                arguments(call, subject, &models, &protocol)?,
                typed(call, subject, &protocol)?,
            ))
        };
        let asked: Vec<(Vec<OsString>, String)> = calls.iter().map(ask).collect::<Result<_>>()?;
        let commands: Vec<String> = asked.iter().map(|(_, command)| command.clone()).collect();
        record.begin(subject, &commands, request.resume);
        for (args, command) in asked {
            let model = record.begin(subject, &commands, true);
            if model.answers.iter().any(|answer| answer.command == command) {
                println!("==> {}: kept: {command}", subject.name());
                continue;
            }
            println!("==> {}: shrink {}", subject.name(), shown(&args));
            let begun = Instant::now();
            let compared = shrink.json(&args)?;
            let elapsed_s = begun.elapsed().as_secs_f64();
            model.answers.push(Answer { command, setting: setting.clone(), elapsed_s, compared });
            write(&out.join(JSON), &record.json()?)?;
            render(&out, &record)?;
        }
    }
    Ok(())
}

fn render(out: &Path, record: &Record) -> Result<()> {
    write(&out.join("quality.md"), &page::page(record)?)?;
    write(&out.join("quality.svg"), &chart::chart(record)?.svg())
}

/// A call as it could be typed.
fn typed(call: &Call, subject: Subject, protocol: &Protocol) -> Result<String> {
    Ok(format!("shrink {}", shown(&arguments(call, subject, "$SHRINK_MODELS".as_ref(), protocol)?)))
}

/// The arguments of `shrink` for a call; files are looked for unless the folder is but a name.
fn arguments(call: &Call, subject: Subject, models: &Path, protocol: &Protocol) -> Result<Vec<OsString>> {
    let text = |name: &str| {
        let path = models.join(TEXTS).join(name);
        if models.is_absolute() { existing(path) } else { Ok(path) }
    };
    let mut args: Vec<OsString> =
        vec!["compare".into(), models.join(subject.folder()).into(), "--data".into()];
    for name in &protocol.texts {
        args.push(text(name)?.into());
    }
    args.extend(["--calibration".into(), text(&protocol.calibration)?.into()]);
    let numbers = [
        ("--num-calibration-samples", protocol.calibration_windows),
        ("--max-calibration-length", protocol.calibration_length),
        ("--windows", protocol.windows),
        ("--max-length", protocol.length),
    ];
    args.extend(numbers.iter().flat_map(|(flag, number)| [OsString::from(flag), number.to_string().into()]));
    args.extend(call.arguments().into_iter().map(OsString::from));
    Ok(args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_written_as_it_could_be_typed() {
        let calls = Subject::Gpt2.calls(Some(192), &[4.0], true);
        let args = arguments(&calls[0], Subject::Gpt2, "$SHRINK_MODELS".as_ref(), &Protocol::quick());
        let text = shown(&args.expect("no file is looked for"));
        assert!(
            text.starts_with(
                "compare $SHRINK_MODELS/gpt2-small-trained --data $SHRINK_MODELS/text/heldout.txt \
                 $SHRINK_MODELS/text/mobydick.txt --calibration $SHRINK_MODELS/text/calib.txt \
                 --num-calibration-samples 2"
            ),
            "{text}"
        );
        assert!(text.contains("--compression-ratio 4 --method separate,cascade"), "{text}");
    }

    #[test]
    fn a_text_that_is_not_there_is_missed_before_anything_runs() {
        let calls = Subject::Llama.calls(None, &[2.0], true);
        let error = arguments(&calls[0], Subject::Llama, "/nowhere".as_ref(), &Protocol::quick());
        assert!(error.expect_err("no such text").to_string().contains("heldout.txt"));
    }
}
