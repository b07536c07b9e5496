//! A forward pass over calibration text that holds one block at a time.

use burn::tensor::{Device, Tensor};
use mla_core::decoder::frame;
use mla_core::{Block, Decoder, Padding, WeightSource};

use crate::error::Error;

/// Tokens that go through a block together.
const CHUNK_TOKENS: usize = 2048;

/// Hears how far a conversion is. Libraries never print.
pub trait Observer {
    /// A layer was finished.
    fn layer(&mut self, _done: usize, _layers: usize) {}
}

impl Observer for () {}

/// Runs equally long windows through the donor, block by block, and shows `visit` the true input of each layer's
/// attention.
///
/// Memory: one block, and the residual stream of all windows (`windows · length · d_model` f32). `visit` gets the
/// layer and `[batch, length, d_model]`, several times a layer; `finish` runs once the layer's last batch was seen.
/// The last layer is not run beyond its attention input, since nothing reads what follows.
///
/// # Errors
/// When the source fails, or `visit` or `finish` does.
pub fn sweep<S: WeightSource>(
    source: &S,
    windows: &[Vec<u32>],
    device: &Device,
    mut visit: impl FnMut(usize, Tensor<3>) -> Result<(), Error>,
    mut finish: impl FnMut(usize) -> Result<(), Error>,
) -> Result<(), Error> {
    let config = source.config();
    let length = windows.first().map_or(0, Vec::len);
    let chunk = (CHUNK_TOKENS / length.max(1)).max(1);
    let mut streams = Vec::with_capacity(windows.len().div_ceil(chunk));
    for batch in windows.chunks(chunk) {
        streams.push(Decoder::embed_from(source, batch, device)?);
    }
    // Windows have no padding and one length, so every batch and layer shares one frame.
    let frame = frame(config, &Padding::none(1), length, device);
    for layer in 0..config.n_layers() {
        let block = Block::load(source, layer, device)?;
        for stream in &mut streams {
            let x = stream.clone();
            let h = block.attention_input(x.clone());
            visit(layer, h.clone())?;
            if layer + 1 < config.n_layers() {
                *stream = block.forward_from(x, h, &frame, layer, None);
            }
        }
        finish(layer)?;
    }
    Ok(())
}
