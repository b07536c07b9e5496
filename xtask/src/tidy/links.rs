//! Links of the markdown files into the repository.

use super::Violation;
use super::tree::Tree;

/// Every relative link whose target is not there.
pub fn check(tree: &Tree) -> Vec<Violation> {
    let pages = tree.below("").filter(|(path, _)| path.ends_with(".md"));
    pages.flat_map(|(path, file)| check_page(tree, path, &file.text)).collect()
}

fn check_page(tree: &Tree, path: &str, text: &str) -> Vec<Violation> {
    let mut found = Vec::new();
    for (line, target) in links(text) {
        let file = target.split('#').next().unwrap_or_default();
        if file.is_empty() || is_elsewhere(file) {
            continue;
        }
        let there = resolve(path, file).is_some_and(|file| tree.has(&file));
        if !there {
            found.push(Violation::new(
                path,
                line,
                format!("links to {file}, which is not in the repository"),
            ));
        }
    }
    found
}

fn is_elsewhere(target: &str) -> bool {
    target.contains("://") || target.starts_with("mailto:")
}

/// A link's target relative to the repository; `None` when it leaves it.
fn resolve(page: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = match target.starts_with('/') {
        true => Vec::new(),
        false => page.split('/').collect(),
    };
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// The targets of `[text](target)` and of `[label]: target`, with their lines; code is not looked at.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut fence = None;
    for (number, line) in text.lines().enumerate() {
        let marker = ["```", "~~~"].into_iter().find(|marker| line.trim_start().starts_with(marker));
        match (fence, marker) {
            (None, Some(marker)) => fence = Some(marker),
            (Some(open), Some(marker)) if open == marker => fence = None,
            (None, None) => found.extend(line_links(line).into_iter().map(|target| (number + 1, target))),
            _ => {}
        }
    }
    found
}

fn line_links(line: &str) -> Vec<String> {
    // What stands between backticks is code.
    let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
    let mut targets: Vec<String> = prose
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .filter_map(|(inside, _)| target(inside))
        .collect();
    if let Some((label, rest)) = prose.trim_start().split_once("]: ")
        && label.starts_with('[')
        && !label.contains(']')
    {
        targets.extend(target(rest));
    }
    targets
}

/// The target without a title or angle brackets.
fn target(text: &str) -> Option<String> {
    let text = text.trim();
    let bare = match text.strip_prefix('<') {
        Some(rest) => rest.split('>').next(),
        None => text.split_whitespace().next(),
    };
    bare.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(page: &str, text: &str) -> Vec<String> {
        let tree = Tree::of(&[
            (page, text),
            ("ARCHITECTURE.md", ""),
            ("docs/memory.md", ""),
            ("crates/calib/src/lib.rs", ""),
        ]);
        check(&tree).iter().map(Violation::to_string).collect()
    }

    #[test]
    fn links_to_what_is_there_pass() {
        let text = "[a](memory.md#tables) ![b](../ARCHITECTURE.md \"title\") [c](<../crates/calib>) [d](#here)\n\
                    [e](https://example.org/x.md) [f](/ARCHITECTURE.md) [g](mailto:a@b.c)\n[h]: memory.md\n";
        assert_eq!(broken("docs/page.md", text), [""; 0]);
    }

    #[test]
    fn a_link_to_nothing_is_found_with_its_line() {
        let found = broken("docs/page.md", "x\n[a](memory.md) and [b](memroy.md)\n");
        assert_eq!(found, ["docs/page.md:2: links to memroy.md, which is not in the repository"]);
        for text in ["[a](ARCHITECTURE.md)", "[a](../../outside.md)", "[a]: gone.md", "![a](gone.png)"] {
            assert_eq!(broken("docs/page.md", text).len(), 1, "{text}");
        }
    }

    #[test]
    fn code_is_not_prose() {
        let text = "```rust\nlet x = a[0](gone.md);\n```\n`[a](gone.md)`\n~~~\n[a](gone.md)\n~~~\n";
        assert_eq!(broken("README.md", text), [""; 0]);
        assert_eq!(broken("README.md", "```\n```\n[a](gone.md)").len(), 1);
    }
}
