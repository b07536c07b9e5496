//! The conversion from folder to folder: handlers → calib → handlers.

use std::path::Path;

use calib::{Conversion, Plan, Width};
use handlers::{Dtype, FolderPlan, LayerRanks, MlaSection, Model, Output, Written, write_folder};
use mla_core::WeightSource;
use serde_json::{Value, json};

use crate::args::Method;
use crate::calibration::{Calibration, hex};
use crate::error::UserError;
use crate::report;
use crate::session::{Opened, Session};

/// Weight files above this are cut into shards.
const MAX_SHARD_BYTES: u64 = 5 << 30;

impl Method {
    /// The name in `config.json`; `auto` is `separate` as long as there is no other.
    pub fn name(self) -> &'static str {
        match self {
            Method::Auto | Method::Separate => "separate",
        }
    }
}

/// What a conversion is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// How to factorise.
    pub method: Method,
    /// Latent width.
    pub width: Width,
    /// Store the original `W_k` and `W_v` too.
    pub store_original_weights: bool,
    /// Type of every stored tensor; `None` keeps the donor's, and f32 for the factors.
    pub dtype: Option<Dtype>,
}

/// Factorises a donor's attention.
///
/// # Errors
/// When the width does not fit the model, or calibration fails.
pub fn factors(
    session: &Session,
    donor: &Model,
    width: Width,
    calibration: Option<&Calibration>,
) -> anyhow::Result<Conversion> {
    let plan = Plan::new(donor.config(), width)?;
    let mut task = session.ui.task("converting layers", donor.config().n_layers() as u64);
    let windows = calibration.map(|c| c.windows.as_slice());
    let conversion = calib::convert(donor, &plan, windows, &session.device, &mut task)?;
    task.finish();
    Ok(conversion)
}

/// Writes a converted model.
///
/// # Errors
/// As [`write_folder`].
pub fn write(
    session: &Session,
    donor: &Opened,
    request: &Request,
    calibration: Option<&Calibration>,
    conversion: &Conversion,
    output: Output,
) -> anyhow::Result<Written> {
    let ranks = |layer: &calib::LayerReport| {
        Some(LayerRanks { d_latent_k: layer.key.d_latent, d_latent_v: layer.value.d_latent })
    };
    let section = MlaSection {
        version: MlaSection::VERSION,
        method: request.method.name().into(),
        objective: objective(calibration).into(),
        layers: conversion.layers.iter().map(ranks).collect(),
        store_original_weights: request.store_original_weights,
    };
    let record = record(donor, request, calibration, conversion)?;
    let plan = FolderPlan {
        donor: &donor.model,
        section,
        factors: &conversion.factors,
        dtype: request.dtype,
        extra: vec![
            ("shrink.json".into(), format!("{record:#}\n").into_bytes()),
            ("README.md".into(), card(donor, request, calibration, conversion).into_bytes()),
        ],
        max_shard_bytes: MAX_SHARD_BYTES,
    };
    let task = std::sync::Mutex::new(session.ui.task("writing (MB)", 0));
    let on_bytes = |done: u64, total: u64| {
        if let Ok(mut task) = task.lock() {
            task.at(done >> 20, total >> 20);
        }
    };
    let written = write_folder(&plan, output, &on_bytes)?;
    if let Ok(task) = task.into_inner() {
        task.finish();
    }
    Ok(written)
}

/// `shrink.json`: where the model came from and what was done to it.
fn record(
    donor: &Opened,
    request: &Request,
    calibration: Option<&Calibration>,
    conversion: &Conversion,
) -> anyhow::Result<Value> {
    let objective = objective(calibration);
    let calibration = calibration.map(|c| {
        json!({
            "source": c.source,
            "text_sha256": c.text_sha256,
            "samples": c.windows.len(),
            "length": c.windows.first().map_or(0, Vec::len),
            "tokens": conversion.tokens,
        })
    });
    let asked = match request.width {
        Width::Ratio(ratio) => json!({ "compression_ratio": ratio }),
        Width::Fixed(d_latent) => json!({ "d_latent": d_latent }),
    };
    Ok(json!({
        "shrink_version": env!("CARGO_PKG_VERSION"),
        "donor": { "name": donor.name(), "weights_sha256": weights_sha256(&donor.model)? },
        "method": request.method.name(),
        "objective": objective,
        "asked": asked,
        "compression_ratio": conversion.factors.config().compression_ratio(),
        "dtype": request.dtype.map(Dtype::name),
        "calibration": calibration,
        "layers": conversion.layers,
    }))
}

