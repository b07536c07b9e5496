//! An opened model folder: the source of a decoder's weights.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use mla_core::{CacheDtype, DecoderConfig, Slot, SourceError, WeightSource};

use crate::bounds;
use crate::checkpoint::{Checkpoint, Dtype};
use crate::config_json::ConfigJson;
use crate::error::Error;
use crate::generation::GenerationConfig;
use crate::mla::{MlaSection, identity};
use crate::registry::Registry;
use crate::spec::{Layout, TensorSpec};

/// Reads `config.json` (of a folder, or the file itself) and nothing else.
///
/// # Errors
/// When it is missing, malformed, or of no known family.
pub fn read_config(
    path: &Path,
    registry: &Registry,
) -> Result<(ConfigJson, DecoderConfig, Option<MlaSection>), Error> {
    let path: PathBuf = if path.is_dir() { path.join("config.json") } else { path.into() };
    let json = identity::donors(ConfigJson::read(&path)?)?;
    let donor = registry.handler(&json)?.config(&json)?;
    bounds::check(&path, &donor)?;
    let section = MlaSection::read(&json, &donor)?;
    let config = match &section {
        Some(section) => section.apply(donor),
        None => donor,
    };
    Ok((json, config, section))
}

/// A donor or a converted model on disk, checked against its architecture's table but not loaded.
#[derive(Debug)]
pub struct Model {
    json: ConfigJson,
    config: DecoderConfig,
    section: Option<MlaSection>,
    generation: GenerationConfig,
    checkpoint: Checkpoint,
    specs: Vec<TensorSpec>,
    places: HashMap<Slot, usize>,
    unused: Vec<String>,
}

impl Model {
    /// Opens a folder and checks that every tensor the architecture needs is there, in the shape `config.json` implies.
    ///
    /// # Errors
    /// When the folder is no complete model of a known family.
    pub fn open(folder: &Path, registry: &Registry) -> Result<Self, Error> {
        let (json, config, section) = read_config(folder, registry)?;
        let handler = registry.handler(&json)?;
        let generation = GenerationConfig::read(folder, &json)?;
        let checkpoint = Checkpoint::open(folder)?;
        let mut specs = handler.tensors(&config.donor());
        if let Some(section) = &section {
            specs = section.tensors(&specs, &config);
        }
        resolve_prefixes(&mut specs, handler.prefixes(), &checkpoint);
        crate::quantised::check(&json, &specs, &checkpoint)?;
        crate::empty::check(&specs, &checkpoint)?;
        check(&specs, &checkpoint)?;
        let known: std::collections::HashSet<&str> = specs.iter().map(|spec| spec.key.as_str()).collect();
        let unused = checkpoint.keys().filter(|&key| !known.contains(key) && !handler.is_buffer(key));
        let unused = unused.map(str::to_owned).collect();
        let places = specs.iter().enumerate().map(|(i, spec)| (spec.slot, i)).collect();
        Ok(Self { json, config, section, generation, checkpoint, specs, places, unused })
    }

    /// Has the cache keep its numbers in another type than the folder says.
    pub fn set_cache_dtype(&mut self, dtype: CacheDtype) {
        self.config.cache_dtype = dtype;
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.checkpoint.folder()
    }

    /// `config.json` as it stands.
    pub fn json(&self) -> &ConfigJson {
        &self.json
    }

    /// The `mla` section; `None` for a donor.
    pub fn section(&self) -> Option<&MlaSection> {
        self.section.as_ref()
    }

    /// Where a sequence ends.
    pub fn generation(&self) -> &GenerationConfig {
        &self.generation
    }

