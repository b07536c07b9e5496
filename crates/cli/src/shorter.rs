//! A converted folder at a larger ratio: the ranks that a conversion would have given it, by the record beside it.

use calib::{
    DEFAULT_MEMORY_BYTES, Deepseek, Factors, KeyLayout, LayerReport, Method, Objective, Plan, Ranks, Scratch,
    Width, ranks_of, truncate,
};
use handlers::Model;
use mla_core::decoder::LatentConfig;
use mla_core::{CacheDtype, DecoderConfig, WeightSource};

use crate::error::UserError;
use crate::record::Record;
use crate::session::Session;

/// The factors of a model whose latents are cut short.
///
/// # Errors
/// When its latents are in no such order, the ratio is below the folder's, or the folder has no record of its spectra.
pub fn shorter(session: &Session, model: &Model, ratio: f64) -> anyhow::Result<Factors> {
    let config = model.config();
    let unknown = || UserError::NoSpectra { path: model.folder().to_path_buf() };
    let record = Record::read(model.folder()).ok().flatten().ok_or_else(unknown)?;
    let donor = config.donor();
    if !(config.compression_ratio()..=donor.d_kv() as f64).contains(&ratio) {
        return Err(UserError::Flag {
            flag: "--compression-ratio",
            found: ratio.to_string(),
            expected: format!("{:.2}, the folder's, to d_kv = {}", config.compression_ratio(), donor.d_kv()),
        }
        .into());
    }
    let method = match record.method.as_deref() {
        Some("joint") => Method::Joint,
        Some("deepseek") => {
            Method::Deepseek(Deepseek { d_rope: mean_d_rope(config), layout: KeyLayout::Free })
        }
        // Its W_up begins with dimensions of W_k as they were, not with those that prevent most.
        Some("decoupled_rope") => return Err(calib::Error::NotNested { layer: 0 }.into()),
        _ => Method::Separate,
    };
    let plan = Plan {
        method,
        objective: Objective::Mse,
        ranks: if record.ranks.as_deref() == Some("global") { Ranks::Global } else { Ranks::Uniform },
        width: Width::Ratio(ratio),
        cache: CacheDtype::F32,
    };
    let spectra = spectra(&record, config).ok_or_else(unknown)?;
    let beside = (0..config.n_layers()).filter_map(|layer| config.latent(layer)).map(LatentConfig::d_rope);
    let ranks = ranks_of(&plan, &donor, &spectra, beside.sum())?;
    if record.training.is_some() {
        session
            .ui
            .note("note: the folder was trained; cut short it is not what training at this ratio would give");
    }
    let scratch = Scratch::new(DEFAULT_MEMORY_BYTES, std::env::temp_dir());
    Ok(truncate(model, &ranks, &session.device, &scratch)?)
}

/// Numbers a token of a layer's shared key, in the mean.
fn mean_d_rope(config: &DecoderConfig) -> usize {
    let widths: Vec<usize> =
        (0..config.n_layers()).filter_map(|layer| config.latent(layer)).map(LatentConfig::d_rope).collect();
    widths.iter().sum::<usize>() / widths.len().max(1)
}

/// The spectra of the parts of every layer's latent, as `shrink.json` records them.
fn spectra(record: &Record, config: &DecoderConfig) -> Option<Vec<Vec<Vec<f64>>>> {
    let layers = record.layers.as_ref().filter(|layers| layers.len() == config.n_layers())?;
    let layer = |(layer, report): (usize, &LayerReport)| {
        let spectra: Vec<Vec<f64>> = report.latents().map(|latent| latent.spectrum.clone()).collect();
        let parts = config.latent(layer).map_or(0, |latent| latent.width.parts().len());
        (spectra.len() == parts && spectra.iter().all(|spectrum| !spectrum.is_empty())).then_some(spectra)
    };
    layers.iter().enumerate().map(layer).collect()
}
