//! How a folder spells a model: one configuration, one list of tensors, further files.
//!
//! A [`FolderLayout`] says what is to be in a folder, and [`write_folder`](crate::write_folder) puts it there, a tensor at a
//! time. [`FolderPlan`](mla::FolderPlan) is our own.

pub mod deepseek;
pub mod dense;
pub mod gguf;
pub mod mla;

use std::path::Path;

use mla_core::{Matrix, Slot};
use serde_json::{Map, Value};

use crate::checkpoint::{Checkpoint, Dtype};
use crate::error::Error;
use crate::model::Model;
use crate::spec::Layout;

/// What a folder is to hold.
pub trait FolderLayout {
    /// The configuration, and how the tensors lie.
    fn container(&self) -> Container;

    /// The tensors, in the order in which they are written.
    ///
    /// # Errors
    /// When the model's tensors cannot be told.
    fn tensors(&self) -> Result<Vec<Encoded<'_>>, Error>;

    /// Further files, by name: the model card, the provenance. To `shrink.json`, an object, the list of all files is added;
    /// without one it holds that alone.
    fn extras(&self) -> &[(String, Vec<u8>)];

    /// Source files by which another program runs the model, by name.
    fn code(&self) -> &[(&str, &str)] {
        &[]
    }

    /// The folder whose tokenizer, licence and other companions go along.
    fn companions(&self) -> &Path;
}

/// What holds a folder's configuration and its tensors.
pub enum Container {
    /// `config.json` and safetensors.
    Safetensors {
        /// `config.json`.
        config: Map<String, Value>,
        /// Bytes of one shard at most (one tensor may exceed it).
        max_shard_bytes: u64,
    },
    /// One GGUF file.
    Gguf {
        /// Its metadata, by key, in order.
        metadata: Vec<(String, crate::gguf::Value)>,
    },
}

/// A tensor to be written, made when its turn comes.
pub struct Encoded<'a> {
    /// Its name.
    pub key: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its type.
    pub dtype: Dtype,
    /// Its numbers in that type, row-major; checked to be finite and to fit.
    pub bytes: Box<dyn Fn() -> Result<Vec<u8>, Error> + 'a>,
}

impl Encoded<'_> {
    /// Bytes that it takes.
    pub fn size(&self) -> u64 {
        (self.shape.iter().product::<usize>() * self.dtype.bytes()) as u64
    }
}

/// Numbers in a type, if they all fit.
pub(crate) fn cast(key: &str, values: &[f32], dtype: Dtype) -> Result<Vec<u8>, Error> {
    let overflow = |value| Error::Overflow { key: key.to_owned(), value, dtype: dtype.name() };
    dtype.encode(values).map_err(overflow)
}

pub(crate) fn check_finite(donor: &Model, key: &str, values: &[f32]) -> Result<(), Error> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(index) => Err(donor.not_finite(key, index, values[index])),
    }
}

/// A tensor of a donor as it is stored, in another type where that is asked for.
pub(crate) fn stored(donor: &Model, key: &str, dtype: Dtype) -> Result<Vec<u8>, Error> {
    stored_in(donor.checkpoint(), key, dtype)
}

/// A tensor of weight files, as [`stored`].
pub(crate) fn stored_in(checkpoint: &Checkpoint, key: &str, dtype: Dtype) -> Result<Vec<u8>, Error> {
    let tensor = checkpoint.get(key).expect("the tensors were found when the folder was opened");
    let found = checkpoint.dtype(key, tensor)?;
    let bytes = checkpoint.read(tensor)?;
    if let Some((index, value)) = found.first_not_finite(&bytes) {
        return Err(Error::NotFinite { path: checkpoint.folder().into(), key: key.into(), index, value });
    }
    if found == dtype {
        return Ok(bytes);
    }
    let mut values = Vec::with_capacity(bytes.len() / found.bytes());
    found.decode(&bytes, &mut values);
    cast(key, &values, dtype)
}

/// A slot as `[d_out, d_in]`.
pub(crate) fn read(model: &Model, slot: Slot) -> Result<Matrix, Error> {
    let (values, spec) = model.read(slot)?;
    let [d_out, d_in] = spec.slot_shape();
    Ok(match spec.layout {
        Layout::OutIn => Matrix::new(d_out, d_in, values),
        Layout::InOut => Matrix::new(d_out, d_in, transpose(&values, d_in, d_out)),
    })
}

/// `[rows, cols]` → `[cols, rows]`, row-major.
pub(crate) fn transpose(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|c| (0..rows).map(move |r| values[r * cols + c])).collect()
}
