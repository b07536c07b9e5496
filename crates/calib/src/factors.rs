//! The factors of a conversion, as a patch over the donor.

use std::borrow::Cow;
use std::collections::BTreeMap;

use mla_core::decoder::AttentionKind;
use mla_core::{CacheDtype, DecoderConfig, LayerSlot, Matrix, Patch, Slot, SourceError};

use crate::error::Error;
use crate::linalg::Mat64;
use crate::scratch::{Scratch, Stored};

/// The latent tensors of a converted model, f32, kept in a [`Scratch`]: lay them over the donor to run it.
#[derive(Debug)]
pub struct Factors {
    config: DecoderConfig,
    scratch: Scratch,
    tensors: BTreeMap<Slot, Kept>,
}

#[derive(Debug)]
struct Kept {
    rows: usize,
    cols: usize,
    data: Stored<f32>,
}

impl Factors {
    /// No factor yet, for a graph whose latent layers are known.
    pub fn new(config: DecoderConfig, scratch: &Scratch) -> Self {
        Self { config, scratch: scratch.clone(), tensors: BTreeMap::new() }
    }

    /// Adds a factor, rounded to f32.
    ///
    /// # Errors
    /// When the temporary file cannot be written.
    pub fn insert(&mut self, layer: usize, slot: LayerSlot, matrix: &Mat64) -> Result<(), Error> {
        let data = self.scratch.keep(matrix.data.iter().map(|&x| x as f32).collect())?;
        self.tensors.insert(Slot::Layer(layer, slot), Kept { rows: matrix.rows, cols: matrix.cols, data });
        Ok(())
    }

    /// Says that a layer's balanced basis is among the factors.
    pub(crate) fn set_balanced(&mut self, layer: usize) {
        if let AttentionKind::Latent(latent) = &mut self.config.layers[layer].attention {
            latent.balanced = true;
        }
    }

    /// What the model that they make keeps its cache as.
    pub fn set_cache_dtype(&mut self, dtype: CacheDtype) {
        self.config.cache_dtype = dtype;
    }

    /// The slots that have a factor.
    pub fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        self.tensors.keys().copied()
    }
}

impl Patch for Factors {
    fn config(&self) -> &DecoderConfig {
        &self.config
    }

    fn shape(&self, slot: Slot) -> Option<[usize; 2]> {
        self.tensors.get(&slot).map(|kept| [kept.rows, kept.cols])
    }

    fn get(&self, slot: Slot) -> Result<Option<Cow<'_, Matrix>>, SourceError> {
        let Some(kept) = self.tensors.get(&slot) else { return Ok(None) };
        let data = kept.data.read()?.into_owned();
        Ok(Some(Cow::Owned(Matrix::new(kept.rows, kept.cols, data))))
    }
}
