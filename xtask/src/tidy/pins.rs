//! Versions that must not drift: burn exactly, everything else by Cargo.lock.

use super::Violation;
use super::edges::line_of;
use super::tree::Tree;
use crate::workspace::Package;

const ROOT: &str = "Cargo.toml";

/// burn's crates depend on each other with caret ranges, so a loose requirement would mix versions.
pub fn check(packages: &[Package], tree: &Tree) -> Vec<Violation> {
    let mut found = Vec::new();
    if !tree.has("Cargo.lock") {
        found.push(Violation::new("Cargo.lock", 1, "is missing; it is committed"));
    }
    for package in packages {
        for dependency in &package.dependencies {
            let name = dependency.name.as_str();
            let is_burn = name == "burn" || name.starts_with("burn-");
            if is_burn && !dependency.requirement.starts_with('=') {
                let what = format!("{name} is required as `{}`; pin it with `=`", dependency.requirement);
                found.push(place(&package.manifest, name, what, tree));
            }
        }
    }
    found
}

/// An inherited requirement is at fault in the root's manifest.
fn place(manifest: &str, name: &str, what: String, tree: &Tree) -> Violation {
    let line = line_of(tree, manifest, name);
    let inherited = tree
        .text(manifest)
        .and_then(|text| text.lines().nth(line - 1))
        .is_some_and(|text| text.contains("workspace"));
    match inherited {
        true => Violation::new(ROOT, line_of(tree, ROOT, name), what),
        false => Violation::new(manifest, line, what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Dependency;

    fn with_burn(requirement: &str) -> Vec<Package> {
        let dependency = Dependency {
            name: "burn".into(),
            requirement: requirement.into(),
            is_member: false,
            is_dev: false,
        };
        vec![Package {
            name: "calib".into(),
            manifest: "crates/calib/Cargo.toml".into(),
            dependencies: vec![dependency],
        }]
    }

    #[test]
    fn a_loose_burn_is_found_where_it_is_written() {
        let root = "[workspace.dependencies]\nburn = { version = \"0.22.1\" }\n";
        let tree = Tree::of(&[
            ("Cargo.lock", ""),
            (ROOT, root),
            ("crates/calib/Cargo.toml", "[dependencies]\nburn.workspace = true\n"),
        ]);
        assert_eq!(check(&with_burn("=0.22.1"), &tree), []);
        let found = check(&with_burn("^0.22.1"), &tree);
        assert_eq!(found[0].to_string(), "Cargo.toml:2: burn is required as `^0.22.1`; pin it with `=`");
        let own = Tree::of(&[("Cargo.lock", ""), ("crates/calib/Cargo.toml", "burn = \"0.22.1\"\n")]);
        assert_eq!(check(&with_burn("^0.22.1"), &own)[0].path, "crates/calib/Cargo.toml");
    }

    #[test]
    fn a_missing_lock_file_is_found() {
        assert_eq!(check(&[], &Tree::default())[0].path, "Cargo.lock");
    }
}
