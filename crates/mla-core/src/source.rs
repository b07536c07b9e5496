//! Where weights come from: one tensor at a time, so that a model need never be in memory whole.

use std::borrow::Cow;
use std::collections::HashMap;

use burn::tensor::{Device, Tensor, TensorData};

use crate::decoder::DecoderConfig;
use crate::weights::{LayerSlot, Matrix, Slot};

/// Any failure of a weight source, kept whole so that the caller can show path, key and hint.
pub type SourceError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Hands out the tensors of one model by [`Slot`].
///
/// Loading a block asks for that block's slots only; dropping the block frees them. A checkpoint whose
/// tensors are read when they are asked for therefore streams, whatever its size.
pub trait WeightSource {
    /// The graph these weights belong to.
    fn config(&self) -> &DecoderConfig;

    /// A matrix as f32 `[d_out, d_in]` on `device`.
    ///
    /// # Errors
    /// When the slot is absent or cannot be read.
    fn matrix(&self, slot: Slot, device: &Device) -> Result<Tensor<2>, SourceError>;

    /// A matrix as it is stored, f32 or 16 bits: what [`matrix`](Self::matrix) gives, not widened.
    ///
    /// # Errors
    /// When the slot is absent or cannot be read.
    fn matrix_as_stored(&self, slot: Slot, device: &Device) -> Result<Tensor<2>, SourceError> {
        self.matrix(slot, device)
    }

    /// A vector as f32 on `device`.
    ///
    /// # Errors
    /// When the slot is absent or cannot be read.
    fn vector(&self, slot: Slot, device: &Device) -> Result<Tensor<1>, SourceError>;

    /// Some rows of a matrix, in the order of `rows`: an embedding lookup that never loads the whole table.
    ///
    /// # Errors
    /// When the slot is absent, a row is out of range, or reading fails.
    fn rows(&self, slot: Slot, rows: &[u32], device: &Device) -> Result<Tensor<2>, SourceError>;
}

/// A few tensors that stand before those of another source: the factors of a conversion, wherever they are kept.
pub trait Patch {
    /// The graph of the patched model.
    fn config(&self) -> &DecoderConfig;

    /// The size of the tensor in a slot, without reading it: `[rows, cols]`; `None` where the patch has nothing.
    fn shape(&self, slot: Slot) -> Option<[usize; 2]>;

    /// The tensor in a slot, `[d_out, d_in]` (a vector is a matrix of one row); `None` where the patch has nothing.
    ///
    /// # Errors
    /// When it is kept somewhere that cannot be read.
    fn get(&self, slot: Slot) -> Result<Option<Cow<'_, Matrix>>, SourceError>;

    /// Lays these tensors over `base`: what is absent here is read there.
    fn over<'a, S: WeightSource>(&'a self, base: &'a S) -> Overlay<'a, Self, S>
    where
        Self: Sized,
    {
        Overlay { patch: self, base }
    }
}

/// Weights held in memory: for tests, for models made in code, and as a patch over another source.
#[derive(Clone, Debug)]
pub struct WeightMap {
    config: DecoderConfig,
    tensors: HashMap<Slot, Matrix>,
}

impl WeightMap {
    /// An empty set of weights for `config`.
    pub fn new(config: DecoderConfig) -> Self {
        Self { config, tensors: HashMap::new() }
    }

    /// Adds or replaces a tensor; a vector is a matrix of one row.
    pub fn insert(&mut self, slot: Slot, matrix: Matrix) {
        self.tensors.insert(slot, matrix);
    }

    /// Adds or replaces a tensor of a layer.
    pub fn insert_layer(&mut self, layer: usize, slot: LayerSlot, matrix: Matrix) {
        self.insert(Slot::Layer(layer, slot), matrix);
    }

    /// The graph these weights belong to.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The tensor in a slot, if it is held here.
    pub fn get(&self, slot: Slot) -> Option<&Matrix> {
        self.tensors.get(&slot)
    }

    fn require(&self, slot: Slot) -> Result<&Matrix, SourceError> {
        self.get(slot).ok_or_else(|| format!("no tensor for {slot}").into())
    }
}

impl Patch for WeightMap {
    fn config(&self) -> &DecoderConfig {
        &self.config
    }

    fn shape(&self, slot: Slot) -> Option<[usize; 2]> {
        self.tensors.get(&slot).map(|matrix| [matrix.rows, matrix.cols])
    }

    fn get(&self, slot: Slot) -> Result<Option<Cow<'_, Matrix>>, SourceError> {
        Ok(self.tensors.get(&slot).map(Cow::Borrowed))
    }
}

impl WeightSource for WeightMap {
    fn config(&self) -> &DecoderConfig {
        &self.config
    }

    fn matrix(&self, slot: Slot, device: &Device) -> Result<Tensor<2>, SourceError> {
        Ok(self.require(slot)?.to_tensor(device))
    }

    fn vector(&self, slot: Slot, device: &Device) -> Result<Tensor<1>, SourceError> {
        Ok(self.require(slot)?.to_vector(device))
    }

