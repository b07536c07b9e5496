//! Converted folders in transformers, by the code that they carry: `python/tests` holds them to what shrink computes.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

use burn::tensor::{Device, Tensor};
use handlers::{Model, Registry};
use mla_core::generate::{GenerateOptions, generate};
use mla_core::{Decoder, Padding};
use serde_json::{Value, json};

use crate::folder::{Scratch, golden};
use crate::program::{assert_close, number, shrink};
use crate::{TRAINED, convert, named, perplexity};

const LENGTH: usize = 24;
/// Columns of filler before the shorter of two padded rows.
const LEFT: usize = 5;
/// Twins whose rotary embedding follows the length of a sequence.
const FOLLOWING: [&str; 2] = ["llama-dynamic", "phi3-longrope"];
/// By the names of their cases.
pub const METHODS: [(&str, &[&str]); 6] = [
    ("separate", &["separate", "-r", "2"]),
    ("joint", &["joint", "-r", "2"]),
    ("cascade", &["cascade", "-r", "2"]),
    ("xkv", &["xkv", "-r", "2"]),
    ("deepseek", &["deepseek", "-r", "1.5"]),
    ("int4", &["separate", "-r", "2", "--cache-dtype", "int4"]),
];

/// Every golden that is a model.
fn twins() -> Vec<String> {
    let root = golden(".");
    let names = std::fs::read_dir(&root).expect("the goldens").map(|entry| entry.expect("an entry"));
    let is_model = |path: &PathBuf| path.join("model.safetensors").exists();
    let mut names: Vec<_> = names
        .filter(|entry| is_model(&entry.path()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert!(names.len() >= 29, "{names:?}");
    names
}

/// Converts a twin into `DIR/TWIN.METHOD` and writes down what shrink computes with it; `false` where the method does not fit.
pub fn case(dir: &Path, twin: &str, (name, method): (&str, &[&str])) -> bool {
    let few = ["--num-calibration-samples", "8", "--max-calibration-length", "32"];
    let out = dir.join(format!("{twin}.{name}"));
    case_of(&out, &golden(twin), "builtin:prose", &[method, &few].concat(), twin == TRAINED)
}

/// Converts a model by `method`, its name and further options. Greedy tokens are written down of one that was `trained`: those of
/// random weights hang on rounding.
pub fn case_of(out: &Path, donor: &str, text: &str, method: &[&str], trained: bool) -> bool {
    drop(std::fs::remove_dir_all(out));
    let out_text = out.to_str().expect("a UTF-8 path");
    let line = ["convert", donor, "-o", out_text, "--quiet", "--calibration", text, "--method"];
    let run = shrink(&[&line[..], method].concat());
    if run.code != Some(0) {
        assert!(run.stderr.contains("does not fit"), "{donor}, {method:?}: {}", run.stderr);
        return false;
    }
    let model = Model::open(out, &Registry::builtin()).expect("it opens");
    let decoder = Decoder::load(&model, &Device::default()).expect("it loads");
    let follows_length = FOLLOWING.iter().any(|twin| donor.ends_with(twin));
    let expected = expected(&decoder, trained, follows_length);
    std::fs::write(out.join("expected.json"), serde_json::to_vec(&expected).expect("JSON")).expect("a file");
    true
}

fn expected(decoder: &Decoder, trained: bool, follows_length: bool) -> Value {
    let config = decoder.config();
    let (vocab, mut state) = (config.vocab_size.min(250), 1u32);
    let mut row = |length: usize| -> Vec<u32> {
        let mut draw = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            3 + (state >> 8) % (vocab as u32 - 3)
        };
        (0..length).map(|_| draw()).collect()
    };
    let ids = vec![row(LENGTH), row(LENGTH)];
    let short = [vec![3; LEFT], row(LENGTH - LEFT)].concat();
    let padded = vec![short, row(LENGTH)];
    let mask: Vec<Vec<u32>> =
        [LEFT, 0].map(|left| (0..LENGTH).map(|column| u32::from(column >= left)).collect()).to_vec();
    let prompts = vec![row(6), row(9)];
    let (retention, donor) = (config.retention(), config.n_layers());
    let layers: Vec<Value> = (0..donor)
        .map(|layer| {
            json!({
                "latent": config.latent(layer).is_some(),
                "bytes": config.cached_bytes(layer),
                "window": retention[layer],
            })
        })
        .collect();
    let greedy: Vec<Vec<u32>> = prompts
        .iter()
        .map(|prompt| {
            let options = GenerateOptions { max_new_tokens: 64, ..GenerateOptions::default() };
            let prompt = std::slice::from_ref(prompt);
            let run = trained.then(|| generate(decoder, prompt, &options, |_, _| ControlFlow::Continue(())));
            run.map_or_else(Vec::new, |run| run.expect("tokens").tokens[0].clone())
        })
        .collect();
    json!({
        "ids": ids,
        "logits": nested(decoder.forward(&ids, &Padding::none(2))),
        "padded": {
            "ids": padded,
            "mask": mask,
            "logits": nested(decoder.forward(&padded, &Padding::left(vec![LEFT, 0]))),
        },
        "prompts": prompts,
        "greedy": greedy,
        "layers": layers,
        "follows_length": follows_length,
    })
}

/// `[batch, t, vocab]` as lists of lists.
fn nested(logits: Tensor<3>) -> Vec<Vec<Vec<f32>>> {
    let [_, columns, vocab] = logits.dims();
    let flat: Vec<f32> = logits.into_data().iter::<f32>().collect();
    let rows = flat.chunks_exact(columns * vocab);
    rows.map(|row| row.chunks_exact(vocab).map(<[f32]>::to_vec).collect()).collect()
}

#[test]
fn every_family_and_method_gives_shrinks_logits_by_the_code_that_the_folder_carries() {
    let scratch = Scratch::new();
    // Named, they stay for a look, and for `pytest` by hand.
    let dir = std::env::var("SHRINK_CASES").unwrap_or_else(|_| scratch.path("cases"));
    std::fs::create_dir_all(&dir).expect("a folder");
    let mut made = 0;
    for twin in twins() {
        for method in METHODS {
            made += usize::from(case(Path::new(&dir), &twin, method));
        }
    }
    assert!(made >= 29 * (METHODS.len() - 1), "{made} cases");
    run_pytest(&scratch, &dir, &[]);
}

/// Runs the suite of `python/tests` over the cases of a folder, in each Python there is.
pub fn run_pytest(scratch: &Scratch, dir: &str, more: &[&str]) {
    let pythons = named("SHRINK_PYTHON", "cargo xtask ci engines makes a Python for these tests");
    for (at, python) in std::env::split_paths(&pythons).enumerate() {
        let mut command = Command::new(&python);
        command.args(["-m", "pytest", "-q", "-p", "no:cacheprovider", &python_folder("tests")]).args(more);
        command.env("SHRINK_CASES", dir).env("HF_HUB_OFFLINE", "1").env("PYTHONDONTWRITEBYTECODE", "1");
        command.env("HF_MODULES_CACHE", scratch.path(&format!("modules-{at}")));
        let output = command.output().expect("pytest starts");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{}: {out}{err}", python.display());
        println!("{}: {}", python.display(), out.lines().last().unwrap_or_default());
    }
}

pub fn python_folder(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../python").canonicalize().expect("a folder");
    root.join(name).to_str().expect("a UTF-8 path").to_owned()
}

/// Trained by transformers' Trainer on two processes, sharded over them, and by adapters; brought back to orthonormal columns.
#[test]
fn what_transformers_trains_comes_back() {
    let scratch = Scratch::new();
    let pythons = named("SHRINK_PYTHON", "cargo xtask ci engines makes a Python for these tests");
    let python = std::env::split_paths(&pythons).next().expect("a Python");
    let (text, train) = (golden("demo/heldout.txt"), python_folder("examples/train.py"));
    let two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", &train];
    let sharded = [
        ("ACCELERATE_USE_FSDP", "true"),
        ("FSDP_VERSION", "2"),
        ("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP"),
        ("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT"),
    ];
    let ways: [(&str, &str, &[&str], &[(&str, &str)], &[&str]); 4] = [
        ("cascade", "20", &two, &[], &[]),
        ("cascade", "3", &two, &sharded, &[]),
        ("xkv", "3", &two, &sharded, &[]),
        ("separate", "3", &[&train], &[], &["--lora", "--learning-rate", "1e-2"]),
    ];
    for (method, steps, launch, settings, more) in ways {
        let latent = convert(&scratch, TRAINED, &["--force", "--method", method]);
        let (tuned, back) = (scratch.path("tuned"), scratch.path("back"));
        let mut command = Command::new(&python);
        command
            .args(launch)
            .args([&latent, &text, &tuned, "--max-steps", steps, "--length", "64"])
            .args(more);
        command.envs(settings.iter().copied()).env("ACCELERATE_USE_CPU", "true").env("OMP_NUM_THREADS", "1");
        command.env("HF_HUB_OFFLINE", "1").env("HF_MODULES_CACHE", scratch.path("modules"));
        let output = command.output().expect("training starts");
        assert!(output.status.success(), "{method}: {}", String::from_utf8_lossy(&output.stderr));
        shrink(&["import", &tuned, "-o", &back, "--force", "--quiet"]).text();
        let check = shrink(&["check", &back, "--json"]).json();
        assert!(number(&check, "worst_orthonormality") < 1e-6, "{method}: {check}");
        assert_close(perplexity(&back), perplexity(&tuned), 1e-6);
        let moved = (perplexity(&back) / perplexity(&latent) - 1.0).abs();
        assert!(moved > 1e-4, "{method}: training moved it by {moved:e}");
        std::fs::remove_dir_all(&tuned).expect("a folder");
    }
}

/// The Python that folders carry is formatted, without lints, and typed.
#[test]
fn the_code_that_folders_carry_is_clean() {
    let pythons = named("SHRINK_PYTHON", "cargo xtask ci engines makes a Python for these tests");
    let python = std::env::split_paths(&pythons).next().expect("a Python");
    for line in [&["ruff", "format", "--check", "."][..], &["ruff", "check", "."], &["mypy", "modeling"]] {
        let mut command = Command::new(&python);
        command.arg("-m").args(line).current_dir(python_folder(""));
        command.env("RUFF_NO_CACHE", "true").env("MYPY_CACHE_DIR", "/dev/null");
        let output = command.output().expect("it starts");
        assert!(output.status.success(), "{line:?}: {}", String::from_utf8_lossy(&output.stdout));
    }
}