    /// The weight files.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Every tensor of the graph and where it lies.
    pub fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }

    /// The tensors of the family, as the donor has them and under the names that this checkpoint uses.
    ///
    /// # Errors
    /// When the registry does not know the family any more.
    pub fn donor_specs(&self, registry: &Registry) -> Result<Vec<TensorSpec>, Error> {
        let handler = registry.handler(&self.json)?;
        let mut specs = handler.tensors(&self.config.donor());
        let head = specs.first().map(|spec| spec.key.clone()).unwrap_or_default();
        let used = |prefix: &&&str| self.checkpoint.get(&format!("{prefix}{head}")).is_some();
        if let Some(prefix) = handler.prefixes().iter().find(used) {
            specs.iter_mut().for_each(|spec| spec.key.insert_str(0, prefix));
        }
        Ok(specs)
    }

    /// Tensors in the files that the architecture has no use for.
    pub fn unused(&self) -> &[String] {
        &self.unused
    }

    /// The type the model's matrices are stored in (that of its first tensor).
    ///
    /// # Errors
    /// When that is no plain float.
    pub fn dtype(&self) -> Result<Dtype, Error> {
        let spec = &self.specs[self.places[&Slot::TokenEmbedding]];
        let tensor = self.stored(&spec.key);
        self.checkpoint.dtype(&spec.key, tensor)
    }

    /// A slot's numbers: row-major, `[d_out, d_in]` or `[d_in, d_out]` as its layout says, fused tensors cut.
    ///
    /// # Errors
    /// When the slot is absent, cannot be read, or holds NaN or infinity.
    pub fn read(&self, slot: Slot) -> Result<(Vec<f32>, &TensorSpec), Error> {
        let (bytes, dtype, spec) = self.read_bytes(slot)?;
        let mut values = Vec::with_capacity(bytes.len() / dtype.bytes());
        dtype.decode(&bytes, &mut values);
        Ok((values, spec))
    }

    /// As [`read`](Self::read), in the type it is stored in, little-endian.
    fn read_bytes(&self, slot: Slot) -> Result<(Vec<u8>, Dtype, &TensorSpec), Error> {
        let spec = self.spec(slot)?;
        let tensor = self.stored(&spec.key);
        let dtype = self.checkpoint.dtype(&spec.key, tensor)?;
        let [_, d_in] = spec.slot_shape();
        let (size, experts) = (dtype.bytes(), spec.expert.map_or(1, |_| spec.shape[0]));
        let one = spec.shape.iter().product::<usize>() / experts * size;
        let start = spec.expert.unwrap_or(0) * one;
        let bytes = match (&spec.outputs, spec.layout) {
            (None, _) => self.checkpoint.read_part(tensor, start, one)?,
            (Some(outputs), Layout::OutIn) => {
                let row = d_in * size;
                let mut bytes = Vec::new();
                for piece in outputs.pieces() {
                    let (start, len) = (start + piece.start * row, piece.len() * row);
                    bytes.extend(self.checkpoint.read_part(tensor, start, len)?);
                }
                bytes
            }
            (Some(outputs), Layout::InOut) => {
                let stored_row = spec.shape[spec.shape.len() - 1] * size;
                let whole = self.checkpoint.read_part(tensor, start, one)?;
                let mut bytes = Vec::new();
                for row in whole.chunks_exact(stored_row) {
                    for piece in outputs.pieces() {
                        bytes.extend_from_slice(&row[piece.start * size..piece.end * size]);
                    }
                }
                bytes
            }
        };
        match dtype.first_not_finite(&bytes) {
            None => Ok((bytes, dtype, spec)),
            Some((index, value)) => Err(self.not_finite(&spec.key, index, value)),
        }
    }

    /// The shape of a slot: of a vector one number, of a matrix `[d_out, d_in]`.
    pub(crate) fn shape(&self, slot: Slot) -> Result<Vec<usize>, Error> {
        let spec = self.spec(slot)?;
        let [d_out, d_in] = spec.slot_shape();
        Ok(if spec.shape.len() - usize::from(spec.expert.is_some()) == 1 {
            vec![d_out]
        } else {
            vec![d_out, d_in]
        })
    }

    pub(crate) fn not_finite(&self, key: &str, index: usize, value: f32) -> Error {
        Error::NotFinite { path: self.folder().into(), key: key.into(), index, value }
    }

    fn spec(&self, slot: Slot) -> Result<&TensorSpec, Error> {
        let missing = || Error::MissingTensors { path: self.folder().into(), keys: vec![slot.to_string()] };
        self.places.get(&slot).map(|&place| &self.specs[place]).ok_or_else(missing)
    }

    fn stored(&self, key: &str) -> &crate::checkpoint::StoredTensor {
        self.checkpoint.get(key).expect("every spec was found when the folder was opened")
    }
}

