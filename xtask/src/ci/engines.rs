//! The engines in which converted models are tested, installed into the build folder.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::clock;
use crate::workspace::Workspace;

/// The versions of transformers beside the newest in which a converted folder has to run: the oldest, and those that broke something.
pub(super) const OLDER_TRANSFORMERS: [&str; 3] = ["4.56.2", "5.0.0", "5.16.0"];

/// llama.cpp, built.
const LLAMA_CPP: &str = "node-llama-cpp@3.22.1";

/// Installs each version into a virtual environment that takes torch, and all else that it does not pin, from that of the newest.
pub(super) fn older_transformers(workspace: &Workspace, limit: Option<Duration>) -> Result<()> {
    let newest = crate::golden::environment(workspace, limit)?;
    let ask = "import sysconfig; print(sysconfig.get_path('purelib'))";
    let packages_of = |python: &Path| -> Result<String> {
        let output = Command::new(python).args(["-c", ask]).output().context("cannot ask Python")?;
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    let shared = packages_of(&newest)?;
    for version in OLDER_TRANSFORMERS {
        let python = older_python(&workspace.target, version);
        let folder = older_folder(&workspace.target, version);
        let stamp = folder.join("version.txt");
        if std::fs::read_to_string(&stamp).is_ok_and(|stamped| stamped == version) {
            continue;
        }
        println!("==> installing into {}: transformers=={version}", folder.display());
        crate::golden::succeed(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        let link = Path::new(&packages_of(&python)?).join("newest.pth");
        std::fs::write(&link, &shared).with_context(|| format!("cannot write {}", link.display()))?;
        let mut install = Command::new(&python);
        install.args(["-m", "pip", "install", "--quiet"]).arg(format!("transformers=={version}"));
        crate::golden::succeed(&mut match limit {
            Some(limit) => clock::limited(install, limit),
            None => install,
        })?;
        std::fs::write(&stamp, version).with_context(|| format!("cannot write {}", stamp.display()))?;
    }
    Ok(())
}

fn older_folder(target: &Path, version: &str) -> PathBuf {
    target.join(format!("transformers-{version}"))
}

pub(super) fn older_python(target: &Path, version: &str) -> PathBuf {
    crate::golden::python_in(&older_folder(target, version))
}

/// Installs llama.cpp with its bindings for node, unless it is there.
pub(super) fn llama_cpp(workspace: &Workspace, limit: Option<Duration>) -> Result<()> {
    let folder = node_folder(&workspace.target);
    let stamp = folder.join("version.txt");
    if std::fs::read_to_string(&stamp).is_ok_and(|version| version == LLAMA_CPP) {
        return Ok(());
    }
    println!("==> installing into {}: {LLAMA_CPP}", folder.display());
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let mut install = Command::new("npm");
    install
        .args(["install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"])
        .arg(&folder)
        .arg(LLAMA_CPP);
    crate::golden::succeed(&mut match limit {
        Some(limit) => clock::limited(install, limit),
        None => install,
    })?;
    std::fs::write(&stamp, LLAMA_CPP).with_context(|| format!("cannot write {}", stamp.display()))
}

pub(super) fn node_folder(target: &Path) -> PathBuf {
    target.join("llama-cpp")
}
