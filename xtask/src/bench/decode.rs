//! `bench decode`: tokens a second and memory, of a dense and of latent caches, beside transformers, llama.cpp and
//! cacheshrink.

mod page;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::llama_cpp::{self, LlamaCpp};
use super::peer::{Peer, PeerArgs};
use super::run::{Shrink, shown};
use super::setting::Setting;
use super::{Common, existing, write};
use crate::synth::{self, Shape};
use crate::workspace::Workspace;
use page::{Promise, page, promises};

/// What is kept between runs.
const JSON: &str = "decode.json";
/// What the others run on.
const PEERS: [&str; 5] =
    ["cacheshrink==0.1.5", "torch==2.15.0", "transformers==5.23.0", "geoopt==0.5.1", llama_cpp::WRITER];
/// Tokens of a timed prompt.
const PREFILL: usize = 512;
/// Threads of every side.
const THREADS: usize = 2;

/// What to measure.
#[derive(Debug, Args)]
pub struct Request {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    peer: PeerArgs,
    /// Measure this model only
    #[arg(long, value_enum, value_name = "NAME")]
    model: Option<Subject>,
    /// Sequences at a time
    #[arg(long, value_delimiter = ',', default_value = "1,8", value_name = "N,…")]
    batch_size: Vec<usize>,
    /// Measure these sides only, and nothing that is promised of others; nothing is installed for those left out
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME,…")]
    sides: Vec<Side>,
    /// Rounds, in each of which every side runs; the table has medians
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// Keep the cases that decode.json holds already, if they were measured in this way and, of those asked for, in as many
    /// rounds at least, and measure the rest only
    #[arg(long)]
    resume: bool,
}

/// A model that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Subject {
    /// SmolLM2-135M: rotary embedding, grouped heads
    Smollm2,
    /// GPT-2 medium's shape with random weights and 16,384 positions: learned positions, a K and V head a query head
    Gpt2,
}

/// Who decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
enum Side {
    Dense,
    Latent2,
    Deepseek2,
    Latent4,
    Int4,
    TorchF32,
    TorchBf16,
    LlamaCpp,
    Cacheshrink,
}

/// `decode.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    setting: Setting,
    threads: usize,
    contexts: Vec<usize>,
    repeat: usize,
    /// What was run of ours, as it could be typed.
    command: String,
    cases: Vec<Case>,
}

/// A model at a batch size.
#[derive(Debug, Serialize, Deserialize)]
struct Case {
    model: Subject,
    batch: usize,
    sides: Vec<Runs>,
}

/// What one side printed, a round each.
#[derive(Debug, Serialize, Deserialize)]
struct Runs {
    side: Side,
    rounds: Vec<Value>,
}

impl Record {
    /// Takes over what was measured earlier in the same way, but for cases that more rounds are asked of.
    fn take(&mut self, earlier: Self, rounds_asked: impl Fn(&Case) -> Option<usize>) {
        let alike = |record: &Self| (record.threads, record.contexts.clone(), record.repeat);
        if alike(self) == alike(&earlier) {
            let whole = |case: &Case| {
                let sides = case.model.sides(case.batch);
                case.sides.iter().map(|runs| runs.side).eq(sides)
                    && case.sides.iter().all(|runs| runs.rounds.len() == case.rounds())
                    && rounds_asked(case).is_none_or(|asked| case.rounds() >= asked)
            };
            self.cases.extend(earlier.cases.into_iter().filter(whole));
        }
    }
}

impl Subject {
    const ALL: [Self; 2] = [Self::Smollm2, Self::Gpt2];

    fn title(self) -> &'static str {
        match self {
            Self::Smollm2 => "SmolLM2-135M (30 layers, 9 heads on 3 K and V heads of 64, rotary embedding)",
            Self::Gpt2 => {
                "GPT-2 medium's shape, random weights (24 layers, 16 heads of 64, learned positions)"
            }
        }
    }

    /// cacheshrink serves no conversion of a GPT-2 whose positions are not its own.
    fn sides(self, batch: usize) -> Vec<Side> {
        let mut sides = vec![
            Side::Dense,
            Side::Latent2,
            Side::Latent4,
            Side::Int4,
            Side::TorchF32,
            Side::TorchBf16,
            Side::LlamaCpp,
        ];
        // A form of rotary models.
        if self == Self::Smollm2 {
            sides.insert(2, Side::Deepseek2);
        }
        // It fills its cache by reading, which at eight sequences takes an hour.
        if self == Self::Smollm2 && batch == 1 {
            sides.push(Side::Cacheshrink);
        }
        sides
    }
}

