//! Remaking golden artefacts with the reference implementation.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::ci::clock::limited;
use crate::workspace::Workspace;

const MAKE: &str = "make.py";
/// The demo model is trained on texts that the repository does not hold.
const DEMO: &str = "demo";

/// What to remake, and with what.
#[derive(Debug)]
pub struct Request {
    /// Folders of goldens/; none for all.
    pub names: Vec<String>,
    /// A Python that has the packages; `None` for a virtual environment of our own.
    pub python: Option<PathBuf>,
    /// The demo model's texts.
    pub texts: Option<PathBuf>,
}

/// Runs each folder's script, then shows what git sees of it.
///
/// # Errors
/// When a folder is unknown, Python or a package cannot be had, or a script fails.
pub fn run(workspace: &Workspace, request: Request) -> Result<()> {
    let goldens = workspace.root.join("goldens");
    let names = choose(&folders(&goldens)?, &request)?;
    let python = match request.python {
        // A bare name is looked up in PATH; a path must not depend on the folder that scripts run in.
        Some(python) if python.components().count() > 1 => std::path::absolute(python)?,
        Some(python) => python,
        None => environment(workspace, None)?,
    };
    for name in &names {
        println!("==> goldens/{name}/{MAKE}");
        let mut script = Command::new(&python);
        script.env("PYTHONDONTWRITEBYTECODE", "1").arg(goldens.join(name).join(MAKE));
        if name == DEMO {
            script.args(&request.texts);
        }
        succeed(script.current_dir(&workspace.root))?;
    }
    let mut diff = Command::new("git");
    diff.args(["--no-pager", "diff", "--stat", "goldens"]).current_dir(&workspace.root);
    println!("==> git diff --stat goldens");
    let stat = diff.output().context("cannot run git")?.stdout;
    match stat.is_empty() {
        true => println!("every artefact came out as it was"),
        false => print!("{}", String::from_utf8_lossy(&stat)),
    }
    Ok(())
}

/// The folders that have a script.
fn folders(goldens: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(goldens).with_context(|| format!("cannot read {}", goldens.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if let (true, Some(name)) = (path.join(MAKE).exists(), path.file_name()) {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The folders to remake: those named, or all but a demo without its texts.
fn choose(known: &[String], request: &Request) -> Result<Vec<String>> {
    if let Some(unknown) = request.names.iter().find(|name| !known.contains(name)) {
        bail!("goldens/{unknown} has no {MAKE}; there are: {}", known.join(", "));
    }
    let mut names = if request.names.is_empty() { known.to_vec() } else { request.names.clone() };
    if request.texts.is_none() && names.iter().any(|name| name == DEMO) {
        if !request.names.is_empty() {
            bail!("goldens/{DEMO} needs --texts DIR (goldens/README.md lists what is in it)");
        }
        println!("SKIPPED: {DEMO}: needs --texts DIR (goldens/README.md lists what is in it)");
        names.retain(|name| name != DEMO);
    }
    Ok(names)
}

/// Names the Python that tests of other engines run.
pub const PYTHON: &str = "SHRINK_PYTHON";

/// Where the Python of [`environment`] is.
pub fn python_of(target: &Path) -> PathBuf {
    python_in(&target.join("golden-venv"))
}

/// The Python of a virtual environment.
pub fn python_in(folder: &Path) -> PathBuf {
    folder.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" })
}

/// A virtual environment with the packages that goldens/README.md pins; kept until the pins change. With a limit, installing them
/// is given up after it.
pub fn environment(workspace: &Workspace, limit: Option<Duration>) -> Result<PathBuf> {
    let (folder, goldens) = (&workspace.target.join("golden-venv"), workspace.root.join("goldens"));
    let readme = goldens.join("README.md");
    let text = fs::read_to_string(&readme).with_context(|| format!("cannot read {}", readme.display()))?;
    let pins = pins(&text);
    if pins.is_empty() {
        bail!("{} pins no package (name==version)", readme.display());
    }
    let python = python_of(&workspace.target);
    let stamp = folder.join("pins.txt");
    if fs::read_to_string(&stamp).is_ok_and(|stamped| stamped == pins.join("\n")) {
        return Ok(python);
    }
    println!("==> installing into {}: {}", folder.display(), pins.join(" "));
    succeed(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
    let mut install = Command::new(&python);
    install.args(["-m", "pip", "install", "--quiet"]).args(&pins);
    succeed(&mut match limit {
        Some(limit) => limited(install, limit),
        None => install,
    })?;
    fs::write(&stamp, pins.join("\n")).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(python)
}

/// Every `name==version` of a text, once, in order.
fn pins(text: &str) -> Vec<String> {
    let mut pins: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let word = word.trim_matches(|c: char| !c.is_alphanumeric());
        let pinned =
            word.split_once("==").is_some_and(|(name, version)| !name.is_empty() && !version.is_empty());
        if pinned && !pins.iter().any(|pin| pin == word) {
            pins.push(word.to_owned());
        }
    }
    pins
}

/// Runs a command that has to go well.
pub fn succeed(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(names: &[&str], texts: Option<&str>) -> Request {
        let names = names.iter().map(|&name| name.to_owned()).collect();
        Request { names, python: None, texts: texts.map(PathBuf::from) }
    }

    #[test]
    fn pins_are_read_from_prose() {
        let text = "    .venv/bin/pip install torch==2.1.0 numpy==2.4.6\n`corpus` needs `pyarrow==26.0.1`, torch==2.1.0.\na == b";
        assert_eq!(pins(text), ["torch==2.1.0", "numpy==2.4.6", "pyarrow==26.0.1"]);
    }

    #[test]
    fn the_demo_is_made_only_with_its_texts() {
        let known = ["demo".to_owned(), "llama".to_owned()];
        let chosen = |names: &[&str], texts| choose(&known, &request(names, texts));
        assert_eq!(chosen(&[], None).expect("all but the demo"), ["llama"]);
        assert_eq!(chosen(&[], Some("texts")).expect("all"), known);
        assert!(chosen(&["demo"], None).is_err_and(|error| error.to_string().contains("--texts")));
    }

    #[test]
    fn an_unknown_folder_is_refused() {
        let error = choose(&["llama".to_owned()], &request(&["lama"], None)).expect_err("a misspelt name");
        assert!(error.to_string().contains("llama"), "{error}");
    }
}
