//! The steps of continuous integration, each named and timed.

pub mod clock;
mod engines;
mod ran;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::workspace::{Workspace, cargo};
use clock::Clock;
use engines::{OLDER_TRANSFORMERS, llama_cpp, node_folder, older_python, older_transformers};

/// Names the folder of real weights and texts.
pub const MODELS: &str = "SHRINK_MODELS";
/// What that folder must hold.
const MODEL: &str = "smollm2-135m-instruct/config.json";

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Step {
    /// Formatting
    Fmt,
    /// Lints, as errors
    Clippy,
    /// `cargo xtask tidy`
    Tidy,
    /// Every test
    Test,
    /// API documentation, warnings as errors
    Doc,
    /// Type check of the features `cuda` and `vulkan`, without a CUDA toolkit
    CudaCheck,
    /// Tests on the `wgpu` feature over Mesa's software Vulkan
    Wgpu,
    /// calib's tests on LAPACK
    Lapack,
    /// Integration tests on real weights
    RealModels,
    /// Exported and converted folders in transformers, which is installed into the build folder
    Engines,
    /// Converted folders in older versions of transformers, each installed into the build folder, and real weights in all of them
    Transformers,
    /// Exported files in stock llama.cpp, which is installed into the build folder
    LlamaCpp,
    /// Exported folders in stock vLLM, of a Python that SHRINK_VLLM_PYTHON names
    Vllm,
}

/// What runs where nothing is asked for.
const USUAL: [Step; 5] = [Step::Fmt, Step::Clippy, Step::Tidy, Step::Test, Step::Doc];

/// Where Debian's Mesa describes its software Vulkan driver.
const DRIVERS: &str = "/usr/share/vulkan/icd.d";

/// What the tests on a software Vulkan run: whole passes, passes through caches of every kind, and the binary's passes. The
/// rest computes on the host, or compares bytes that only one backend gives, or would take long in software.
const ON_WGPU: [&str; 19] = [
    "decoder::paths::",
    "packing::",
    "goldens::",
    "latent::a_",
    "latent::between",
    "latent::cached",
    "latent::exact",
    "latent::latents",
    "latent::padded",
    "methods::a_",
    "methods::cross",
    "methods::every_kind",
    "methods::joint_latents",
    "methods::keys",
    "methods::layers_that_share",
    "blocks::",
    "devices::",
    "eval::scoring_the_bundled",
    "generate::the_greedy",
];

/// What a step runs of the tests in other engines: a module an engine.
const IN_TRANSFORMERS: [&str; 2] = ["transformers::", "latents::"];
const IN_OLDER_TRANSFORMERS: [&str; 2] = ["latents::", "real_weights::"];
const IN_LLAMA_CPP: [&str; 1] = ["llama_cpp::"];
const IN_VLLM: [&str; 1] = ["vllm::"];

/// Names the Python that has vLLM.
const VLLM: &str = "SHRINK_VLLM_PYTHON";
/// Names the folder that has node-llama-cpp.
const NODE_MODULES: &str = "SHRINK_NODE_MODULES";
/// What of calib is tested on LAPACK.
const ON_LAPACK: [&str; 3] = ["linalg::", "factorise::", "metric::"];

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    Skipped(String),
}

