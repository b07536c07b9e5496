//! `shrink convert`.

use handlers::{Existing, Output};
use mla_core::WeightSource;
use serde_json::json;

use crate::args::ConvertArgs;
use crate::session::Session;
use crate::{calibration, convert, report};

/// Converts a donor and writes the result.
pub fn run(session: &Session, args: &ConvertArgs) -> anyhow::Result<()> {
    // What can be refused is refused before anything is downloaded or computed.
    if args.output.exists() && !args.force {
        return Err(handlers::Error::OutputExists { path: args.output.clone() }.into());
    }
    let donor = session.open(&args.model)?;
    let width = convert::width(args.compression_ratio, args.d_latent)?;
    let plan = calib::Plan::new(donor.model.config(), width)?;
    note_rounding(session, width, plan.apply(donor.model.config()).compression_ratio());
    let existing = if args.force { Existing::Replace } else { Existing::Keep };
    let output = Output::prepare(&args.output, existing, donor.model.folder())?;
    let calibration = calibration::load(session, &args.calibration, &donor.model)?;
    let conversion = convert::factors(session, &donor.model, width, calibration.as_ref())?;
    let request = convert::Request {
        method: args.method,
        width,
        store_original_weights: args.store_original_weights,
        dtype: args.dtype.map(crate::args::StoreDtype::dtype),
    };
    let written = convert::write(session, &donor, &request, calibration.as_ref(), &conversion, output)?;

    let config = conversion.factors.config();
    let mean = |pick: fn(&calib::LayerReport) -> f64| {
        conversion.layers.iter().map(pick).sum::<f64>() / conversion.layers.len() as f64
    };
    let (kept_k, kept_v) = (mean(|l| l.key.energy_kept), mean(|l| l.value.energy_kept));
    let size = train::eval::cache_sizes(config, &[4096], 1, 2)[0];
    let layer = &conversion.layers[0];
    let object = json!({
        "output": args.output.display().to_string(),
        "method": request.method.name(),
        "objective": convert::objective(calibration.as_ref()),
        "layers": config.n_layers(),
        "d_kv": config.d_kv(),
        "d_latent": layer.key.d_latent,
        "compression_ratio": config.compression_ratio(),
        "calibration_tokens": conversion.tokens,
        "energy_kept_k": kept_k,
        "energy_kept_v": kept_v,
        "weight_bytes": written.weight_bytes,
        "tensors": written.tensors,
    });
    let text = format!(
        "{out}: {n} layers, d_kv {d_kv} -> d_latent {d}, cache {ratio:.2}x smaller\n\
         energy kept: K {k:.2}%, V {v:.2}% (mean of layers)\n\
         cache of 4096 tokens, 16 bit: {theirs} -> {ours}\n",
        out = args.output.display(),
        n = config.n_layers(),
        d_kv = config.d_kv(),
        d = layer.key.d_latent,
        ratio = config.compression_ratio(),
        k = 100.0 * kept_k,
        v = 100.0 * kept_v,
        theirs = report::bytes(size.donor_bytes),
        ours = report::bytes(size.model_bytes),
    );
    session.print(&object, &text)
}

/// Says so when whole latent numbers give a ratio that is not the one asked for.
fn note_rounding(session: &Session, width: calib::Width, ratio: f64) {
    if let calib::Width::Ratio(asked) = width
        && (ratio / asked - 1.0).abs() > 0.02
    {
        session.ui.note(&format!("note: {asked}x was asked for; whole latent numbers give {ratio:.2}x"));
    }
}
