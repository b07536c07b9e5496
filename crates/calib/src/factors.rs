//! The factors of a conversion, as a patch over the donor.

use std::borrow::Cow;
use std::collections::BTreeMap;

use mla_core::decoder::{AttentionKind, Serves};
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

    /// Adds a part's `W_down`, given for all that the layer's latents are made of: the columns that another part reads are
    /// left out.
    ///
    /// # Shapes
    /// - `matrix`: `[rank, d_latent_input]`, zero where the part reads nothing
    ///
    /// # Errors
    /// When the temporary file cannot be written.
    ///
    /// # Panics
    /// If the layer has no such part.
    pub fn insert_down(&mut self, layer: usize, serves: Serves, matrix: &Mat64) -> Result<(), Error> {
        let latent = self.config.latent(layer).expect("a layer with latents");
        let part = latent.width.parts().into_iter().find(|part| part.serves == serves);
        let part = part.expect("a part that the layer has");
        let read = self.config.read_by(layer, part);
        self.insert(layer, part.down(), &matrix.block(0..matrix.rows, read))
    }

    /// `W_down` of all parts of a layer, one below the other, over all that its latents are made of.
    ///
    /// # Shapes
    /// - `[width, d_latent_input]`
    ///
    /// # Errors
    /// When the temporary file cannot be read.
    ///
    /// # Panics
    /// If the layer has no latents, or its factors are not there yet.
    pub fn down(&self, layer: usize) -> Result<Mat64, Error> {
        let latent = self.config.latent(layer).expect("a layer with latents");
        let mut whole = Mat64::zeros(latent.width.total(), self.config.d_latent_input(layer));
        let mut row = 0;
        for part in latent.width.parts() {
            let down = self.get(Slot::Layer(layer, part.down()))?.expect("a latent layer has a W_down");
            whole.place(row, self.config.read_by(layer, part).start, &Mat64::from_matrix(&down));
            row += part.width;
        }
        Ok(whole)
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
