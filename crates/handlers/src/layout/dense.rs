//! The donor's own layout, with what its latents stand for in the place of `W_k` and `W_v`.
//!
//! `K = W_uk W_down_k h` is a projection like any other once the product is taken: every engine that runs the donor runs it, with
//! the conversion's loss and without its smaller cache.

use std::path::Path;

use mla_core::decoder::{LatentWidth, Serves};
use mla_core::{DecoderConfig, LayerSlot, Part, Slot, WeightSource};
use serde_json::{Map, Value};

use super::{Container, Encoded, FolderLayout, cast, check_finite, read, stored};
use crate::checkpoint::Dtype;
use crate::error::Error;
use crate::model::Model;
use crate::spec::{Layout, TensorSpec};

/// A converted model to write as its donor's architecture.
pub struct DensePlan<'a> {
    model: &'a Model,
    /// The donor's tensors, as its family has them.
    donor: Vec<TensorSpec>,
    dtype: Option<Dtype>,
    extra: Vec<(String, Vec<u8>)>,
    max_shard_bytes: u64,
}

impl<'a> DensePlan<'a> {
    /// Checks that keys and values of the model are projections of what a layer reads. `donor` are the tensors of its family.
    ///
    /// # Errors
    /// When they are not, with the reason.
    pub fn new(
        model: &'a Model,
        donor: Vec<TensorSpec>,
        dtype: Option<Dtype>,
        extra: Vec<(String, Vec<u8>)>,
        max_shard_bytes: u64,
    ) -> Result<Self, Error> {
        fits(model.config()).map_err(|reason| Error::Export { format: "dense", reason })?;
        Ok(Self { model, donor, dtype, extra, max_shard_bytes })
    }

    /// The outputs of a fused or a whole tensor, one slot after the other, `[d_out, d_in]` each.
    fn tensor(&self, key: &str, specs: Vec<TensorSpec>) -> Result<Encoded<'_>, Error> {
        let model = self.model;
        let latent = specs.iter().any(|spec| is_replaced(model.config(), spec.slot));
        let checkpoint = model.checkpoint();
        let known = checkpoint.get(key).map(|tensor| checkpoint.dtype(key, tensor)).transpose()?;
        let dtype = self.dtype.or(known).map_or_else(|| model.dtype(), Ok)?;
        let (name, shape) = (key.to_owned(), specs[0].shape.clone());
        let bytes: Box<dyn Fn() -> Result<Vec<u8>, Error>> = match latent {
            false => Box::new(move || stored(model, &name, dtype)),
            true => Box::new(move || {
                let mut whole = vec![0f32; specs[0].shape.iter().product()];
                for spec in &specs {
                    place(&mut whole, spec, &slot(model, spec.slot)?);
                }
                check_finite(model, &name, &whole)?;
                cast(&name, &whole, dtype)
            }),
        };
        Ok(Encoded { key: key.to_owned(), shape, dtype, bytes })
    }

    fn config(&self) -> Map<String, Value> {
        let mut fields = self.model.json().fields().clone();
        fields.shift_remove("mla");
        if let Some(dtype) = self.dtype {
            fields.shift_remove("dtype");
            fields.insert("torch_dtype".into(), dtype.torch_name().into());
        }
        fields
    }
}

impl FolderLayout for DensePlan<'_> {
    fn container(&self) -> Container {
        Container::Safetensors { config: self.config(), max_shard_bytes: self.max_shard_bytes }
    }

    fn tensors(&self) -> Result<Vec<Encoded<'_>>, Error> {
        let mut keys: Vec<&str> = Vec::new();
        for spec in &self.donor {
            if !keys.contains(&spec.key.as_str()) {
                keys.push(&spec.key);
            }
        }
        let of = |key: &str| self.donor.iter().filter(|spec| spec.key == key).cloned().collect();
        keys.into_iter().map(|key| self.tensor(key, of(key))).collect()
    }

    fn extras(&self) -> &[(String, Vec<u8>)] {
        &self.extra
    }

    fn companions(&self) -> &Path {
        self.model.folder()
    }
}