/// A cargo command: arguments and environment.
#[derive(Debug, PartialEq, Eq)]
struct Recipe {
    args: Vec<&'static str>,
    env: Vec<(&'static str, PathBuf)>,
}

/// The steps to run.
pub fn plan(steps: &[Step], full: bool, except: &[Step]) -> Vec<Step> {
    let chosen: &[Step] = match (steps.is_empty(), full) {
        (false, _) => steps,
        (true, false) => &USUAL,
        (true, true) => Step::value_variants(),
    };
    chosen.iter().copied().filter(|step| !except.contains(step)).collect()
}

/// Runs every step, also after one that failed, and prints a table of them. Steps that are not the usual ones have to be over
/// `minutes` from now: one that is too late is skipped, one that takes longer is stopped.
///
/// # Errors
/// When a step cannot be started.
pub fn run(workspace: &Workspace, steps: &[Step], minutes: Option<u64>) -> Result<bool> {
    let clock = Clock::leaving(minutes);
    let mut results = Vec::new();
    for &step in steps {
        println!("\n==> {}", step.name());
        let start = Instant::now();
        let outcome = run_step(workspace, step, clock)?;
        let elapsed = start.elapsed();
        println!("<== {}: {} after {}", step.name(), outcome.label(), seconds(elapsed));
        results.push((step, outcome, elapsed));
    }
    println!("\n{}", summary(&results));
    Ok(results.iter().all(|(_, outcome, _)| *outcome != Outcome::Failed))
}

fn run_step(workspace: &Workspace, step: Step, clock: Clock) -> Result<Outcome> {
    let limit = || match USUAL.contains(&step) {
        true => Ok(None),
        false => clock.left(Instant::now()),
    };
    let for_installing = match limit() {
        Ok(limit) => limit,
        Err(why) => return Ok(Outcome::Skipped(why)),
    };
    if let Some(why) = obstacle(workspace, step, for_installing)? {
        return Ok(Outcome::Skipped(why));
    }
    let limit = match limit() {
        Ok(limit) => limit,
        Err(why) => return Ok(Outcome::Skipped(why)),
    };
    let Some(recipe) = step.recipe(&workspace.target) else {
        return Ok(if crate::report_tidy(workspace)? { Outcome::Passed } else { Outcome::Failed });
    };
    println!("    cargo {}", recipe.args.join(" "));
    let mut command = cargo(&workspace.root);
    command.args(&recipe.args).envs(recipe.env);
    if let Some(limit) = limit {
        command = clock::limited(command, limit);
    }
    let (status, complaint) = if recipe.args.first() == Some(&"test") {
        let (status, names) = ran::run(&mut command, &mut std::io::stdout())?;
        (status, ran::complaint(step.filters(), &names))
    } else {
        (command.status().context("cannot run cargo")?, None)
    };
    Ok(match (status.success(), complaint) {
        (true, None) => Outcome::Passed,
        (true, Some(complaint)) => {
            println!("    {complaint}");
            Outcome::Failed
        }
        (false, _) if limit.is_some() && clock::was_stopped(status) => {
            Outcome::Skipped("stopped: the tests that every change must pass need the time left".into())
        }
        (false, _) => Outcome::Failed,
    })
}

/// Why a step cannot run on this machine, if it cannot. What it needs may be installed, within `limit`.
fn obstacle(workspace: &Workspace, step: Step, limit: Option<Duration>) -> Result<Option<String>> {
    Ok(match step {
        Step::Lapack if !links_openblas(&workspace.target)? => {
            Some("OpenBLAS cannot be linked (Debian: apt-get install libopenblas-dev)".into())
        }
        Step::Wgpu if software_vulkan(DRIVERS.as_ref()).is_none() => {
            Some("no software Vulkan (Debian: apt-get install mesa-vulkan-drivers libvulkan1)".into())
        }
        Step::Engines => crate::golden::environment(workspace, limit)
            .err()
            .map(|e| format!("no Python with transformers: {e:#}")),
        Step::Transformers => {
            older_transformers(workspace, limit).err().map(|e| format!("no older transformers: {e:#}"))
        }
        Step::LlamaCpp => llama_cpp(workspace, limit).err().map(|e| format!("no llama.cpp: {e:#}")),
        Step::Vllm if std::env::var_os(VLLM).is_none() => {
            Some(format!("{VLLM} names no Python with vLLM (CONTRIBUTING.md says how it is installed)"))
        }
        Step::RealModels => missing_models(std::env::var_os(MODELS).map(PathBuf::from).as_deref()),
        _ => None,
    })
}

/// A set variable that names the wrong folder is a mistake, and left to the tests to refuse.
fn missing_models(folder: Option<&Path>) -> Option<String> {
    match folder {
        Some(folder) if !folder.as_os_str().is_empty() => None,
        _ => Some(format!("{MODELS} names no folder with {MODEL}")),
    }
}

/// The description of Mesa's lavapipe, the first of those there are.
fn software_vulkan(drivers: &Path) -> Option<PathBuf> {
    let described = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.ok()?.path();
        path.file_name()?.to_string_lossy().starts_with("lvp_icd").then_some(path)
    };
    std::fs::read_dir(drivers).ok()?.filter_map(described).min()
}

