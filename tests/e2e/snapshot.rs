//! Whole outputs, compared with files: `UPDATE_SNAPSHOTS=1 cargo test` writes them anew.

/// The text equals `snapshots/NAME.txt`; `replace` gives places that differ from run to run a name.
#[track_caller]
pub fn assert_snapshot(name: &str, text: &str, replace: &[(&str, &str)]) {
    let text = replace.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
    let path = std::path::PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"))
        .join(format!("../../tests/e2e/snapshots/{name}.txt"));
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, &text).expect("a snapshot");
    }
    let expected = std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{}: {e}; UPDATE_SNAPSHOTS=1 writes it", path.display()));
    assert!(expected == text, "{name} differs\n--- expected\n{expected}\n--- found\n{text}");
}
