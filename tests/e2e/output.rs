//! The folder that convert writes: whole or not at all, and never over another unasked.

use crate::folder::{Scratch, golden};
use crate::program::{BINARY, Run, command, shrink};

/// An output folder as an earlier conversion would leave it: `--force` replaces no other.
fn earlier(scratch: &Scratch) -> String {
    let out = scratch.path("out");
    std::fs::create_dir(&out).expect("a folder");
    scratch.write("out/config.json", "{\"mla\": {}}");
    scratch.write("out/notes.txt", "of an earlier version");
    scratch.write("out/shrink.json", "{\"files\": [\"config.json\", \"notes.txt\", \"shrink.json\"]}");
    out
}

/// What [`earlier`] left is untouched.
#[track_caller]
fn is_as_it_was(scratch: &Scratch) {
    assert_eq!(scratch.names(), ["out", "out/config.json", "out/notes.txt", "out/shrink.json"]);
}

#[test]
fn an_output_that_exists_is_refused_and_untouched() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    std::fs::create_dir(&out).expect("a folder");
    scratch.write("out/mine.txt", "mine");
    let args = ["convert", &golden("llama"), "-o", &out, "--no-calibration"];
    let hint = shrink(&args).refused("out already exists");
    assert!(hint.contains("--force"), "{hint}");
    assert_eq!(scratch.names(), ["out", "out/mine.txt"]);
    let file = scratch.write("file", "mine");
    shrink(&["convert", &golden("llama"), "-o", &file, "--no-calibration"]).refused("file already exists");
    assert_eq!(scratch.read("file"), b"mine");
}

#[test]
fn an_output_that_exists_is_refused_before_anything_else_is_looked_at() {
    let scratch = Scratch::new();
    shrink(&["convert", "./nowhere", "-o", &scratch.root()]).refused("already exists");
}

#[test]
fn force_replaces_the_whole_folder() {
    let scratch = Scratch::new();
    let out = earlier(&scratch);
    shrink(&["convert", &golden("llama"), "-o", &out, "-r", "2", "--no-calibration", "--force"]).text();
    let names = scratch.names();
    assert!(
        !names
            .iter()
            .any(|name| name.contains("notes") || name.contains("partial") || name.contains("replaced"))
    );
    assert!(names.iter().any(|name| name == "out/model.safetensors"), "{names:?}");
    assert_eq!(shrink(&["check", &out, "--json"]).json()["ok"], true);
}

#[test]
fn a_conversion_that_fails_leaves_what_was_there_even_with_force() {
    let (donor, scratch) = (Scratch::of("llama"), Scratch::new());
    let out = earlier(&scratch);
    // The last tensor to be written, so that the failure comes late.
    donor.edit(|tensors| {
        tensors.get_mut("model.layers.2.mlp.up_proj.weight").expect("a tensor").set(0, f32::NAN)
    });
    let args = ["convert", &donor.root(), "-o", &out, "--no-calibration", "--force"];
    shrink(&args).refused("up_proj.weight holds NaN at element 0");
    is_as_it_was(&scratch);
}

#[test]
fn force_does_not_replace_what_shrink_did_not_write() {
    let scratch = Scratch::of("llama");
    let before = scratch.names();
    // The donor itself, a folder inside it, the folder around it, and somebody else's.
    for out in [scratch.root(), scratch.path("inside")] {
        let args = ["convert", &scratch.root(), "-o", &out, "--no-calibration", "--force"];
        let hint = shrink(&args).refused("");
        assert!(hint.contains("name a new folder"), "{hint}");
        assert_eq!(scratch.names(), before, "{out}");
    }
    for out in [".", "..", "/"] {
        let args = ["convert", &golden("llama"), "-o", out, "--no-calibration", "--force"];
        Run::of(command(BINARY).args(args).current_dir(scratch.root())).refused("");
        assert_eq!(scratch.names(), before, "{out}");
    }
}

#[test]
fn force_does_not_replace_a_folder_with_something_of_the_users() {
    let scratch = Scratch::new();
    let out = earlier(&scratch);
    let force = || shrink(&["convert", &golden("llama"), "-o", &out, "--no-calibration", "--force"]);
    for mine in ["out/mine.txt", "out/model.safetensors", "out/.git"] {
        scratch.write(mine, "mine");
        let name = &mine["out/".len()..];
        let hint = force().refused(&format!("out holds {name}, which shrink did not write"));
        assert!(hint.contains("name a new folder"), "{hint}");
        assert_eq!(scratch.read(mine), b"mine");
        scratch.remove(mine);
    }
    // Somebody else's configuration may have an `mla` section too.
    scratch.remove("out/shrink.json");
    force().refused("has no shrink.json");
    assert_eq!(scratch.names(), ["out", "out/config.json", "out/notes.txt"]);
}