impl Side {
    fn title(self) -> &'static str {
        match self {
            Self::Dense => "shrink, dense cache, f32",
            Self::Latent2 => "shrink, latent 2x, f32",
            Self::Deepseek2 => "shrink, DeepSeek's form 2x, f32",
            Self::Latent4 => "shrink, latent 4x, f32",
            Self::Int4 => "shrink, latent 4x, int4",
            Self::TorchF32 => "transformers on torch, f32",
            Self::TorchBf16 => "transformers on torch, bf16",
            Self::LlamaCpp => "llama.cpp, f32, cache f32",
            Self::Cacheshrink => "cacheshrink 4x on torch, f32 (rebuilds K and V)",
        }
    }

    /// What `decode.py` calls it.
    fn torch(self) -> Option<&'static str> {
        match self {
            Self::Dense | Self::Latent2 | Self::Deepseek2 | Self::Latent4 | Self::Int4 | Self::LlamaCpp => {
                None
            }
            Self::TorchF32 => Some("f32"),
            Self::TorchBf16 => Some("bf16"),
            Self::Cacheshrink => Some("cacheshrink"),
        }
    }
}

/// Measures every case; whether all that is promised was kept.
///
/// # Errors
/// When a model is missing, or a side cannot be installed or run.
pub fn run(workspace: &Workspace, request: &Request) -> Result<bool> {
    if request.rounds == 0 || request.batch_size.contains(&0) {
        bail!("--rounds and --batch-size are at least 1");
    }
    let out = request.common.out(workspace)?;
    let shrink = request.common.shrink(workspace)?;
    let others = Others::install(workspace, request)?;
    let quick = request.common.quick;
    let (contexts, repeat, rounds) = match quick {
        true => (vec![32, 64], 2, 1),
        false => (vec![128, 1024, 4096, 8000], 9, request.rounds),
    };
    let mut record = Record {
        setting: request.common.setting(workspace, shrink.version()),
        threads: THREADS,
        command: format!("shrink {}", shown(&arguments(Path::new("MODEL"), 1, &contexts, repeat))),
        contexts,
        repeat,
        cases: Vec::new(),
    };
    if request.resume {
        let earlier: Record = serde_json::from_slice(&std::fs::read(existing(out.join(JSON))?)?)?;
        let asked = |case: &Case| {
            let model = request.model.is_none_or(|model| model == case.model);
            (model && request.batch_size.contains(&case.batch)).then_some(rounds)
        };
        record.take(earlier, asked);
    }
    let save = |record: &Record| {
        write(&out.join(JSON), &(serde_json::to_string_pretty(record)? + "\n"))?;
        write(&out.join("decode.md"), &page(record)?)
    };
    for &model in request.model.as_ref().map_or(&Subject::ALL[..], std::slice::from_ref) {
        let missing =
            |&&batch: &&usize| !record.cases.iter().any(|case| (case.model, case.batch) == (model, batch));
        let batches: Vec<usize> = request.batch_size.iter().filter(missing).copied().collect();
        if batches.is_empty() {
            continue;
        }
        let folders = Folders::make(workspace, request, &shrink, &others, model)?;
        for batch in batches {
            let asked = |side: &Side| request.sides.is_empty() || request.sides.contains(side);
            let sides = model.sides(batch).into_iter().filter(asked);
            let mut sides: Vec<Runs> = sides.map(|side| Runs { side, rounds: Vec::new() }).collect();
            // Each round has all, so that whatever else the machine does befalls all.
            for round in 1..=rounds {
                for Runs { side, rounds: found } in &mut sides {
                    println!("==> {model:?}, batch {batch}, {}, round {round} of {rounds}", side.title());
                    found.push(measure(&shrink, &others, *side, &folders, batch, &record)?);
                }
            }
            record.cases.push(Case { model, batch, sides });
            record.cases.sort_by_key(|case| (case.model, case.batch));
            save(&record)?;
        }
    }
    save(&record)?;
    Ok(promises(&record)?.iter().all(Promise::kept))
}

/// What shrink is measured beside, as far as it is asked for.
struct Others {
    torch: Option<Peer>,
    llama_cpp: Option<LlamaCpp>,
    /// What runs on torch.
    script: PathBuf,
}

/// A model, its conversions, and llama.cpp's file of it.
struct Folders {
    donor: PathBuf,
    converted: [PathBuf; 2],
    deepseek: Option<PathBuf>,
    gguf: PathBuf,
}

