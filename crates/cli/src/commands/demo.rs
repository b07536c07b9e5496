//! `shrink demo`: the whole way on the bundled model.

use std::ops::ControlFlow;

use calib::linalg::Mat64;
use calib::{Cascade, DEFAULT_MEMORY_BYTES, Method, Objective, Plan, Ranks, Scratch, Width};
use handlers::{Model, Tokenizer, Unfinished};
use mla_core::generate::{GenerateOptions, Sampling, generate};
use mla_core::{CacheDtype, Decoder, DecoderConfig, LayerSlot, Padding, Patch, Slot, WeightSource};
use serde_json::json;
use train::eval::{Pass, Windowing, compare};

use crate::args::DemoArgs;
use crate::calibration::{Calibration, Counts, builtin, split};
use crate::report::{bytes, table};
use crate::session::{Session, source_error};

/// The bundled model's folder, file by file.
const FILES: [(&str, &[u8]); 4] = [
    ("config.json", include_bytes!("../../../../goldens/demo/config.json")),
    ("generation_config.json", include_bytes!("../../../../goldens/demo/generation_config.json")),
    ("tokenizer.json", include_bytes!("../../../../goldens/demo/tokenizer.json")),
    ("model.safetensors", include_bytes!("../../../../goldens/demo/model.safetensors")),
];
const HELDOUT: &str = include_str!("../../../../goldens/demo/heldout.txt");
const PROMPT: &str = "The ship was";
/// So small a model repeats itself when it always takes the most likely token.
const SAMPLING: Sampling = Sampling::Random { temperature: 0.7, top_k: None, top_p: 0.9, seed: 1 };
const WINDOW: usize = 256;
const WINDOWS: usize = 40;
const CALIBRATION_WINDOWS: usize = 64;

/// One line of the demo's table.
struct Line {
    name: String,
    perplexity: f64,
    kl: f64,
    top1: f64,
    cache_bytes: usize,
    orthonormality: Option<f64>,
    sample: String,
}

/// What is shown: the plain way, and shrink's own, at the same cache bytes.
fn plans(config: &DecoderConfig) -> Vec<Plan> {
    let cascade = Method::Cascade(Cascade::of_window(config.n_layers() - 1));
    let plan = |method, objective, ranks, ratio| Plan {
        method,
        objective,
        ranks,
        width: Width::Ratio(ratio),
        cache: CacheDtype::F32,
    };
    let both = |ratio| {
        [
            plan(Method::Separate, Objective::Mse, Ranks::Uniform, ratio),
            plan(cascade, Objective::Fisher, Ranks::Global, ratio),
        ]
    };
    [2.0, 4.0].into_iter().flat_map(both).collect()
}

