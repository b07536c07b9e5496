//! What Rust sources may not contain.

use super::Violation;
use super::code::{Word, code_only, words};
use super::tree::Tree;

/// Lines a source file of a crate may have; beyond that it holds more than one idea.
const MAX_LINES: usize = 600;

/// Length, `unsafe`, unfinished code, silenced lints and silenced tests.
pub fn check(tree: &Tree) -> Vec<Violation> {
    let sources = tree.below("").filter(|(path, _)| path.ends_with(".rs"));
    sources.flat_map(|(path, file)| check_file(path, &file.text)).collect()
}

fn check_file(path: &str, text: &str) -> Vec<Violation> {
    let mut found = Vec::new();
    let lines = text.lines().count();
    if lines > MAX_LINES && is_crate_source(path) {
        let what = format!("has {lines} lines, at most {MAX_LINES}: split it");
        found.push(Violation::new(path, MAX_LINES + 1, what));
    }
    let code = code_only(text);
    for word in words(&code) {
        if let Some(what) = offence(&word) {
            found.push(Violation::new(path, word.line, what));
        }
    }
    found
}

/// `crates/*/src/**`
fn is_crate_source(path: &str) -> bool {
    let mut parts = path.split('/');
    parts.next() == Some("crates") && parts.nth(1) == Some("src")
}

/// What is wrong with a word where it stands.
fn offence(word: &Word<'_>) -> Option<&'static str> {
    let is_macro = word.after.trim_start().starts_with('!') && !word.after.trim_start().starts_with("!=");
    match word.text {
        "unsafe" => Some("`unsafe`: the workspace forbids it"),
        "todo" if is_macro => Some("`todo!`: finish it or leave it out"),
        "allow" if in_attribute(word) && word.after.trim_start().starts_with('(') => {
            Some("`allow` attribute: use `#[expect(…, reason = \"…\")]`")
        }
        "ignore" if in_attribute(word) => {
            Some("`#[ignore]`: a test runs, or says loudly that it was skipped")
        }
        _ => None,
    }
}

/// Whether a word is what an attribute says: the first one in it, or behind the condition of a `cfg_attr`.
fn in_attribute(word: &Word<'_>) -> bool {
    let Some(open) = word.before.rfind("#[").max(word.before.rfind("#![")) else { return false };
    let inside = word.before[open..].trim_start_matches(['#', '!', '[']);
    !inside.contains(']') && (inside.trim().is_empty() || inside.trim_start().starts_with("cfg_attr"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<usize> {
        check_file("crates/calib/src/metric.rs", text).iter().map(|violation| violation.line).collect()
    }

    #[test]
    fn forbidden_words_are_found_in_code() {
        for text in [
            "fn f() { unsafe { g() } }",
            "fn f() { todo!() }",
            "fn f() { todo ! (\"later\") }",
            "#[allow(dead_code)]\nfn f() {}",
            "#![allow(dead_code)]",
            "#[cfg_attr(test, allow(dead_code))]\nfn f() {}",
            "#[ignore]\nfn f() {}",
            "#[ignore = \"slow\"]\nfn f() {}",
            "#[cfg_attr(not(feature = \"x\"), ignore)]\nfn f() {}",
        ] {
            assert_eq!(found(text), [1], "{text}");
        }
    }

    #[test]
    fn words_that_only_look_alike_pass() {
        for text in [
            "// unsafe todo!() #[allow(x)] #[ignore]",
            "const S: &str = \"unsafe todo!() #[allow(x)]\";",
            "#![forbid(unsafe_code)]",
            "#[expect(dead_code, reason = \"allow(x)\")]\nfn f() {}",
            "fn allow(ignore: bool) -> bool { let todo = ignore; todo != false }",
            "#[derive(Debug)] struct S; fn g() { allow(1); ignore(2); }",
        ] {
            assert_eq!(found(text), [0; 0], "{text}");
        }
    }

    #[test]
    fn a_file_of_a_crate_has_at_most_600_lines() {
        assert_eq!(found(&"\n".repeat(600)), [0; 0]);
        assert_eq!(found(&"\n".repeat(601)), [601]);
        assert!(check_file("crates/calib/tests/suite.rs", &"\n".repeat(601)).is_empty());
        assert!(check_file("xtask/src/main.rs", &"\n".repeat(601)).is_empty());
    }

    #[test]
    fn every_source_of_the_tree_is_looked_at() {
        let files = [("xtask/src/a.rs", "todo!()"), ("tests/b.rs", "todo!()"), ("docs/c.md", "todo!()")];
        assert_eq!(check(&Tree::of(&files)).len(), 2);
    }
}