impl Folders {
    fn make(
        workspace: &Workspace,
        request: &Request,
        shrink: &Shrink,
        others: &Others,
        model: Subject,
    ) -> Result<Self> {
        let donor = match model {
            Subject::Smollm2 => existing(request.common.models()?.join("smollm2-135m-instruct"))?,
            Subject::Gpt2 => {
                let folder = shrink.scratch().join("gpt2");
                let layers = request.common.quick.then_some(2);
                let model = Shape::Gpt2Medium.model(layers);
                synth::write(&folder, &model, &workspace.root.join(synth::TOKENIZER))?;
                folder
            }
        };
        // What is in the matrices does not matter here, so a conversion without text will do.
        let convert = |ratio: &str| {
            let folder = shrink.scratch().join(format!("{model:?}-{ratio}"));
            let args = ["convert", "--method", "separate", "--ranks", "uniform", "--no-calibration"];
            let args = args.map(OsString::from).into_iter();
            let more = ["--compression-ratio".into(), ratio.into(), "--output".into(), folder.clone().into()];
            shrink.json(&args.chain(more).chain([donor.clone().into()]).collect::<Vec<_>>())?;
            Ok::<_, anyhow::Error>(folder)
        };
        let converted = [convert("2")?, convert("4")?];
        let deepseek = match model {
            Subject::Gpt2 => None,
            Subject::Smollm2 => {
                let folder = shrink.scratch().join(format!("{model:?}-deepseek"));
                let line = "convert --method deepseek --layout deepseek --d-rope 64 --compression-ratio 2 --calibration builtin:prose \
                            --num-calibration-samples 4 --max-calibration-length 128 --output";
                let args = line.split_whitespace().map(OsString::from);
                let more = [folder.clone().into(), donor.clone().into()];
                shrink.json(&args.chain(more).collect::<Vec<_>>())?;
                Some(folder)
            }
        };
        let gguf = shrink.scratch().join(format!("{model:?}.gguf"));
        if let (Some(llama_cpp), Some(torch)) = (&others.llama_cpp, &others.torch) {
            llama_cpp.model(workspace, torch, &donor, &gguf)?;
        }
        Ok(Self { donor, converted, deepseek, gguf })
    }
}

fn arguments(model: &Path, batch: usize, contexts: &[usize], repeat: usize) -> Vec<OsString> {
    let contexts: Vec<String> = contexts.iter().map(usize::to_string).collect();
    let mut args: Vec<OsString> =
        vec!["bench".into(), model.into(), "--context".into(), contexts.join(",").into()];
    for (flag, number) in [("--batch-size", batch), ("--prefill", PREFILL), ("--repeat", repeat)] {
        args.extend([flag.into(), number.to_string().into()]);
    }
    args
}

impl Others {
    fn install(workspace: &Workspace, request: &Request) -> Result<Self> {
        let asked = |side: &Side| request.sides.is_empty() || request.sides.contains(side);
        let llama_cpp = asked(&Side::LlamaCpp);
        let torch = llama_cpp || [Side::TorchF32, Side::TorchBf16, Side::Cacheshrink].iter().any(asked);
        Ok(Self {
            torch: torch.then(|| request.peer.peer(workspace, &PEERS)).transpose()?,
            llama_cpp: llama_cpp.then(|| LlamaCpp::install(workspace)).transpose()?,
            script: workspace.root.join("xtask/bench/decode.py"),
        })
    }
}

/// A round of one side: `measured` and `peak_bytes`.
fn measure(
    shrink: &Shrink,
    others: &Others,
    side: Side,
    folders: &Folders,
    batch: usize,
    record: &Record,
) -> Result<Value> {
    let numbers: Vec<usize> =
        [batch, PREFILL, record.repeat].into_iter().chain(record.contexts.iter().copied()).collect();
    let missing = || format!("nothing was installed for {side:?}");
    if side == Side::LlamaCpp {
        return others.llama_cpp.as_ref().with_context(missing)?.json(&folders.gguf, &numbers, THREADS);
    }
    if let Some(torch) = side.torch() {
        let mut args = vec![torch.to_owned(), folders.donor.display().to_string()];
        args.extend(numbers.iter().map(usize::to_string));
        return others.torch.as_ref().with_context(missing)?.json(&others.script, &args, THREADS);
    }
    let folder = match side {
        Side::Latent2 => &folders.converted[0],
        Side::Latent4 | Side::Int4 => &folders.converted[1],
        Side::Deepseek2 => folders.deepseek.as_ref().with_context(missing)?,
        _ => &folders.donor,
    };
    let mut args = arguments(folder, batch, &record.contexts, record.repeat);
    if side == Side::Int4 {
        args.extend(["--cache-dtype", "int4"].map(OsString::from));
    }
    let (mut found, cost) = shrink.timed_with(&args, Some(THREADS))?;
    found["peak_bytes"] = cost.peak_bytes.into();
    Ok(found)
}
