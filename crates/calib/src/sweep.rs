//! A forward pass over calibration text that holds one block at a time.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use mla_core::attention::Frame;
use mla_core::decoder::frame;
use mla_core::{Block, Decoder, DecoderConfig, Memory, Padding, WeightSource};

use crate::error::Error;
use crate::scratch::{Scratch, Stored};

/// Tokens that go through a block together.
pub(crate) const CHUNK_TOKENS: usize = 2048;

/// Hears how far a conversion is. Libraries never print.
pub trait Observer {
    /// A phase of `steps` steps begins.
    fn phase(&mut self, _name: &'static str, _steps: usize) {}
    /// `done` steps of the phase are done.
    fn step(&mut self, _done: usize) {}
}

impl Observer for () {}

/// Windows of text, cut into batches of equally long ones.
#[derive(Clone, Copy, Debug)]
pub struct Windows<'a> {
    windows: &'a [Vec<u32>],
    cut: usize,
}

impl<'a> Windows<'a> {
    /// Windows of any lengths; neighbours that are equally long share a batch, empty ones give none.
    pub fn new(windows: &'a [Vec<u32>]) -> Self {
        Self::cut(windows, 0)
    }

    /// As [`new`](Self::new), with no batch across the border behind the first `cut` windows.
    pub fn cut(windows: &'a [Vec<u32>], cut: usize) -> Self {
        Self { windows, cut }
    }

    /// Tokens of the longest window.
    pub fn longest(&self) -> usize {
        self.windows.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// Tokens of all windows.
    pub fn tokens(&self) -> usize {
        self.windows.iter().map(Vec::len).sum()
    }

    /// Windows that go through a block together.
    pub fn batches(&self) -> impl Iterator<Item = &'a [Vec<u32>]> + use<'a> {
        let (first, rest) = self.windows.split_at(self.cut);
        batches(first).chain(batches(rest))
    }
}

fn batches(windows: &[Vec<u32>]) -> impl Iterator<Item = &[Vec<u32>]> {
    windows
        .chunk_by(|a, b| a.len() == b.len())
        .filter(|equal| !equal[0].is_empty())
        .flat_map(|equal| equal.chunks((CHUNK_TOKENS / equal[0].len()).max(1)))
}

/// What all layers of a pass share, for windows without padding of each length.
#[derive(Debug)]
pub(crate) struct Frames<'a> {
    config: &'a DecoderConfig,
    device: &'a Device,
    known: BTreeMap<usize, Frame>,
}

impl<'a> Frames<'a> {
    pub(crate) fn new(config: &'a DecoderConfig, device: &'a Device) -> Self {
        Self { config, device, known: BTreeMap::new() }
    }

    /// The frame of a batch `[windows, length, d_model]`.
    pub(crate) fn of(&mut self, batch: &Tensor<3>) -> &Frame {
        let length = batch.dims()[1];
        let made = || frame(self.config, &Padding::none(1), length, self.device);
        self.known.entry(length).or_insert_with(made)
    }
}

/// The residual stream of some windows before one block (or after the last), a batch at a time.
#[derive(Debug)]
pub struct Stream {
    batches: Vec<StoredTensor>,
}

/// A tensor in a [`Scratch`].
#[derive(Debug)]
pub(crate) struct StoredTensor {
    data: Stored<f32>,
    shape: [usize; 3],
}

impl StoredTensor {
    pub(crate) fn keep(scratch: &Scratch, tensor: Tensor<3>) -> Result<Self, Error> {
        let shape = tensor.dims();
        Ok(Self { data: scratch.keep(host(tensor))?, shape })
    }

    pub(crate) fn load(&self, device: &Device) -> Result<Tensor<3>, Error> {
        let data = TensorData::new(self.data.read()?.into_owned(), self.shape);
        Ok(Tensor::from_data(data, device))
    }
}

