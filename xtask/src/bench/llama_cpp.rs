//! llama.cpp, as npm's node-llama-cpp brings it built.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::peer::{Peer, done, nice, threaded_json};
use crate::workspace::Workspace;

/// The release, and the build of llama.cpp in it for each processor that it knows, without the ones for GPUs.
const PACKAGES: [&str; 2] = ["node-llama-cpp@3.22.1", "@node-llama-cpp/linux-x64@3.22.1"];
/// What writes its format, for Python.
pub const WRITER: &str = "gguf==0.19.0";

/// A folder with llama.cpp in it.
#[derive(Debug)]
pub struct LlamaCpp {
    script: PathBuf,
}

impl LlamaCpp {
    /// Installs it in the target folder, beside the script that runs it.
    ///
    /// # Errors
    /// When there is no npm, or a package cannot be installed.
    pub fn install(workspace: &Workspace) -> Result<Self> {
        let folder = workspace.target.join("peers-node");
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        println!("==> installing {} into {}", PACKAGES[0], folder.display());
        let mut npm = Command::new("npm");
        npm.args(["install", "--silent", "--ignore-scripts", "--omit=optional", "--prefix"]).arg(&folder);
        done(npm.args(PACKAGES))?;
        // A module is looked for from where the script is.
        let script = folder.join("decode.mjs");
        std::fs::copy(workspace.root.join("xtask/bench/decode.mjs"), &script)
            .context("cannot copy xtask/bench/decode.mjs")?;
        Ok(Self { script })
    }

    /// Writes a model as it reads them.
    ///
    /// # Errors
    /// When the model is of a family that the script does not know.
    pub fn model(&self, workspace: &Workspace, peer: &Peer, folder: &Path, file: &Path) -> Result<()> {
        let args = [folder, file].map(|path| path.display().to_string());
        peer.run(&workspace.root.join("xtask/bench/to_gguf.py"), &args)
    }

    /// Runs the script and reads the JSON that it prints.
    ///
    /// # Errors
    /// When it fails, or prints none.
    pub fn json(&self, model: &Path, numbers: &[usize], threads: usize) -> Result<Value> {
        let mut command = nice("node".as_ref());
        command.arg(&self.script).arg(model).arg(threads.to_string());
        command.args(numbers.iter().map(usize::to_string));
        threaded_json(&mut command, threads)
    }
}
