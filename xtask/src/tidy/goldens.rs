//! Goldens are made by a script that lies beside them, and stay small enough for a repository.

use std::collections::BTreeSet;

use super::Violation;
use super::tree::Tree;

const MAKE: &str = "make.py";
/// Bytes of one artefact.
const MAX_BYTES: u64 = 200_000;
/// The model that ships inside the program is larger: bytes of its whole folder.
const DEMO: &str = "demo";
const MAX_DEMO_BYTES: u64 = 4 << 20;

/// Artefacts without their script, and artefacts that are too large.
pub fn check(tree: &Tree) -> Vec<Violation> {
    let folder = |path: &str| {
        path.strip_prefix("goldens/").and_then(|rest| rest.split_once('/')).map(|(name, _)| name.to_owned())
    };
    let folders: BTreeSet<String> = tree.below("goldens").filter_map(|(path, _)| folder(path)).collect();
    folders.iter().flat_map(|name| check_folder(tree, name)).collect()
}

fn check_folder(tree: &Tree, name: &str) -> Vec<Violation> {
    let base = format!("goldens/{name}");
    let make = format!("{base}/{MAKE}");
    let artefacts: Vec<_> = tree.below(&base).filter(|(path, _)| *path != make).collect();
    let mut found = Vec::new();
    if !artefacts.is_empty() && !tree.has(&make) {
        found.push(Violation::new(&make, 1, "is missing; it makes the artefacts beside it"));
    }
    if name == DEMO {
        let bytes: u64 = tree.below(&base).map(|(_, file)| file.bytes).sum();
        if bytes > MAX_DEMO_BYTES {
            let what = format!("the folder has {bytes} bytes, at most {MAX_DEMO_BYTES}");
            found.push(Violation::new(base, 1, what));
        }
        return found;
    }
    for (path, file) in artefacts {
        if file.bytes > MAX_BYTES {
            found.push(Violation::new(path, 1, format!("has {} bytes, at most {MAX_BYTES}", file.bytes)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        check(&Tree::of(files)).into_iter().map(|violation| violation.path).collect()
    }

    #[test]
    fn an_artefact_without_its_script_is_found() {
        assert_eq!(found(&[("goldens/llama/golden.json", "{}")]), ["goldens/llama/make.py"]);
        let made = [("goldens/llama/golden.json", "{}"), ("goldens/llama/make.py", "")];
        assert_eq!(found(&made), [""; 0]);
        assert_eq!(found(&[("goldens/README.md", ""), ("goldens/twin.py", "")]), [""; 0]);
    }

    #[test]
    fn a_large_artefact_is_found() {
        let large = "x".repeat(200_001);
        let files = [("goldens/llama/make.py", ""), ("goldens/llama/model.safetensors", large.as_str())];
        assert_eq!(found(&files), ["goldens/llama/model.safetensors"]);
        let just = [("goldens/llama/make.py", ""), ("goldens/llama/model.safetensors", &large[1..])];
        assert_eq!(found(&just), [""; 0]);
    }

    #[test]
    fn the_demo_has_a_budget_for_its_folder() {
        let half = "x".repeat(2 << 20);
        let files =
            [("goldens/demo/make.py", ""), ("goldens/demo/a", half.as_str()), ("goldens/demo/b", &half)];
        assert_eq!(found(&files), [""; 0]);
        let more = [files[0], files[1], files[2], ("goldens/demo/c", "x")];
        assert_eq!(found(&more), ["goldens/demo"]);
    }
}
