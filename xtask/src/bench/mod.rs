//! Benchmarks of the release program; `docs/bench/` holds what they found.
//!
//! Each drives `shrink` as a user would, with its `--json`, and never looks inside. `quality` is perplexity against cache
//! bytes, `convert` the time and memory of a conversion, `big` both at the size of Qwen2.5-7B. `stiefel` and `train` time the
//! optimiser's example and a step of training beside the Python packages that do the same, `decode` tokens a second, `plan` is
//! what the planner of rank and bits chooses.

mod big;
mod convert;
mod decode;
mod llama_cpp;
mod markdown;
mod peer;
mod plan;
mod quality;
mod recovery;
mod run;
mod setting;
mod stiefel;
mod svg;
mod train;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use crate::workspace::Workspace;
use run::Shrink;
use setting::Setting;

/// What can be measured.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Perplexity of every method against cache bytes: quality.json, quality.md, quality.svg
    #[command(after_help = "Examples:
  cargo xtask bench quality --models ~/models
  cargo xtask bench quality --models ~/models --model llama
  cargo xtask bench quality --models ~/models --quick")]
    Quality(quality::Request),
    /// Time and memory of conversions, beside what the program predicts: convert.json, convert.md
    Convert(convert::Request),
    /// A synthetic model of 7.6 G weights: does it stay within bounds? big.json, big.md
    Big(big::Request),
    /// A step of Riemannian Adam beside geoopt's: stiefel.json, stiefel.md
    Stiefel(stiefel::Request),
    /// Perplexity that training brings back, by conversion, loss and rates: recovery.json, recovery.md
    #[command(after_help = "Examples:
  cargo xtask bench recovery --models ~/models --resume
  cargo xtask bench recovery --models ~/models --only 'separate 4x'")]
    Recovery(recovery::Request),
    /// Tokens a second and memory of dense and latent caches beside transformers and cacheshrink: decode.json, decode.md
    Decode(decode::Request),
    /// Perplexity of what --target chooses, at several sizes of the cache: plan.json, plan.md
    Plan(plan::Request),
    /// A step of training beside cacheshrink's: train.json, train.md
    Train(train::Request),
}

/// What all benchmarks are told.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// Folder of real weights and texts [default: $SHRINK_MODELS]
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
    /// Folder for what is found [default: docs/bench; with --quick, bench-quick in the target folder]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The program to measure [default: it is built of this tree first]
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// The commit that program was built of, for the record [default: unknown with --binary, else the tree's]
    #[arg(long, value_name = "COMMIT", requires = "binary")]
    revision: Option<String>,
    /// As little as shows that the benchmark works; its numbers mean nothing
    #[arg(long)]
    quick: bool,
}

/// Runs a benchmark; whether what it holds the program to was kept.
///
/// # Errors
/// When the program fails, or a model, a text or disk space is missing.
pub fn run(workspace: &Workspace, bench: &Bench) -> Result<bool> {
    match bench {
        Bench::Quality(request) => quality::run(workspace, request).map(|()| true),
        Bench::Convert(request) => convert::run(workspace, request).map(|()| true),
        Bench::Big(request) => big::run(workspace, request),
        Bench::Stiefel(request) => stiefel::run(workspace, request),
        Bench::Recovery(request) => recovery::run(workspace, request).map(|()| true),
        Bench::Decode(request) => decode::run(workspace, request),
        Bench::Plan(request) => plan::run(workspace, request),
        Bench::Train(request) => train::run(workspace, request),
    }
}

impl Common {
    /// The folder of models and texts.
    fn models(&self) -> Result<PathBuf> {
        let variable = || std::env::var_os(crate::ci::MODELS).filter(|folder| !folder.is_empty());
        let folder = self.models.clone().or_else(|| variable().map(PathBuf::from));
        let folder = folder.with_context(|| format!("needs --models DIR or {}", crate::ci::MODELS))?;
        std::path::absolute(&folder).with_context(|| format!("cannot find {}", folder.display()))
    }

    /// The folder for what is found, made if it is not there.
    fn out(&self, workspace: &Workspace) -> Result<PathBuf> {
        let out = match (&self.out, self.quick) {
            (Some(out), _) => out.clone(),
            (None, true) => workspace.target.join("bench-quick"),
            (None, false) => workspace.root.join("docs/bench"),
        };
        std::fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
        Ok(out)
    }

    /// Now and here, with the commit of the program that is measured.
    fn setting(&self, workspace: &Workspace, program: &str) -> Setting {
        let mut setting = Setting::now(&workspace.root, program.to_owned());
        if self.binary.is_some() {
            setting.revision = self.revision.clone().unwrap_or_else(|| "unknown".into());
        }
        setting
    }

    /// A copy of the program that no build replaces while it is measured.
    fn shrink(&self, workspace: &Workspace) -> Result<Shrink> {
        Shrink::copy(workspace, self.binary.as_deref())
    }
}

/// A file that must be there.
fn existing(path: PathBuf) -> Result<PathBuf> {
    match path.exists() {
        true => Ok(path),
        false => bail!("{} is missing", path.display()),
    }
}

/// Writes a file and says so.
fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("wrote {}", path.display());
    Ok(())
}
