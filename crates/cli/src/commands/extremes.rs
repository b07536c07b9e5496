//! Configurations of any sizes: whatever is counted of them either is refused or fits its number.
//!
//! The build checks every addition and multiplication, so that one that overflows is a panic here.

use std::path::{Path, PathBuf};

use calib::{Cascade, Method, Objective, Options, Plan, Ranks, Speed, TextSize, Width, Xkv};
use clap::Parser;
use handlers::{ConfigJson, MlaSection, Registry, read_config};
use mla_core::CacheDtype;
use proptest::prelude::*;
use rayon::prelude::*;
use serde_json::{Value, json};

use super::{inspect, memory};
use crate::args::{Cli, Command, MemoryArgs};

/// Entries of a table of tensors that a configuration may ask for.
const TENSORS: usize = 1_000_000;

fn goldens() -> PathBuf {
    Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../../goldens")
}

/// The configuration of every model of the goldens, of whatever family, as it is and as a conversion by `cascade` would have it.
fn configurations() -> Vec<Value> {
    let entries = std::fs::read_dir(goldens()).expect("the goldens");
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.expect("an entry").path().join("config.json")).collect();
    paths.retain(|path| path.exists());
    paths.sort();
    assert!(paths.len() > 5, "{paths:?}");
    let of = |path: &PathBuf| {
        let donor = Value::Object(ConfigJson::read(path).expect("JSON").fields().clone());
        let (_, config, _) = read_config(path, &Registry::builtin()).expect("a configuration");
        let cascade = Method::Cascade(Cascade::of_window(config.n_layers() - 1));
        let section = calib::uniform_latents(&config, cascade, Width::Ratio(2.0))
            .map(|latent| MlaSection::from_config("cascade", "mse", &latent, true));
        let converted = section.ok().map(|section| {
            let mut converted = donor.clone();
            converted["mla"] = json!(section);
            converted
        });
        std::iter::once(donor).chain(converted)
    };
    paths.iter().flat_map(of).collect()
}

/// The fields of all configurations, nested ones too, as JSON pointers; a family may read what its twin does not say.
fn fields(configurations: &[Value]) -> Vec<String> {
    fn walk(value: &Value, at: &str, found: &mut Vec<String>) {
        let fields: Vec<(String, &Value)> = match value {
            Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), value)).collect(),
            Value::Array(items) => {
                items.iter().take(2).enumerate().map(|(i, value)| (i.to_string(), value)).collect()
            }
            _ => Vec::new(),
        };
        for (name, value) in fields {
            let at = format!("{at}/{name}");
            walk(value, &at, found);
            found.push(at);
        }
    }
    let mut found = ["/head_dim", "/sliding_window", "/rope_scaling", "/n_inner"].map(str::to_owned).to_vec();
    configurations.iter().for_each(|value| walk(value, "", &mut found));
    // Their names are refused or not, and nothing is counted of them.
    found.retain(|at| !at.ends_with("/model_type") && !at.contains("/transformers_version"));
    found.sort();
    found.dedup();
    found
}

/// What no field should hold, or only just may.
fn values() -> Vec<Value> {
    let sizes = [0, 1, 2, 3, 64, 1 << 10, 10_000, 1 << 16, 1 << 20, 1 << 24, (1 << 31) - 2, (1 << 31) - 1];
    let beyond = [1 << 31, 1 << 32, 1 << 53, u64::MAX];
    let others = [
        json!(-1),
        json!(i64::MIN),
        json!(0.5),
        json!(1e-300),
        json!(1e308),
        json!("1024"),
        json!(""),
        json!(true),
        Value::Null,
        json!([]),
        json!([1, "full_attention", null]),
        json!({}),
        json!({ "type": "dynamic", "factor": 1e300 }),
        json!({ "rope_type": "llama3", "factor": 1e300, "low_freq_factor": 1e-300, "high_freq_factor": 1e300 }),
        json!([[{ "d_latent": [0] }]]),
    ];
    sizes.iter().chain(&beyond).map(|&size| json!(size)).chain(others).collect()
}

/// Sets a field, if the way to it is there.
fn set(configuration: &mut Value, field: &str, value: &Value) {
    let (parent, name) = field.rsplit_once('/').expect("a pointer");
    match configuration.pointer_mut(parent) {
        Some(Value::Object(fields)) => {
            fields.insert(name.to_owned(), value.clone());
        }
        Some(Value::Array(items)) => {
            if let Some(item) = name.parse::<usize>().ok().and_then(|i| items.get_mut(i)) {
                *item = value.clone();
            }
        }
        _ => {}
    }
}

fn memory_args(more: &[&str]) -> MemoryArgs {
    let most = ["--sequence-lengths", "1,2147483647", "--batch-size", "2147483647"];
    let cli = Cli::try_parse_from([&["shrink", "memory", "x"], &most[..], more].concat());
    match cli.expect("a command line").command {
        Command::Memory(args) => args,
        other => panic!("{other:?}"),
    }
}