impl Stream {
    /// The token (and position) embeddings of some windows.
    ///
    /// # Errors
    /// When the source or the temporary file fails, or a token is outside the vocabulary.
    pub fn embed<S: WeightSource>(
        source: &S,
        windows: Windows<'_>,
        device: &Device,
        scratch: &Scratch,
    ) -> Result<Self, Error> {
        let embed = |batch| StoredTensor::keep(scratch, Decoder::embed_from(source, batch, device)?);
        Ok(Self { batches: windows.batches().map(embed).collect::<Result<_, _>>()? })
    }

    /// Number of batches.
    pub fn len(&self) -> usize {
        self.batches.len()
    }

    /// Whether there is no batch.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// A batch: `[windows, length, d_model]`.
    ///
    /// # Errors
    /// When the temporary file cannot be read.
    pub fn batch(&self, index: usize, device: &Device) -> Result<Tensor<3>, Error> {
        self.batches[index].load(device)
    }

    pub(crate) fn replace(&mut self, index: usize, batch: StoredTensor) {
        self.batches[index] = batch;
    }

    pub(crate) fn from_batches(batches: Vec<StoredTensor>) -> Self {
        Self { batches }
    }
}

/// What a forward sweep is to leave behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: the last block is not run beyond its attention input, since nothing reads what follows.
    Nothing,
    /// The stream before every block and after the last, for a backward sweep.
    Boundaries,
    /// As [`Boundaries`](Self::Boundaries), of the windows before the cut alone.
    BoundariesBeforeCut,
}

impl Keep {
    /// What a backward sweep of the first `windows` asks for.
    pub(crate) fn of(windows: usize) -> Self {
        if windows == 0 { Self::Nothing } else { Self::BoundariesBeforeCut }
    }
}

/// Runs windows through the donor, block by block, and shows `visit` the true input of each layer's attention.
///
/// `visit` gets the layer, the block and the batch's `[windows, length, d_model]`; `finish` runs once the layer's last
/// batch was seen. Memory: one block and what `scratch` keeps there.
///
/// # Errors
/// When the source or the temporary file fails, or `visit` or `finish` does.
pub fn sweep<S: WeightSource>(
    source: &S,
    windows: Windows<'_>,
    keep: Keep,
    device: &Device,
    scratch: &Scratch,
    mut visit: impl FnMut(usize, &Block, Tensor<3>) -> Result<(), Error>,
    mut finish: impl FnMut(usize) -> Result<(), Error>,
) -> Result<Vec<Stream>, Error> {
    let config = source.config();
    let mut frames = Frames::new(config, device);
    let mut stream = Stream::embed(source, windows, device, scratch)?;
    let kept_batches = match keep {
        Keep::Nothing => 0,
        Keep::Boundaries => stream.len(),
        Keep::BoundariesBeforeCut => batches(&windows.windows[..windows.cut]).count(),
    };
    let mut kept = Vec::new();
    for layer in 0..config.n_layers() {
        let block = Block::load(source, layer, device)?;
        let mut next = Vec::with_capacity(stream.len());
        for batch in 0..stream.len() {
            let x = stream.batch(batch, device)?;
            let h = block.attention_input(x.clone());
            visit(layer, &block, h.clone())?;
            if batch < kept_batches || layer + 1 < config.n_layers() {
                let frame = frames.of(&x);
                let after = block.forward_from(x, h, frame, layer, &mut Memory::of_pass(config));
                next.push(StoredTensor::keep(scratch, after)?);
            }
        }
        let mut before = std::mem::replace(&mut stream, Stream::from_batches(next));
        if kept_batches > 0 {
            before.batches.truncate(kept_batches);
            kept.push(before);
        }
        finish(layer)?;
    }
    if kept_batches > 0 {
        stream.batches.truncate(kept_batches);
        kept.push(stream);
    }
    Ok(kept)
}

/// Reads a float tensor back as f32, row-major.
pub(crate) fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.try_into_vec_as::<f32>().expect("a float tensor reads back as f32")
}

/// f32 to the f64 that statistics are summed in.
pub(crate) fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}