/// Compresses the bundled model at 2x and 4x and shows what came of it.
pub fn run(session: &Session, args: &DemoArgs) -> anyhow::Result<()> {
    let folder = unpack()?;
    let donor = Model::open(folder.path(), &session.registry)?;
    let tokenizer = Tokenizer::open(folder.path())?;
    let text = tokenizer.encode(HELDOUT)?;
    let counts = Counts { fit: CALIBRATION_WINDOWS, select: 0, report: 0 };
    let prose = tokenizer.encode(builtin::PROSE)?;
    let calibration = Calibration::of_one("builtin:prose", split(&prose, WINDOW, counts));
    let donor_decoder = session.load(&donor)?;

    let bench = Bench { session, tokenizer: &tokenizer, text: &text, donor: &donor_decoder, args };
    let mut lines = vec![bench.measure("donor", &donor_decoder, None)?];
    let plans = plans(donor.config());
    let scratch = Scratch::new(DEFAULT_MEMORY_BYTES, folder.path());
    let options = calib::Options::default();
    let device = &session.device;
    let text = Some(calibration.text());
    let mut phases = session.ui.phases();
    let statistics = calib::statistics(&donor, &plans, text, &options, device, &scratch, &mut phases)?;
    for plan in plans {
        let fitted = calib::fit(&donor, &statistics, plan, device, &mut phases)?;
        let decoder = Decoder::load_beside(&fitted.factors.over(&donor), device, &donor_decoder)
            .map_err(source_error)?;
        let mut worst: f64 = 0.0;
        for slot in fitted.factors.slots() {
            if let Slot::Layer(_, LayerSlot::UpKey | LayerSlot::UpValue | LayerSlot::UpJoint) = slot
                && let Some(w_up) = fitted.factors.get(slot).map_err(source_error)?
            {
                worst = worst.max(Mat64::from_matrix(&w_up).orthonormality_residual());
            }
        }
        let ratio = fitted.factors.config().compression_ratio();
        lines.push(bench.measure(&format!("{} {ratio:.0}x", plan.method.name()), &decoder, Some(worst))?);
    }
    drop(phases);
    let config = donor.config();
    let object = json!({
        "window": WINDOW,
        "windows": WINDOWS,
        "prompt": PROMPT,
        "models": lines.iter().map(|line| json!({
            "name": line.name,
            "perplexity": line.perplexity,
            "kl": line.kl,
            "top1_agreement": line.top1,
            "cache_bytes": line.cache_bytes,
            "orthonormality": line.orthonormality,
            "completion": line.sample,
        })).collect::<Vec<_>>(),
    });
    let row = |line: &Line| {
        vec![
            line.name.clone(),
            format!("{:.2}", line.perplexity),
            format!("{:.4}", line.kl),
            format!("{:.1}%", 100.0 * line.top1),
            bytes(line.cache_bytes as u64),
            line.orthonormality.map_or("-".into(), |worst| format!("{worst:.0e}")),
        ]
    };
    let rows: Vec<_> = lines.iter().map(row).collect();
    let samples: String = lines.iter().map(|l| format!("\n[{}]\n{PROMPT}{}\n", l.name, l.sample)).collect();
    let text = format!(
        "The bundled model: {} layers, {} query heads on {} kv heads of {} (d_kv {}), trained on public-domain prose.\n\
         Calibrated on {} tokens; measured on {} held-out windows of {WINDOW} tokens; no training.\n\n{}{samples}\n\
         Each sample comes from the cache of its line: the latent ones hold no key and no value.\n\
         Next: shrink convert MODEL -o OUT --compression-ratio 2 --calibration builtin\n",
        config.n_layers(),
        config.n_heads,
        config.n_kv_heads,
        config.d_head,
        config.d_kv(),
        calibration.fit.len() * WINDOW,
        WINDOWS,
        table(&["model", "perplexity", "KL to donor", "same top token", "cache", "|WᵀW − I|"], &rows),
    );
    session.print(&object, &text)
}

struct Bench<'a> {
    session: &'a Session,
    tokenizer: &'a Tokenizer,
    text: &'a [u32],
    donor: &'a Decoder,
    args: &'a DemoArgs,
}

impl Bench<'_> {
    fn measure(&self, name: &str, decoder: &Decoder, orthonormality: Option<f64>) -> anyhow::Result<Line> {
        let windowing = Windowing::Consecutive { length: WINDOW };
        let mut task = self.session.ui.task(&format!("measuring {name}"), WINDOWS as u64);
        let mut on_window = |done: usize, total: usize| task.at(done as u64, total as u64);
        let gap =
            compare(decoder, self.donor, self.text, windowing, Some(WINDOWS), Pass::Full, &mut on_window)?;
        task.finish();
        let options = GenerateOptions {
            max_new_tokens: self.args.max_new_tokens,
            sampling: SAMPLING,
            ..Default::default()
        };
        let prompt = self.tokenizer.encode_prompt(PROMPT)?;
        let generation =
            generate(decoder, std::slice::from_ref(&prompt), &options, |_, _| ControlFlow::Continue(()))?;
        Ok(Line {
            name: name.into(),
            perplexity: gap.model.perplexity,
            kl: gap.kl,
            top1: gap.top1_agreement,
            cache_bytes: decoder.cache(Padding::none(1), WINDOW).bytes(),
            orthonormality,
            sample: self.tokenizer.decode_after(&prompt, &generation.tokens[0])?,
        })
    }
}

/// The bundled model in a temporary folder that is this user's alone and goes when it is dropped, or the process ends.
fn unpack() -> anyhow::Result<Unfinished> {
    let folder = tempfile::Builder::new().prefix("shrink-demo-").tempdir().map_err(|source| {
        handlers::Error::Io { action: "create a folder in", path: std::env::temp_dir(), source }
    })?;
    let folder = Unfinished::new(folder.keep());
    for (name, bytes) in FILES {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).map_err(|source| handlers::Error::Io {
            action: "write",
            path,
            source,
        })?;
    }
    Ok(folder)
}
