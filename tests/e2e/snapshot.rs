//! Whole outputs, compared with files: `UPDATE_SNAPSHOTS=1 cargo test` writes them anew, but not where `CI` is set.

use std::ffi::OsString;

/// The text equals `snapshots/NAME.txt`; `replace` gives places that differ from run to run a name.
#[track_caller]
pub fn assert_snapshot(name: &str, text: &str, replace: &[(&str, &str)]) {
    let text = replace.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
    let path = std::path::PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"))
        .join(format!("../../tests/e2e/snapshots/{name}.txt"));
    if is_to_update(std::env::var_os) {
        std::fs::write(&path, &text).expect("a snapshot");
    }
    let expected = std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{}: {e}; UPDATE_SNAPSHOTS=1 writes it", path.display()));
    assert!(expected == text, "{name} differs\n--- expected\n{expected}\n--- found\n{text}");
}

/// Whether snapshots are written anew. Continuous integration that did so would pass whatever came out.
#[track_caller]
fn is_to_update(variable: impl Fn(&'static str) -> Option<OsString>) -> bool {
    let asked = variable("UPDATE_SNAPSHOTS").is_some();
    assert!(
        !asked || variable("CI").is_none(),
        "UPDATE_SNAPSHOTS is set where CI is: snapshots are compared there"
    );
    asked
}

#[test]
fn snapshots_are_written_when_asked_for() {
    assert!(!is_to_update(|_| None));
    assert!(!is_to_update(|name| (name == "CI").then(|| "true".into())));
    assert!(is_to_update(|name| (name == "UPDATE_SNAPSHOTS").then(|| "1".into())));
}

#[test]
#[should_panic = "snapshots are compared there"]
fn snapshots_are_never_written_by_continuous_integration() {
    is_to_update(|_| Some("1".into()));
}