#[test]
fn force_does_not_replace_what_the_command_reads() {
    let scratch = Scratch::new();
    let (model, teacher) = (scratch.path("model"), scratch.path("teacher"));
    for out in [&model, &teacher] {
        shrink(&["convert", &golden("llama"), "-o", out, "-r", "2", "--no-calibration"]).text();
    }
    // Texts in a folder of names that shrink gives: a record without a list says no more of them.
    let texts = scratch.path("texts");
    std::fs::create_dir(&texts).expect("a folder");
    scratch.write("texts/shrink.json", "{}");
    let text =
        scratch.write("texts/LICENSE.txt", "It was the best of times, it was the worst of times. ".repeat(9));
    let settings = scratch.write("texts/NOTICE", "seed = 1\n");
    let before = scratch.names();

    let refused = |args: &[&str]| {
        let hint = shrink(&[args, &["--force"]].concat()).refused("which this command needs");
        assert!(hint.contains("name a new folder"), "{hint}");
        assert_eq!(scratch.names(), before, "{args:?}");
    };
    let short = ["--max-length", "16", "--max-steps", "1", "--batch-size", "1"];
    let train = |out: &str, data: &str, more: &[&str]| {
        refused(&[&["train", &model, "-o", out, "--data", data], &short[..], more].concat());
    };
    let data = golden("demo/calibration.txt");
    train(&texts, &text, &["--loss", "lm"]);
    train(&texts, &data, &["--loss", "lm", "--validation", &text]);
    train(&teacher, &data, &["--loss", "kl", "--teacher", &teacher]);
    train(&texts, &data, &["--loss", "lm", "--config", &settings]);
    let few = ["--num-calibration-samples", "2", "--max-calibration-length", "16"];
    refused(&[&["convert", &golden("llama"), "-o", &texts, "--calibration", &text], &few[..]].concat());
    // The model that is trained, and the run's folder.
    let args = ["train", &model, "-o", &model, "--data", &data, "--loss", "lm", "--force"];
    shrink(&args).refused("overlaps the donor's folder");
    let inside = format!("{texts}/run");
    let args =
        ["train", &model, "-o", &texts, "--data", &data, "--loss", "lm", "--run-dir", &inside, "--force"];
    shrink(&args).refused("lies in");
    assert_eq!(scratch.names(), before);
}

#[test]
fn folders_on_the_way_are_made() {
    let scratch = Scratch::new();
    let out = scratch.path("deep/er/out");
    shrink(&["convert", &golden("llama"), "-o", &out, "--no-calibration"]).text();
    assert!(scratch.names().contains(&"deep/er/out/config.json".to_owned()));
}

#[test]
fn a_file_on_the_way_is_an_error() {
    let scratch = Scratch::new();
    scratch.write("file", "mine");
    let out = scratch.path("file/out");
    shrink(&["convert", &golden("llama"), "-o", &out, "--no-calibration"]).refused("cannot create ");
    assert_eq!(scratch.names(), ["file"]);
}

#[test]
fn a_relative_output_lands_in_the_working_folder() {
    let scratch = Scratch::new();
    let args = ["convert", &golden("llama"), "-o", "out", "--no-calibration"];
    Run::of(command(BINARY).args(args).current_dir(scratch.root())).text();
    assert!(scratch.names().contains(&"out/model.safetensors".to_owned()));
}

#[cfg(unix)]
#[test]
fn a_name_that_is_not_utf8_is_a_name_all_the_same() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    let scratch = Scratch::new();
    let mut convert = command(BINARY);
    convert.args(["convert", &golden("llama"), "--no-calibration", "--json", "-o"]);
    convert.arg(OsStr::from_bytes(b"caf\xe9")).current_dir(scratch.root());
    assert_eq!(Run::of(&mut convert).json()["output"], "caf\u{fffd}");
}

/// Runs a conversion of the bundled model under a limit of a file's size, which fails a write as a full disk does.
#[cfg(unix)]
fn convert_in_blocks(blocks: usize, out: &str, more: &str) -> Run {
    // Without the trap the limit would kill the program instead of failing its write.
    let script = format!(
        "trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" convert \"$1\" -o \"$2\" --no-calibration {more}"
    );
    Run::of(command("/bin/sh").args(["-c", &script, BINARY, &golden("demo"), out]))
}

#[cfg(unix)]
#[test]
fn a_disk_that_fills_up_leaves_nothing() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    // The weights need 2.6 MB: the first limit stops them, the second even config.json.
    for (blocks, file) in [(1000, "model.safetensors"), (0, "config.json")] {
        convert_in_blocks(blocks, &out, "").refused(&format!("partial/{file}: File too large"));
        assert_eq!(scratch.names(), [""; 0], "{blocks} blocks");
    }
}

#[cfg(unix)]
#[test]
fn a_disk_that_fills_up_leaves_what_was_there() {
    let scratch = Scratch::new();
    let out = earlier(&scratch);
    convert_in_blocks(1000, &out, "--force").refused("File too large");
    is_as_it_was(&scratch);
    convert_in_blocks(100_000, &out, "--force").text();
    assert!(!scratch.names().contains(&"out/notes.txt".to_owned()));
}