/// Whether keys and values of every layer are projections of what it reads; else the reason.
fn fits(config: &DecoderConfig) -> Result<(), String> {
    for layer in 0..config.n_layers() {
        let Some(latent) = config.latent(layer) else { continue };
        if config.cross_columns(layer).is_some() {
            return Err(format!(
                "layer {layer} reads latents of other layers (cascade), which no projection of its own input can say"
            ));
        }
        if latent.shared_key().is_some() {
            return Err(format!(
                "layer {layer} has a key that all heads share, which the donor's architecture has not: take --format deepseek"
            ));
        }
        if config.layers[layer].qk_norm.is_some() {
            return Err(format!(
                "the keys of layer {layer} are normed before they are compressed, which no projection can say"
            ));
        }
    }
    Ok(())
}

fn is_replaced(config: &DecoderConfig, slot: Slot) -> bool {
    match slot {
        Slot::Layer(layer, LayerSlot::Key(Part::Weight) | LayerSlot::Value(Part::Weight)) => {
            config.latent(layer).is_some()
        }
        _ => false,
    }
}

/// A slot of the donor, `[d_out, d_in]`.
fn slot(model: &Model, slot: Slot) -> Result<Vec<f32>, Error> {
    if let Slot::Layer(layer, part) = slot
        && is_replaced(model.config(), slot)
    {
        return product(model, layer, part == LayerSlot::Key(Part::Weight));
    }
    Ok(read(model, slot)?.data)
}

/// `W_up W_down` of keys, or of values: `[d_kv, d_model]`.
fn product(model: &Model, layer: usize, keys: bool) -> Result<Vec<f32>, Error> {
    let config = model.config();
    let latent = config.latent(layer).expect("a layer with latents");
    let d_kv = config.d_kv();
    let serves = match (latent.width, keys) {
        (LatentWidth::Joint { .. }, _) => Serves::Both,
        (LatentWidth::Split { .. }, true) => Serves::Keys,
        (LatentWidth::Split { .. }, false) => Serves::Values,
    };
    let part = latent.width.parts().into_iter().find(|part| part.serves == serves);
    let part = part.expect("a part that the layer has");
    let up = read(model, Slot::Layer(latent.up_of, part.up()))?;
    let down = read(model, Slot::Layer(layer, part.down()))?;
    let (rank, d_model) = (up.cols, down.cols);
    // Of a joint latent, values are the second half.
    let first = if serves == Serves::Both && !keys { d_kv } else { 0 };
    let mut out = Vec::with_capacity(d_kv * d_model);
    let mut sum = vec![0f64; d_model];
    for row in up.data[first * rank..(first + d_kv) * rank].chunks_exact(rank) {
        sum.fill(0.0);
        for (&by, down) in row.iter().zip(down.data.chunks_exact(d_model)) {
            sum.iter_mut().zip(down).for_each(|(sum, &x)| *sum += f64::from(by) * f64::from(x));
        }
        out.extend(sum.iter().map(|&x| x as f32));
    }
    Ok(out)
}

/// Writes a slot's outputs into their places in a stored tensor.
fn place(whole: &mut [f32], spec: &TensorSpec, values: &[f32]) {
    let [d_out, d_in] = spec.slot_shape();
    let all = whole.len() / d_in;
    let rows: Vec<usize> = match &spec.outputs {
        None => (0..d_out).collect(),
        Some(outputs) => outputs.pieces().flatten().collect(),
    };
    for (from, row) in rows.into_iter().enumerate() {
        for column in 0..d_in {
            let at = match spec.layout {
                Layout::OutIn => row * d_in + column,
                Layout::InOut => column * all + row,
            };
            whole[at] = values[from * d_in + column];
        }
    }
}
