//! Which crate may know which.

use super::Violation;
use super::tree::Tree;
use crate::workspace::Package;

/// The whole graph: a crate and the members it may depend on.
///
/// `calib`, `handlers` and `train` never know each other; a command joins them.
const ALLOWED: [(&str, &[&str]); 8] = [
    ("stiefel-optim", &[]),
    ("mla-core", &[]),
    ("handlers", &["mla-core"]),
    ("calib", &["mla-core"]),
    ("train", &["mla-core", "stiefel-optim"]),
    ("cli", &["stiefel-optim", "mla-core", "handlers", "calib", "train"]),
    ("testkit", &["mla-core"]),
    ("xtask", &[]),
];

/// Fixtures that any crate may have in its tests, and in nothing else.
const TESTKIT: &str = "testkit";

/// Every edge that is not in the table.
pub fn check(packages: &[Package], tree: &Tree) -> Vec<Violation> {
    let mut found = Vec::new();
    for package in packages {
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == package.name) else {
            let what = format!(
                "crate {} is not in the table of crates; xtask/src/tidy/edges.rs has it",
                package.name
            );
            found.push(Violation::new(&package.manifest, 1, what));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|dependency| dependency.is_member) {
            let name = dependency.name.as_str();
            let fixture = name == TESTKIT && dependency.is_dev;
            if !fixture && !allowed.contains(&name) {
                let line = line_of(tree, &package.manifest, name);
                let allowed = if allowed.is_empty() { "no member".to_owned() } else { allowed.join(", ") };
                let what = format!("{} depends on {name}; it may know {allowed}", package.name);
                found.push(Violation::new(&package.manifest, line, what));
            }
        }
    }
    found
}

/// The line of a manifest that names a dependency.
pub(super) fn line_of(tree: &Tree, manifest: &str, name: &str) -> usize {
    let begins = |line: &str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['.', ' ', '=']));
    let lines = tree.text(manifest).unwrap_or_default().lines();
    lines.map(str::trim_start).position(begins).map_or(1, |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Dependency;

    fn package(name: &str, dependencies: &[(&str, bool)]) -> Package {
        let dependency = |&(name, is_dev): &(&str, bool)| Dependency {
            name: name.into(),
            requirement: "*".into(),
            is_member: true,
            is_dev,
        };
        Package {
            name: name.into(),
            manifest: format!("crates/{name}/Cargo.toml"),
            dependencies: dependencies.iter().map(dependency).collect(),
        }
    }

    fn broken(package: Package) -> Vec<String> {
        check(&[package], &Tree::default()).iter().map(Violation::to_string).collect()
    }

    #[test]
    fn the_edges_of_the_architecture_pass() {
        for (name, allowed) in ALLOWED {
            let edges: Vec<_> = allowed.iter().map(|&name| (name, false)).collect();
            assert_eq!(broken(package(name, &edges)), [""; 0], "{name}");
        }
        assert_eq!(broken(package("calib", &[("testkit", true)])), [""; 0]);
    }

    #[test]
    fn siblings_never_know_each_other_not_even_in_tests() {
        for (from, to) in
            [("calib", "handlers"), ("handlers", "train"), ("train", "calib"), ("mla-core", "handlers")]
        {
            for is_dev in [false, true] {
                assert_eq!(broken(package(from, &[(to, is_dev)])).len(), 1, "{from} -> {to}");
            }
        }
    }

    #[test]
    fn the_testkit_is_for_tests_alone() {
        assert_eq!(broken(package("handlers", &[("testkit", false)])).len(), 1);
    }

    #[test]
    fn a_crate_nobody_placed_is_named() {
        assert_eq!(broken(package("helpers", &[])).len(), 1);
    }

    #[test]
    fn a_violation_names_the_manifests_line() {
        let manifest = "[package]\nname = \"calib\"\n\n[dependencies]\nburn.workspace = true\nhandlers.workspace = true\n";
        let tree = Tree::of(&[("crates/calib/Cargo.toml", manifest)]);
        let found = check(&[package("calib", &[("handlers", false)])], &tree);
        assert_eq!(
            found[0].to_string(),
            "crates/calib/Cargo.toml:6: calib depends on handlers; it may know mla-core"
        );
    }
}
