//! The conversion: method `separate`, metric `mse`.

use burn::tensor::Device;
use mla_core::{LayerSlot, Matrix, Part, Slot, WeightMap, WeightSource};

use crate::error::Error;
use crate::factorise::{Metric, factorise};
use crate::linalg::Mat64;
use crate::moments::Moments;
use crate::plan::Plan;
use crate::report::{LayerReport, SpectrumReport};
use crate::sweep::{Observer, sweep};

/// The factors of a converted model and how they came about.
#[derive(Debug)]
pub struct Conversion {
    /// `W_down` and `W_up` of every layer; lay them over the donor to run the converted model.
    pub factors: WeightMap,
    /// One entry a layer.
    pub layers: Vec<LayerReport>,
    /// Calibration tokens that were seen.
    pub tokens: usize,
}

/// Factorises every layer's `W_k` and `W_v` on their own.
///
/// With `windows` (equally long), under the second moments of the true attention inputs; without, as the plain SVD of
/// the weights. Biases are not touched: they stay outside the factors, exact.
///
/// # Errors
/// When the source fails, there are fewer calibration tokens than latent dimensions, or the statistics are degenerate.
pub fn convert<S: WeightSource>(
    source: &S,
    plan: &Plan,
    windows: Option<&[Vec<u32>]>,
    device: &Device,
    observer: &mut dyn Observer,
) -> Result<Conversion, Error> {
    let config = source.config();
    let n_layers = config.n_layers();
    let mut found =
        Found { factors: WeightMap::new(plan.apply(config)), layers: Vec::with_capacity(n_layers) };
    let Some(windows) = windows else {
        for layer in 0..n_layers {
            found.layer(source, plan, layer, None, device)?;
            observer.layer(layer + 1, n_layers);
        }
        return Ok(Conversion { factors: found.factors, layers: found.layers, tokens: 0 });
    };
    let tokens = windows.iter().map(Vec::len).sum();
    if tokens < plan.d_latent {
        return Err(Error::TooFewTokens { tokens, d_latent: plan.d_latent });
    }
    let moments = std::cell::RefCell::new(Moments::new(config.d_model));
    let visit = |_, h| {
        moments.borrow_mut().add(h);
        Ok(())
    };
    let finish = |layer| {
        let moments = moments.replace(Moments::new(config.d_model));
        if !moments.is_finite() {
            return Err(Error::NotFinite { layer });
        }
        found.layer(source, plan, layer, Some(&moments.covariance()), device)?;
        observer.layer(layer + 1, n_layers);
        Ok(())
    };
    sweep(source, windows, device, visit, finish)?;
    Ok(Conversion { factors: found.factors, layers: found.layers, tokens })
}

struct Found {
    factors: WeightMap,
    layers: Vec<LayerReport>,
}

impl Found {
    fn layer<S: WeightSource>(
        &mut self,
        source: &S,
        plan: &Plan,
        layer: usize,
        c: Option<&Mat64>,
        device: &Device,
    ) -> Result<(), Error> {
        let mut one = |weight: LayerSlot, down: LayerSlot, up: LayerSlot| -> Result<SpectrumReport, Error> {
            let w = Matrix::from_tensor(&source.matrix(Slot::Layer(layer, weight), device)?);
            let found = factorise(&w, c, &Metric::Identity)?;
            let (w_up, w_down) = found.factors(plan.d_latent);
            self.factors.insert_layer(layer, up, w_up);
            self.factors.insert_layer(layer, down, w_down);
            Ok(SpectrumReport::new(&found, plan.d_latent))
        };
        let key = one(LayerSlot::Key(Part::Weight), LayerSlot::DownKey, LayerSlot::UpKey)?;
        let value = one(LayerSlot::Value(Part::Weight), LayerSlot::DownValue, LayerSlot::UpValue)?;
        self.layers.push(LayerReport { layer, key, value });
        Ok(())
    }
}