/// Everything that is counted of a configuration alone. What is refused is refused with a hint.
fn count(folder: &Path, configuration: &Value) {
    let path = folder.join("config.json");
    std::fs::write(&path, configuration.to_string()).expect("a file");
    let registry = Registry::builtin();
    let (json, config, section) = match read_config(&path, &registry) {
        Ok(read) => read,
        Err(error) => {
            assert!(error.hint().is_some(), "{error}");
            return;
        }
    };
    let donor = registry.handler(&json).expect("it was read").tensors(&config.donor());
    let specs = section.map_or_else(|| donor.clone(), |section| section.tensors(&donor, &config));
    assert!(donor.len().max(specs.len()) <= TENSORS, "{} and {} tensors", donor.len(), specs.len());
    assert!(config.compression_ratio() > 0.0 && train::trainable(&config) < usize::MAX);

    let ratios = [1.0, 2.0, 16.0, config.d_kv() as f64, 1e308];
    match inspect::report(&registry, &path, &ratios) {
        Ok((object, text)) => assert!(object.is_object() && !text.contains("NaN"), "{text}"),
        Err(error) => assert!(crate::error::hint(&error).is_some(), "{error:#}"),
    }
    for more in [&[][..], &["--cache-dtype", "int3"], &["--cache-dtype", "bf16", "--dtype", "f32"]] {
        for ratio in [None, Some(2.0)] {
            let args = memory_args(more);
            let counted = memory::config(&registry, &path, ratio);
            match counted.and_then(|config| memory::report(config, &args)) {
                Ok((object, text)) => assert!(object.is_object() && !text.contains("NaN"), "{text}"),
                Err(error) => assert!(crate::error::hint(&error).is_some(), "{error:#}"),
            }
        }
    }

    let xkv = Xkv { group_size: 4, skip_early_layers: 0, keep_early_layers_original: false };
    for method in [Method::Joint, Method::Xkv(xkv), Method::Cascade(Cascade::of_window(7))] {
        let (objective, ranks, width) = (Objective::Fisher, Ranks::Global, Width::Ratio(2.0));
        let plan = Plan { method, objective, ranks, width, cache: CacheDtype::F32 };
        if plan.check(&config).is_ok() {
            let most = train::Settings::MOST as usize;
            let text =
                TextSize { windows: most, select: 4, report: 8, length: config.max_positions, sampled: most };
            let speed = Speed { flops: 1e12, weights: 1e9 };
            let found = calib::predict(&config, &[plan], Some(text), &Options::default(), 1 << 30, speed);
            assert!(found.seconds > 0.0 && found.peak_memory_bytes > 0, "{found:?}");
        }
    }
}

#[test]
fn any_field_alone_may_hold_anything() {
    let (all, values) = (configurations(), values());
    all.par_iter().for_each(|configuration| {
        let folder = tempfile::tempdir().expect("a folder");
        // Those that it has, and a few that every family reads; what others have, the next test puts into it.
        let fields = fields(std::slice::from_ref(configuration));
        let is_donor = configuration.get("mla").is_none();
        // A conversion's other fields are its donor's.
        for field in fields.iter().filter(|field| is_donor || field.starts_with("/mla")) {
            for value in &values {
                let mut changed = configuration.clone();
                set(&mut changed, field, value);
                if changed != *configuration {
                    count(folder.path(), &changed);
                }
            }
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_fields_together_may_hold_anything(
        which in any::<prop::sample::Index>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..8),
    ) {
        let (folder, all, values) = (tempfile::tempdir().expect("a folder"), configurations(), values());
        let fields = fields(&all);
        let mut changed = which.get::<Value>(&all).clone();
        for (field, value) in &changes {
            set(&mut changed, field.get::<String>(&fields), value.get::<Value>(&values));
        }
        count(folder.path(), &changed);
    }

    /// Sizes that pass each by itself, so that their products are what is met.
    #[test]
    fn sizes_that_are_each_allowed_are_counted_or_refused_together(
        which in any::<prop::sample::Index>(),
        powers in proptest::collection::vec(0u32..31, 12),
    ) {
        let (folder, all) = (tempfile::tempdir().expect("a folder"), configurations());
        let mut changed = which.get::<Value>(&all).clone();
        let sizes: Vec<String> = match &changed {
            Value::Object(fields) => {
                fields.iter().filter(|(_, v)| v.as_u64().is_some_and(|v| v > 0)).map(|(name, _)| name.clone()).collect()
            }
            other => panic!("{other}"),
        };
        for (name, power) in sizes.iter().zip(powers.iter().cycle()) {
            // Heads together are bounded by every handler; a table of many layers takes its time, and some are as good.
            let range = match name.as_str() {
                name if name.contains("head") => 1..9,
                name if name.contains("layer") => 0..8,
                name if name.contains("expert") => 0..4,
                _ => 24..31,
            };
            changed[name] = json!(1u64 << (range.start + power % (range.end - range.start)));
        }
        count(folder.path(), &changed);
    }
}
