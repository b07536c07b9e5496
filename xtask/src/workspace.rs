//! The workspace as cargo describes it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Where the workspace lies, where it builds, and its packages.
#[derive(Debug)]
pub struct Workspace {
    /// The repository.
    pub root: PathBuf,
    /// Where cargo builds.
    pub target: PathBuf,
    /// The members.
    pub packages: Vec<Package>,
}

/// A member of the workspace.
#[derive(Clone, Debug)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its Cargo.toml, relative to the root.
    pub manifest: String,
    /// What it depends on, in every kind and for every feature.
    pub dependencies: Vec<Dependency>,
}

/// One dependency of a package.
#[derive(Clone, Debug)]
pub struct Dependency {
    /// The package depended on.
    pub name: String,
    /// The version requirement, e.g. `=0.22.1`.
    pub requirement: String,
    /// Whether it is a member of the workspace too.
    pub is_member: bool,
    /// Whether only tests, examples and benches see it.
    pub is_dev: bool,
}

impl Workspace {
    /// Asks `cargo metadata`, without resolving anything.
    pub fn load() -> Result<Self> {
        // The variable that cargo sets now, not the one at build time: two checkouts may share a target folder.
        let here = std::env::var_os("CARGO_MANIFEST_DIR").context("run it as `cargo xtask`")?;
        let root = Path::new(&here).parent().context("xtask lies in the workspace")?;
        let output = cargo(root)
            .args(["metadata", "--format-version", "1", "--no-deps"])
            .output()
            .context("cannot run cargo")?;
        if !output.status.success() {
            bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let json = serde_json::from_slice(&output.stdout).context("cargo metadata is no JSON")?;
        Self::parse(&json).context("cargo metadata lacks a field")
    }

    /// Reads the answer of `cargo metadata`.
    pub fn parse(json: &Value) -> Option<Self> {
        let root = PathBuf::from(json["workspace_root"].as_str()?);
        let packages = json["packages"].as_array()?.iter().map(|package| Package::parse(package, &root));
        Some(Self {
            target: json["target_directory"].as_str()?.into(),
            packages: packages.collect::<Option<_>>()?,
            root,
        })
    }
}

impl Package {
    fn parse(json: &Value, root: &Path) -> Option<Self> {
        let manifest = Path::new(json["manifest_path"].as_str()?);
        let dependencies = json["dependencies"].as_array()?.iter().map(|dependency| {
            Some(Dependency {
                name: dependency["name"].as_str()?.into(),
                requirement: dependency["req"].as_str()?.into(),
                is_member: dependency["path"].is_string(),
                is_dev: dependency["kind"] == "dev",
            })
        });
        Some(Self {
            name: json["name"].as_str()?.into(),
            manifest: manifest.strip_prefix(root).ok()?.to_str()?.replace('\\', "/"),
            dependencies: dependencies.collect::<Option<_>>()?,
        })
    }
}

/// A cargo that runs in `root` as if it had been typed in a shell.
///
/// `cargo run` hands its package's variables on to us, and some build scripts (ring's) run again when they change: left
/// in place, `cargo xtask ci test` and `cargo test` would rebuild each other's work.
pub fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    for (name, _) in std::env::vars_os() {
        let inherited = name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"));
        if inherited {
            command.env_remove(name);
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn metadata_gives_members_and_their_edges() {
        let json = json!({
            "workspace_root": "/w",
            "target_directory": "/t",
            "packages": [{
                "name": "calib",
                "manifest_path": "/w/crates/calib/Cargo.toml",
                "dependencies": [
                    { "name": "mla-core", "req": "*", "path": "/w/crates/mla-core", "kind": null },
                    { "name": "proptest", "req": "^1", "kind": "dev" },
                ],
            }],
        });
        let workspace = Workspace::parse(&json).expect("complete metadata");
        let [package] = workspace.packages.as_slice() else { panic!("one package: {workspace:?}") };
        assert_eq!(package.manifest, "crates/calib/Cargo.toml");
        let flags: Vec<_> =
            package.dependencies.iter().map(|d| (d.name.as_str(), d.is_member, d.is_dev)).collect();
        assert_eq!(flags, [("mla-core", true, false), ("proptest", false, true)]);
    }

    #[test]
    fn metadata_without_a_field_is_refused() {
        assert!(Workspace::parse(&json!({ "workspace_root": "/w", "packages": [] })).is_none());
    }
}
