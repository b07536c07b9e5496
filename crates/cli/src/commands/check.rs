//! `shrink check`.

use calib::LayerReport;
use calib::linalg::Mat64;
use handlers::{Dtype, MlaSection, Model};
use mla_core::{CacheDtype, LayerSlot, Matrix, Slot, WeightSource};
use serde_json::json;

use crate::args::CheckArgs;
use crate::error::UserError;
use crate::record::{Record, token_bytes};
use crate::report::bytes;
use crate::session::Session;

/// The largest `|W_upᵀ W_up − I|` that rounding to the stored type explains, with room.
fn bound(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => 1e-5,
        Dtype::F16 => 5e-3,
        Dtype::Bf16 => 4e-2,
    }
}

/// The orthonormality of one matrix.
struct Residual {
    key: String,
    residual: f64,
    bound: f64,
}

/// Verifies a converted folder. Opening it has already checked that every tensor is there, in its shape.
pub fn run(session: &Session, args: &CheckArgs) -> anyhow::Result<()> {
    let opened = session.open(&args.model)?;
    let model = &opened.model;
    let Some(section) = model.section() else {
        return Err(UserError::NotConverted { path: opened.name() }.into());
    };
    // A folder without its tokenizer is of no use, however sound its weights.
    handlers::Tokenizer::open(model.folder())?;
    let mut task = session.ui.task("reading tensors", model.specs().len() as u64);
    let mut residuals = Vec::new();
    for (done, spec) in model.specs().iter().enumerate() {
        // `read` refuses NaN and infinity.
        let (values, _) = model.read(spec.slot)?;
        if let Slot::Layer(_, LayerSlot::UpKey | LayerSlot::UpValue | LayerSlot::UpJoint) = spec.slot {
            let [rows, cols] = spec.slot_shape();
            let w_up = Mat64::from_matrix(&Matrix::new(rows, cols, values));
            let bound = bound(stored(model, &spec.key)?);
            residuals.push(Residual {
                key: spec.key.clone(),
                residual: w_up.orthonormality_residual(),
                bound,
            });
        }
        task.at(done as u64 + 1, model.specs().len() as u64);
    }
    task.finish();
    let failed: Vec<&Residual> = residuals.iter().filter(|r| r.residual > r.bound).collect();
    let record = Record::read(model.folder())?;
    let recorded = record.as_ref().and_then(|record| record.layers.as_deref());
    let unlike = recorded.and_then(|layers| differs(layers, section));
    let worst = residuals.iter().map(|r| r.residual).fold(0.0, f64::max);
    let config = model.config();
    let cache_bytes = token_bytes(config).0.model;
    let dtype = if config.cache_dtype == CacheDtype::F32 { "16 bit" } else { config.cache_dtype.name() };
    let object = json!({
        "ok": failed.is_empty() && unlike.is_none(),
        "tensors": model.specs().len(),
        "matrices_checked": residuals.len(),
        "worst_orthonormality": worst,
        "orthonormality": residuals.iter().map(|r| json!({ "key": r.key, "residual": r.residual, "bound": r.bound }))
            .collect::<Vec<_>>(),
        "layers": section.layers,
        "record_agrees": recorded.map(|_| unlike.is_none()),
        "compression_ratio": config.compression_ratio(),
        "cache_dtype": config.cache_dtype.name(),
        "cache_ratio": calib::cache_ratio(config),
        "cache_bytes_a_token": cache_bytes,
        "weight_bytes": model.checkpoint().file_bytes(),
    });
    let mut text = format!(
        "{} tensors: all there, in shape, finite ({})\n\
         {} W_up matrices: worst |WᵀW − I| {worst:.1e}\n\
         cache {:.2}x smaller than the donor's in 16 bit: {} a token, {dtype}\n",
        model.specs().len(),
        bytes(model.checkpoint().file_bytes()),
        residuals.len(),
        calib::cache_ratio(config),
        bytes(cache_bytes as u64),
    );
    for r in &failed {
        text += &format!("FAILED {}: |WᵀW − I| {:.1e}, bound {:.0e}\n", r.key, r.residual, r.bound);
    }
    match &unlike {
        Some(difference) => text += &format!("FAILED shrink.json: {difference}\n"),
        None if recorded.is_some() => text += "shrink.json: the ranks of config.json\n",
        None => {}
    }
    session.print(&object, &text)?;
    match failed.len() + usize::from(unlike.is_some()) {
        0 => Ok(()),
        failures => {
            let checks = residuals.len() + usize::from(recorded.is_some());
            Err(UserError::CheckFailed { failures, checks }.into())
        }
    }
}

/// The first way in which the recorded layers are not those of `config.json`.
fn differs(recorded: &[LayerReport], section: &MlaSection) -> Option<String> {
    if recorded.len() != section.layers.len() {
        return Some(format!("{} layers, config.json has {}", recorded.len(), section.layers.len()));
    }
    let text = |widths: &[usize]| match widths {
        [] => "none".to_owned(),
        _ => widths.iter().map(usize::to_string).collect::<Vec<_>>().join(" and "),
    };
    let pairs = recorded.iter().zip(&section.layers).enumerate();
    pairs
        .map(|(layer, (report, ranks))| {
            let recorded: Vec<usize> = report.latents().map(|latent| latent.d_latent).collect();
            (layer, recorded, ranks.as_ref().map_or_else(Vec::new, |ranks| ranks.width.widths()))
        })
        .find(|(_, recorded, ranks)| recorded != ranks)
        .map(|(layer, recorded, ranks)| {
            format!("layer {layer} has latent widths {}, config.json {}", text(&recorded), text(&ranks))
        })
}

fn stored(model: &Model, key: &str) -> anyhow::Result<Dtype> {
    let checkpoint = model.checkpoint();
    let tensor = checkpoint.get(key).ok_or_else(|| anyhow::anyhow!("{key} is not in the checkpoint"))?;
    Ok(checkpoint.dtype(key, tensor)?)
}