/// The environment in which every device of a test is the software Vulkan, and nothing stands in for it.
fn on_software_vulkan() -> Vec<(&'static str, PathBuf)> {
    let driver = software_vulkan(DRIVERS.as_ref()).unwrap_or_default();
    vec![
        ("VK_DRIVER_FILES", driver.clone()),
        ("VK_ICD_FILENAMES", driver),
        ("VK_LOADER_LAYERS_DISABLE", "~all~".into()),
        // wgpu would take OpenGL in silence where Vulkan is missing.
        ("__EGL_VENDOR_LIBRARY_FILENAMES", "/nonexistent.json".into()),
        ("BURN_DEVICE", "wgpu".into()),
        ("SHRINK_DEVICE", "wgpu".into()),
    ]
}

/// Whether the C compiler finds OpenBLAS.
fn links_openblas(target: &Path) -> Result<bool> {
    std::fs::create_dir_all(target).with_context(|| format!("cannot create {}", target.display()))?;
    let probe = target.join("openblas-probe");
    let mut compiler = Command::new("cc");
    compiler.args(["-x", "c", "-", "-lopenblas", "-o"]).arg(&probe);
    compiler.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut compiler) = compiler.spawn() else { return Ok(false) };
    if let Some(mut stdin) = compiler.stdin.take() {
        stdin.write_all(b"int main(void) { return 0; }")?;
    }
    let links = compiler.wait()?.success();
    if links {
        std::fs::remove_file(probe)?;
    }
    Ok(links)
}

impl Step {
    /// The name on the command line.
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// What the tests of this step are called, each of which at least one must be; none where every test runs.
    fn filters(self) -> &'static [&'static str] {
        match self {
            Step::Wgpu => &ON_WGPU,
            Step::Lapack => &ON_LAPACK,
            Step::Engines => &IN_TRANSFORMERS,
            Step::Transformers => &IN_OLDER_TRANSFORMERS,
            Step::LlamaCpp => &IN_LLAMA_CPP,
            Step::Vllm => &IN_VLLM,
            _ => &[],
        }
    }

    /// The cargo command; `None` for tidy, which runs in this process.
    ///
    /// All of them use the release profile, so that lints, documentation and tests share what they build. The backends
    /// have a folder of their own, so that none of them stands in the way of a build.
    fn recipe(self, target: &Path) -> Option<Recipe> {
        let backends = || ("CARGO_TARGET_DIR", target.join("backends"));
        let filtered =
            |command: &'static str| [&command.split(' ').collect::<Vec<_>>(), self.filters()].concat();
        let on_wgpu =
            filtered("test --release --workspace --features cli/wgpu --lib --test suite --test e2e --");
        // Always the whole workspace: one package alone would unify the features of dependencies differently and build burn
        // once more.
        let on_lapack = filtered("test --release --workspace --features calib/lapack --lib --");
        let in_engine = filtered("test --release --workspace --features cli/engines --test engines --");
        let (args, env): (&[&str], Vec<_>) = match self {
            Step::Tidy => return None,
            Step::Fmt => (&["fmt", "--check"], vec![]),
            Step::Clippy => {
                (&["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"], vec![])
            }
            Step::Test => (&["test", "--release", "--workspace"], vec![]),
            Step::Doc => (
                &["doc", "--release", "--workspace", "--no-deps"],
                vec![("RUSTDOCFLAGS", "-D warnings".into())],
            ),
            // With DOCS_RS the build scripts of cubecl do not fetch LLVM: what is left can be checked, not linked.
            Step::CudaCheck => (
                &[
                    "check",
                    "--release",
                    "-p",
                    "cli",
                    "--no-default-features",
                    "--features",
                    "cpu,cuda,vulkan",
                ],
                vec![backends(), ("DOCS_RS", "1".into())],
            ),
            Step::Wgpu => (&on_wgpu, [backends()].into_iter().chain(on_software_vulkan()).collect()),
            // One thread: OpenBLAS with several collapses on a busy machine.
            Step::Lapack => (&on_lapack, vec![("OPENBLAS_NUM_THREADS", "1".into())]),
            Step::RealModels => (
                &["test", "--release", "--workspace", "--features", "cli/real-models", "--test", "real"],
                vec![],
            ),
            Step::Engines => (&in_engine, vec![(crate::golden::PYTHON, crate::golden::python_of(target))]),
            Step::Transformers => {
                let older = OLDER_TRANSFORMERS.iter().map(|version| older_python(target, version));
                let pythons = std::env::join_paths(older.chain([crate::golden::python_of(target)]))
                    .expect("a build folder without a colon");
                (&in_engine, vec![(crate::golden::PYTHON, pythons.into())])
            }
            Step::LlamaCpp => (&in_engine, vec![(NODE_MODULES, node_folder(target).join("node_modules"))]),
            Step::Vllm => (&in_engine, vec![]),
        };
        Some(Recipe { args: args.to_vec(), env })
    }
}

