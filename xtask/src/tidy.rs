//! Rules of the tree that no compiler checks.

mod code;
mod edges;
mod goldens;
mod layers;
mod links;
mod pins;
mod source;
mod tree;

use std::fmt;

use anyhow::Result;

use crate::workspace::Workspace;
use tree::Tree;

/// A rule broken at a place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    path: String,
    line: usize,
    what: String,
}

impl Violation {
    fn new(path: impl Into<String>, line: usize, what: impl Into<String>) -> Self {
        Self { path: path.into(), line, what: what.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// Everything that is wrong with the working tree, by path and line.
///
/// # Errors
/// When the tree cannot be read.
pub fn check(workspace: &Workspace) -> Result<Vec<Violation>> {
    let tree = Tree::read(&workspace.root)?;
    let mut found = edges::check(&workspace.packages, &tree);
    found.extend(pins::check(&workspace.packages, &tree));
    for rule in [layers::check, source::check, goldens::check, links::check] {
        found.extend(rule(&tree));
    }
    found.sort();
    found.dedup();
    Ok(found)
}
