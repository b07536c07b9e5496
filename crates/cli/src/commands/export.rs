//! `shrink export`.

use handlers::{
    DeepseekOptions, DeepseekPlan, DensePlan, Dtype, Existing, FolderLayout, GgufPlan, Output, Written,
};
use mla_core::WeightSource;
use serde_json::{Value, json};

use crate::args::{ExportArgs, Format};
use crate::convert::{MAX_SHARD_BYTES, write_shown};
use crate::error::UserError;
use crate::report::bytes;
use crate::session::{Opened, Session};

/// Writes a converted model as other programs know it.
pub fn run(session: &Session, args: &ExportArgs) -> anyhow::Result<()> {
    if args.pad_rank.is_some() && args.format == Format::Dense {
        return Err(UserError::Flag {
            flag: "--pad-rank",
            found: format!("given with --format {}", args.format.name()),
            expected: "--format deepseek or gguf, whose latent it pads".into(),
        }
        .into());
    }
    let opened = session.open(&args.model)?;
    let model = &opened.model;
    if model.section().is_none() {
        return Err(UserError::NotConverted { path: opened.name() }.into());
    }
    let dtype = args.dtype.map(crate::args::StoreDtype::dtype);
    let extra = vec![record(args, &opened)];
    let existing = if args.force { Existing::Replace } else { Existing::Keep };
    let prepare = || Output::prepare(&args.output, existing, model.folder());
    match args.format {
        Format::Deepseek | Format::Gguf => {
            let dtype = dtype.unwrap_or(Dtype::Bf16);
            let options = DeepseekOptions {
                dtype,
                gains: dtype,
                pad_rank: args.pad_rank,
                extra,
                max_shard_bytes: MAX_SHARD_BYTES,
            };
            let (plan, numbers, cached): (Box<dyn FolderLayout>, usize, Dtype) = match args.format {
                Format::Gguf => {
                    // Published with the file: no path of this machine.
                    let name = args.model.trim_end_matches('/');
                    let name = name.rsplit('/').next().unwrap_or(name);
                    let plan = GgufPlan::new(model, name, options)?;
                    let numbers = plan.cached_numbers();
                    // llama.cpp's cache is f16 unless it is told otherwise, whatever the weights are.
                    (Box::new(plan), numbers, Dtype::F16)
                }
                _ => {
                    let plan = DeepseekPlan::new(model, options)?;
                    let numbers = plan.cached_numbers();
                    (Box::new(plan), numbers, dtype)
                }
            };
            let written = write_shown(session, &*plan, prepare()?)?;
            report(session, args, &written, numbers * model.config().n_layers() * cached.bytes())
        }
        Format::Dense => {
            let specs = model.donor_specs(&session.registry)?;
            let plan = DensePlan::new(model, specs, dtype, extra, MAX_SHARD_BYTES)?;
            let written = write_shown(session, &plan, prepare()?)?;
            let bytes = dtype.map_or_else(|| model.dtype(), Ok)?.bytes();
            let config = model.config();
            report(session, args, &written, 2 * config.d_kv() * config.n_layers() * bytes)
        }
    }
}

/// Where the folder came from: beside it, `--force` knows what may be replaced.
fn record(args: &ExportArgs, opened: &Opened) -> (String, Vec<u8>) {
    let record = json!({
        "shrink_version": env!("CARGO_PKG_VERSION"),
        "export": { "format": args.format.name(), "model": opened.name(), "pad_rank": args.pad_rank },
    });
    ("shrink.json".into(), format!("{record:#}\n").into_bytes())
}

fn report(
    session: &Session,
    args: &ExportArgs,
    written: &Written,
    cache_bytes_a_token: usize,
) -> anyhow::Result<()> {
    let object: Value = json!({
        "output": args.output,
        "format": args.format.name(),
        "tensors": written.tensors,
        "weight_bytes": written.weight_bytes,
        "cache_bytes_a_token": cache_bytes_a_token,
    });
    let more = match args.format {
        Format::Deepseek => "",
        Format::Gguf => " in f16, which llama.cpp takes by default",
        Format::Dense => ": the donor's own, for nothing is saved but W_k's and W_v's rank",
    };
    let text = format!(
        "wrote {} as {}: {} tensors, {}\ncache {} a token{more}\n",
        args.output.display(),
        args.format.name(),
        written.tensors,
        bytes(written.weight_bytes),
        bytes(cache_bytes_a_token as u64),
    );
    session.print(&object, &text)?;
    Ok(())
}
