//! `shrink demo`: the whole way on the bundled model, without a network or a model of one's own.

use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::folder::{Scratch, golden};
use crate::golden::Golden;
use crate::program::{BINARY, Run, assert_close, command, number, shrink};

/// The demo's JSON, run once for all tests.
fn demo() -> &'static [Value] {
    static DEMO: OnceLock<Vec<Value>> = OnceLock::new();
    DEMO.get_or_init(|| {
        let found = shrink(&["demo", "--json", "--quiet"]).json();
        assert_eq!((&found["windows"], &found["window"]), (&json!(40), &json!(256)));
        let models = found["models"].as_array().expect("a list").clone();
        assert_eq!(
            models.iter().map(|m| &m["name"]).collect::<Vec<_>>(),
            ["donor", "latent 2x", "latent 4x"]
        );
        models
    })
}

#[test]
fn the_donors_perplexity_is_the_references() {
    assert_close(number(&demo()[0], "perplexity"), Golden::read().perplexity(), 2e-4);
}

#[test]
fn half_the_cache_costs_little_and_a_quarter_more() {
    let [donor, half, quarter] = [0, 1, 2].map(|i| number(&demo()[i], "perplexity"));
    assert!(donor < half && half < quarter, "{donor} {half} {quarter}");
    assert!(half <= 1.03 * donor, "{half} is more than 3% above {donor}");
    let [itself, near, far] = [0, 1, 2].map(|i| number(&demo()[i], "kl"));
    assert!(itself.abs() < 1e-9 && near > 0.0 && far > near, "{itself} {near} {far}");
    assert_eq!(number(&demo()[0], "top1_agreement"), 1.0);
}

#[test]
fn the_allocated_cache_is_exactly_a_half_and_a_quarter() {
    let bytes = [0, 1, 2].map(|i| demo()[i]["cache_bytes"].as_u64().expect("bytes"));
    // 2 · 6 layers · 256 tokens · d_kv 64 · 4 bytes.
    assert_eq!(bytes, [786_432, 393_216, 196_608]);
}

#[test]
fn the_factors_are_orthonormal_and_every_model_writes() {
    assert_eq!(demo()[0]["orthonormality"], Value::Null);
    for model in &demo()[1..] {
        assert!(number(model, "orthonormality") < 1e-6, "{model}");
    }
    assert!(
        demo().iter().all(|model| model["completion"].as_str().is_some_and(|text| !text.trim().is_empty()))
    );
}

#[test]
fn the_same_conversion_through_a_folder_gives_the_same_bits() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    let donor = golden("demo");
    let spread = ["--num-calibration-samples", "64", "--max-calibration-length", "256"];
    let args = ["convert", &donor, "-o", &out, "-r", "2", "--calibration", "builtin"];
    shrink(&[&args[..], &spread].concat()).text();
    let heldout = golden("demo/heldout.txt");
    let found =
        shrink(&["eval", &out, "--data", &heldout, "--max-length", "256", "--windows", "40", "--json"])
            .json();
    // The demo never wrote its model: saving and loading changed nothing.
    assert_eq!(found["perplexity"], demo()[1]["perplexity"]);
    assert_eq!(found["cache"]["bytes"], demo()[1]["cache_bytes"]);
}

#[test]
fn the_text_is_a_table_of_the_same_numbers_and_nothing_is_left_in_the_temporary_folder() {
    let scratch = Scratch::new();
    let run = Run::of(command(BINARY).args(["demo", "--max-new-tokens", "5"]).env("TMPDIR", scratch.root()));
    let progress = run.stderr.clone();
    let text = run.text();
    for model in demo() {
        let name = model["name"].as_str().expect("a name");
        let line =
            text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in {text}"));
        assert!(line.contains(&format!("  {:.2}  ", number(model, "perplexity"))), "{line}");
        assert!(line.contains(&format!("  {:.4}  ", number(model, "kl"))), "{line}");
        assert!(text.contains(&format!("\n[{name}]\nThe ship was")), "{text}");
        assert!(progress.contains(&format!("measuring {name}: done in ")), "{progress}");
    }
    let header = text.lines().find(|line| line.starts_with("model ")).expect("a header");
    for column in ["perplexity", "KL to donor", "same top token", "cache", "|WᵀW − I|"] {
        assert!(header.contains(column), "{column} in {header:?}");
    }
    assert_eq!(scratch.names(), [""; 0]);
}

#[cfg(unix)]
#[test]
fn the_bundled_model_is_not_unpacked_where_another_user_could_wait_for_it() {
    // Whoever knows the next folder's name could lie in wait with a link; a name that is taken must not matter.
    let scratch = Scratch::new();
    let trap = scratch.path("trap");
    std::fs::create_dir(&trap).expect("a folder");
    let script = format!(
        "ln -s '{trap}' '{}/shrink-demo-'$$; exec \"$0\" demo --max-new-tokens 1 --quiet",
        scratch.root()
    );
    let run = Run::of(command("sh").args(["-c", &script, BINARY]).env("TMPDIR", scratch.root()));
    assert!(run.text().contains("latent 4x"));
    assert!(std::fs::read_dir(&trap).expect("a folder").next().is_none(), "the link was followed");
    assert_eq!(scratch.names().len(), 2, "the trap and its link");
}