impl Outcome {
    fn label(&self) -> String {
        match self {
            Outcome::Passed => "passed".into(),
            Outcome::Failed => "FAILED".into(),
            Outcome::Skipped(why) => format!("*** SKIPPED: {why}"),
        }
    }
}

/// One line a step: name, time, outcome.
fn summary(results: &[(Step, Outcome, Duration)]) -> String {
    let line = |(step, outcome, elapsed): &(Step, Outcome, Duration)| {
        format!("  {:<12} {:>8}  {}", step.name(), seconds(*elapsed), outcome.label())
    };
    let total: Duration = results.iter().map(|(_, _, elapsed)| *elapsed).sum();
    let lines: Vec<String> = results.iter().map(line).collect();
    format!("{}\n  {:<12} {:>8}", lines.join("\n"), "total", seconds(total))
}

fn seconds(elapsed: Duration) -> String {
    format!("{:.1} s", elapsed.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_is_every_step_and_the_usual_ones_need_nothing_special() {
        assert_eq!(plan(&[], true, &[]), Step::value_variants());
        assert_eq!(plan(&[], false, &[]), USUAL);
        assert_eq!(plan(&[], true, &[Step::Test]).len(), Step::value_variants().len() - 1);
        assert_eq!(plan(&[Step::Doc, Step::Fmt], false, &[]), [Step::Doc, Step::Fmt]);
    }

    #[test]
    fn every_step_but_tidy_is_a_cargo_command() {
        let without: Vec<_> =
            Step::value_variants().iter().filter(|step| step.recipe(Path::new("t")).is_none()).collect();
        assert_eq!(without, [&Step::Tidy]);
    }

    #[test]
    fn the_filters_of_a_step_are_the_last_that_cargo_is_told() {
        for step in Step::value_variants() {
            let args = step.recipe(Path::new("t")).map_or_else(Vec::new, |recipe| recipe.args);
            let told = args.iter().position(|&arg| arg == "--").map_or(&[][..], |at| &args[at + 1..]);
            let is_test = args.first() == Some(&"test");
            assert_eq!(if is_test { told } else { &[] }, step.filters(), "{step:?}");
        }
    }

    #[test]
    fn backends_are_built_beside_the_build_and_never_in_it() {
        for step in [Step::CudaCheck, Step::Wgpu] {
            let recipe = step.recipe(Path::new("t")).expect("a cargo command");
            assert!(
                recipe.env.contains(&("CARGO_TARGET_DIR", Path::new("t").join("backends"))),
                "{recipe:?}"
            );
        }
    }

    #[test]
    fn the_software_driver_is_told_from_others() {
        let folder = tempfile::tempdir().expect("a folder");
        let found = || software_vulkan(folder.path());
        assert_eq!(found(), None);
        std::fs::write(folder.path().join("radeon_icd.x86_64.json"), "").expect("a driver");
        assert_eq!(found(), None);
        let lavapipe = folder.path().join("lvp_icd.x86_64.json");
        std::fs::write(&lavapipe, "").expect("a driver");
        assert_eq!(found(), Some(lavapipe));
    }

    #[test]
    fn models_are_missed_when_no_folder_is_named() {
        for unset in [None, Some(Path::new(""))] {
            assert!(missing_models(unset).is_some_and(|why| why.contains(MODELS)));
        }
        assert_eq!(missing_models(Some(Path::new("models"))), None);
    }

    #[test]
    fn the_summary_hides_neither_a_failure_nor_a_skip() {
        let second = Duration::from_secs(1);
        let text = summary(&[
            (Step::Fmt, Outcome::Passed, second),
            (Step::Clippy, Outcome::Failed, second),
            (Step::Lapack, Outcome::Skipped("no OpenBLAS".into()), second),
        ]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "  fmt             1.0 s  passed");
        assert!(lines[1].ends_with("FAILED") && lines[1].contains("clippy"));
        assert!(lines[2].ends_with("*** SKIPPED: no OpenBLAS") && lines[2].contains("lapack"));
        assert_eq!(lines[3], "  total           3.0 s");
    }
}