impl WeightSource for Model {
    fn config(&self) -> &DecoderConfig {
        &self.config
    }

    fn matrix(&self, slot: Slot, device: &Device) -> Result<Tensor<2>, SourceError> {
        let (values, spec) = self.read(slot)?;
        let [d_out, d_in] = spec.slot_shape();
        Ok(match spec.layout {
            Layout::OutIn => Tensor::from_data(TensorData::new(values, [d_out, d_in]), device),
            Layout::InOut => Tensor::from_data(TensorData::new(values, [d_in, d_out]), device).transpose(),
        })
    }

    fn matrix_as_stored(&self, slot: Slot, device: &Device) -> Result<Tensor<2>, SourceError> {
        let (bytes, dtype, spec) = self.read_bytes(slot)?;
        let dtype = dtype.of_tensors();
        let [d_out, d_in] = spec.slot_shape();
        let tensor = |shape: [usize; 2]| {
            let data = TensorData::from_bytes_vec(bytes, shape, dtype);
            Tensor::from_data(data, (device, dtype))
        };
        Ok(match spec.layout {
            Layout::OutIn => tensor([d_out, d_in]),
            Layout::InOut => tensor([d_in, d_out]).transpose(),
        })
    }

    fn vector(&self, slot: Slot, device: &Device) -> Result<Tensor<1>, SourceError> {
        let (values, _) = self.read(slot)?;
        let len = values.len();
        Ok(Tensor::from_data(TensorData::new(values, [len]), device))
    }

    fn rows(&self, slot: Slot, rows: &[u32], device: &Device) -> Result<Tensor<2>, SourceError> {
        let spec = self.spec(slot)?;
        let tensor = self.stored(&spec.key);
        let dtype = self.checkpoint.dtype(&spec.key, tensor)?;
        let [d_out, d_in] = spec.slot_shape();
        let mut values = Vec::with_capacity(rows.len() * d_in);
        for &row in rows {
            if row as usize >= d_out {
                return Err(format!("row {row} of {}, which has {d_out} rows", spec.key).into());
            }
            let bytes = d_in * dtype.bytes();
            dtype.decode(&self.checkpoint.read_part(tensor, row as usize * bytes, bytes)?, &mut values);
        }
        if let Some(place) = values.iter().position(|v| !v.is_finite()) {
            let index = rows[place / d_in] as usize * d_in + place % d_in;
            return Err(self.not_finite(&spec.key, index, values[place]).into());
        }
        Ok(Tensor::from_data(TensorData::new(values, [rows.len(), d_in]), device))
    }
}

/// Gives each key the prefix under which the checkpoint has it.
fn resolve_prefixes(specs: &mut [TensorSpec], prefixes: &[&str], checkpoint: &Checkpoint) {
    for spec in specs {
        let found = prefixes
            .iter()
            .map(|prefix| format!("{prefix}{}", spec.key))
            .find(|key| checkpoint.get(key).is_some());
        if let Some(key) = found {
            spec.key = key;
        }
    }
}

/// Every tensor is there, in its shape, as a plain float.
pub(crate) fn check(specs: &[TensorSpec], checkpoint: &Checkpoint) -> Result<(), Error> {
    let path = || checkpoint.folder().to_path_buf();
    let missing: Vec<String> = specs
        .iter()
        .filter(|spec| checkpoint.get(&spec.key).is_none())
        .map(|spec| spec.key.clone())
        .collect();
    if !missing.is_empty() {
        return Err(Error::MissingTensors { path: path(), keys: missing });
    }
    for spec in specs {
        let Some(tensor) = checkpoint.get(&spec.key) else { continue };
        if tensor.shape != spec.shape {
            let (expected, found) = (spec.shape.clone(), tensor.shape.clone());
            return Err(Error::Shape { path: path(), key: spec.key.clone(), expected, found });
        }
        checkpoint.dtype(&spec.key, tensor)?;
    }
    Ok(())
}