    fn rows(&self, slot: Slot, rows: &[u32], device: &Device) -> Result<Tensor<2>, SourceError> {
        Ok(self.require(slot)?.rows_of(slot, rows)?.to_tensor(device))
    }
}

impl Matrix {
    /// All numbers as one vector.
    fn to_vector(&self, device: &Device) -> Tensor<1> {
        Tensor::from_data(TensorData::new(self.data.clone(), [self.data.len()]), device)
    }

    /// Some rows, in the order of `rows`.
    fn rows_of(&self, slot: Slot, rows: &[u32]) -> Result<Matrix, SourceError> {
        let mut data = Vec::with_capacity(rows.len() * self.cols);
        for &row in rows {
            let start = row as usize * self.cols;
            let slice = self.data.get(start..start + self.cols);
            data.extend_from_slice(
                slice.ok_or_else(|| format!("row {row} of {slot}, which has {} rows", self.rows))?,
            );
        }
        Ok(Matrix::new(rows.len(), self.cols, data))
    }
}

/// A [`Patch`] laid over another source; the configuration is the patch's.
#[derive(Debug)]
pub struct Overlay<'a, P, S> {
    patch: &'a P,
    base: &'a S,
}

impl<P: Patch, S: WeightSource> WeightSource for Overlay<'_, P, S> {
    fn config(&self) -> &DecoderConfig {
        self.patch.config()
    }

    fn matrix(&self, slot: Slot, device: &Device) -> Result<Tensor<2>, SourceError> {
        match self.patch.get(slot)? {
            Some(matrix) => Ok(matrix.to_tensor(device)),
            None => self.base.matrix(slot, device),
        }
    }

    fn matrix_as_stored(&self, slot: Slot, device: &Device) -> Result<Tensor<2>, SourceError> {
        match self.patch.get(slot)? {
            Some(matrix) => Ok(matrix.to_tensor(device)),
            None => self.base.matrix_as_stored(slot, device),
        }
    }

    fn vector(&self, slot: Slot, device: &Device) -> Result<Tensor<1>, SourceError> {
        match self.patch.get(slot)? {
            Some(vector) => Ok(vector.to_vector(device)),
            None => self.base.vector(slot, device),
        }
    }

    fn rows(&self, slot: Slot, rows: &[u32], device: &Device) -> Result<Tensor<2>, SourceError> {
        match self.patch.get(slot)? {
            Some(table) => Ok(table.rows_of(slot, rows)?.to_tensor(device)),
            None => self.base.rows(slot, rows, device),
        }
    }
}

/// Reads a float tensor back to the host as f32, row-major.
///
/// # Panics
/// If the device fails while it is read.
pub(crate) fn host_f32<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.try_into_vec_as::<f32>().expect("a float tensor reads back as f32")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::{Biases, BlockKind, HeadKind, NormKind, PositionKind, Scales};

    fn config(d_model: usize) -> DecoderConfig {
        DecoderConfig {
            d_model,
            n_heads: 1,
            n_kv_heads: 1,
            d_head: d_model,
            vocab_size: 3,
            max_positions: 1,
            norm: NormKind::Layer,
            norm_eps: 1e-5,
            position: PositionKind::Learned,
            block: BlockKind::PreNorm,
            scales: Scales::default(),
            biases: Biases { qkv: false, output: false, mlp: false },
            head: HeadKind::Tied,
            cache_dtype: crate::CacheDtype::F32,
            layers: Vec::new(),
        }
    }

    #[test]
    fn a_patch_stands_before_its_base_and_brings_its_configuration() {
        let device = Device::flex();
        let mut base = WeightMap::new(config(2));
        base.insert(Slot::Head, Matrix::new(1, 2, vec![1.0, 2.0]));
        base.insert(Slot::TokenEmbedding, Matrix::new(3, 2, vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]));
        let mut patch = WeightMap::new(config(4));
        patch.insert(Slot::Head, Matrix::new(1, 2, vec![7.0, 8.0]));
        let overlay = patch.over(&base);
        assert_eq!(overlay.config().d_model, 4);
        assert_eq!(host_f32(overlay.vector(Slot::Head, &device).expect("patched")), [7.0, 8.0]);
        let rows = overlay.rows(Slot::TokenEmbedding, &[2, 0, 2], &device).expect("the base's");
        assert_eq!(host_f32(rows), [4.0, 5.0, 0.0, 1.0, 4.0, 5.0]);
    }

    #[test]
    fn what_is_not_there_is_named() {
        let device = Device::flex();
        let mut map = WeightMap::new(config(2));
        let missing = map.matrix(Slot::Layer(3, LayerSlot::UpKey), &device).expect_err("an empty map");
        assert_eq!(missing.to_string(), "no tensor for layer 3 UpKey");
        map.insert(Slot::TokenEmbedding, Matrix::new(3, 2, vec![0.0; 6]));
        let beyond = map.rows(Slot::TokenEmbedding, &[0, 3], &device).expect_err("three rows");
        assert_eq!(beyond.to_string(), "row 3 of TokenEmbedding, which has 3 rows");
    }
}