/// SHA-256 over the weight files in their order.
fn weights_sha256(model: &Model) -> anyhow::Result<String> {
    use sha2::Digest;
    let mut digest = sha2::Sha256::new();
    for path in model.checkpoint().files() {
        let read = |path: &Path, digest: &mut sha2::Sha256| -> std::io::Result<()> {
            let mut file = std::fs::File::open(path)?;
            let mut buffer = vec![0; 1 << 20];
            loop {
                match std::io::Read::read(&mut file, &mut buffer)? {
                    0 => return Ok(()),
                    n => digest.update(&buffer[..n]),
                }
            }
        };
        read(path, &mut digest).map_err(|source| handlers::Error::Io {
            action: "read",
            path: path.into(),
            source,
        })?;
    }
    Ok(hex(&digest.finalize()))
}

/// What the factors minimise: the squared error of K and V on calibration text, or of the weights alone.
pub fn objective(calibration: Option<&Calibration>) -> &'static str {
    match calibration {
        Some(_) => "mse",
        None => "weights",
    }
}

/// The model card.
fn card(
    donor: &Opened,
    request: &Request,
    calibration: Option<&Calibration>,
    conversion: &Conversion,
) -> String {
    let config = conversion.factors.config();
    let tokens = 4096;
    let size = train::eval::cache_sizes(config, &[tokens], 1, 2)[0];
    let kept = |pick: fn(&calib::LayerReport) -> f64| {
        100.0 * conversion.layers.iter().map(pick).sum::<f64>() / conversion.layers.len() as f64
    };
    let text = match calibration {
        Some(c) => {
            let names: Vec<&str> = c.source.split(", ").map(|s| s.rsplit('/').next().unwrap_or(s)).collect();
            format!("{} tokens of {}", conversion.tokens, names.join(", "))
        }
        None => "none (plain SVD of the weights)".into(),
    };
    // A path is nobody's business but the user's; `shrink.json` keeps it for reproduction.
    let base = donor.found.id.as_ref().map_or(String::new(), |id| format!("base_model: \"{id}\"\n"));
    format!(
        "---\n{base}tags:\n- shrink\n- mla\n- kv-cache\n---\n\n# {title}, KV cache {ratio:.2}x smaller\n\n\
         Made by shrink {version}: attention is Multi-Head Latent Attention, the cache holds latents.\n\n\
         | | |\n|---|---|\n| donor | {title} |\n| method, objective | {method}, {objective} |\n\
         | calibration | {text} |\n\
         | cache of {tokens} tokens, 16 bit | {ours} (donor {theirs}) |\n\
         | energy kept, mean of layers | K {k:.2}%, V {v:.2}% |\n\n\
         Measure it with `shrink eval FOLDER --data heldout.txt --against DONOR`; run it with `shrink generate`. The \
         record of every layer is in `shrink.json`.\n\n\
         Open it with shrink. transformers does not know the tensors under `mla`: it would load the folder as the \
         donor's architecture and start `W_k` and `W_v` from random numbers, with no more than a warning. The donor's \
         licence applies.\n",
        title = donor.title(),
        ratio = config.compression_ratio(),
        version = env!("CARGO_PKG_VERSION"),
        method = request.method.name(),
        objective = objective(calibration),
        ours = report::bytes(size.model_bytes),
        theirs = report::bytes(size.donor_bytes),
        k = kept(|l| l.key.energy_kept),
        v = kept(|l| l.value.energy_kept),
    )
}

/// The width a command line asks for; the model checks it later.
///
/// # Errors
/// When the ratio is no number.
pub fn width(ratio: f64, d_latent: Option<usize>) -> Result<Width, UserError> {
    match d_latent {
        Some(d_latent) => Ok(Width::Fixed(d_latent)),
        None if ratio.is_nan() => Err(UserError::Flag {
            flag: "--compression-ratio",
            found: "NaN".into(),
            expected: "a number".into(),
        }),
        None => Ok(Width::Ratio(ratio)),
    }
}
