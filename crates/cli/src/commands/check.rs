//! `shrink check`.

use calib::linalg::Mat64;
use handlers::{Dtype, Model};
use mla_core::{LayerSlot, Matrix, Slot, WeightSource};
use serde_json::json;

use crate::args::CheckArgs;
use crate::error::UserError;
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

/// Verifies a converted folder. Opening it has already checked that every tensor is there in its shape.
pub fn run(session: &Session, args: &CheckArgs) -> anyhow::Result<()> {
    let opened = session.open(&args.model)?;
    let model = &opened.model;
    let Some(section) = model.section() else {
        return Err(UserError::NotConverted { path: opened.name() }.into());
    };
    let mut task = session.ui.task("reading tensors", model.specs().len() as u64);
    let mut residuals = Vec::new();
    for (done, spec) in model.specs().iter().enumerate() {
        // `read` refuses NaN and infinity.
        let (values, _) = model.read(spec.slot)?;
        if let Slot::Layer(_, LayerSlot::UpKey | LayerSlot::UpValue) = spec.slot {
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
    let worst = residuals.iter().map(|r| r.residual).fold(0.0, f64::max);
    let config = model.config();
    let cache_bytes = config.cached_numbers_total() * 2;
    let object = json!({
        "ok": failed.is_empty(),
        "tensors": model.specs().len(),
        "matrices_checked": residuals.len(),
        "worst_orthonormality": worst,
        "orthonormality": residuals.iter().map(|r| json!({ "key": r.key, "residual": r.residual, "bound": r.bound }))
            .collect::<Vec<_>>(),
        "layers": section.layers,
        "compression_ratio": config.compression_ratio(),
        "cache_bytes_a_token": cache_bytes,
        "weight_bytes": model.checkpoint().file_bytes(),
    });
    let mut text = format!(
        "{} tensors: all there, in shape, finite ({})\n\
         {} W_up matrices: worst |WᵀW − I| {worst:.1e}\n\
         cache {:.2}x smaller than the donor's: {} a token, 16 bit\n",
        model.specs().len(),
        bytes(model.checkpoint().file_bytes()),
        residuals.len(),
        config.compression_ratio(),
        bytes(cache_bytes as u64),
    );
    for r in &failed {
        text += &format!("FAILED {}: |WᵀW − I| {:.1e}, bound {:.0e}\n", r.key, r.residual, r.bound);
    }
    session.print(&object, &text)?;
    match failed.len() {
        0 => Ok(()),
        failures => Err(UserError::CheckFailed { failures, checks: residuals.len() }.into()),
    }
}

fn stored(model: &Model, key: &str) -> anyhow::Result<Dtype> {
    let checkpoint = model.checkpoint();
    let tensor = checkpoint.get(key).ok_or_else(|| anyhow::anyhow!("{key} is not in the checkpoint"))?;
    Ok(checkpoint.dtype(key, tensor)?)
}
