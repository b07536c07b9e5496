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
            ["donor", "separate 2x", "cascade 2x", "separate 4x", "cascade 4x"]
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
    let perplexity = |i: usize| number(&demo()[i], "perplexity");
    let kl = |i: usize| number(&demo()[i], "kl");
    assert!(kl(0).abs() < 1e-9 && number(&demo()[0], "top1_agreement") == 1.0);
    for [half, quarter] in [[1, 3], [2, 4]] {
        assert!(perplexity(half) < perplexity(quarter) && 0.0 < kl(half) && kl(half) < kl(quarter));
    }
    let [separate, cascade] = [1, 2].map(|i| perplexity(i) / perplexity(0));
    assert!(separate <= 1.03 && cascade <= 1.005, "half the cache costs {separate} and {cascade}");
}

#[test]
fn reading_earlier_layers_is_better_at_the_same_bytes() {
    for (separate, cascade) in [(1, 2), (3, 4)] {
        let of = |field: &str| [separate, cascade].map(|i| number(&demo()[i], field));
        let ([apart, reading], [kl_apart, kl_reading]) = (of("perplexity"), of("kl"));
        assert!(reading < apart && 2.0 * kl_reading < kl_apart, "{apart} {reading} {kl_apart} {kl_reading}");
    }
}

#[test]
fn the_allocated_cache_is_exactly_a_half_and_a_quarter() {
    let bytes: Vec<u64> = demo().iter().map(|m| m["cache_bytes"].as_u64().expect("bytes")).collect();
    // 2 · 6 layers · 256 tokens · d_kv 64 · 4 bytes.
    assert_eq!(bytes, [786_432, 393_216, 393_216, 196_608, 196_608]);
}

#[test]
fn the_factors_are_orthonormal_and_every_model_writes() {
    assert_eq!(demo()[0]["orthonormality"], Value::Null);
    for model in &demo()[1..] {
        let worst = number(model, "orthonormality");
        // Rounding to f32 leaves a residual: a nought would mean that nothing was looked at.
        assert!(0.0 < worst && worst < 1e-6, "{model}");
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
    let args = ["convert", &donor, "-o", &out, "-r", "2", "--calibration", "builtin:prose", "--quiet"];
    let cascade = ["--method", "cascade", "--cascade-window", "5", "--ranks", "global"];
    shrink(&[&args[..], &spread, &cascade].concat()).text();
    let heldout = golden("demo/heldout.txt");
    let found =
        shrink(&["eval", &out, "--data", &heldout, "--max-length", "256", "--windows", "40", "--json"])
            .json();
    // The demo never wrote its model: saving and loading changed nothing.
    assert_eq!(found["perplexity"], demo()[2]["perplexity"]);
    assert_eq!(found["cache"]["bytes"], demo()[2]["cache_bytes"]);
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
    assert!(run.text().contains("cascade 4x"));
    assert!(std::fs::read_dir(&trap).expect("a folder").next().is_none(), "the link was followed");
    assert_eq!(scratch.names().len(), 2, "the trap and its link");
}
