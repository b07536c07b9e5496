//! Sequential correction: decoders fitted again on what the compressed model really reads.
//!
//! A conversion is fitted to the donor's activations, but layer l of the converted model sees those that its compressed
//! predecessors produce. Donor and converted model run side by side; in layer order the decoder of each layer is solved
//! anew by least squares from the latents `z̃` of the compressed prefix towards the donor's `y = [W_k h; W_v h]`:
//! `D = E[y z̃ᵀ] E[z̃ z̃ᵀ]⁻¹`. What is cached, `W_down` up to a change of basis, stays; so do ranks and bytes.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor};
use mla_core::attention::{Keys, latent_input};
use mla_core::decoder::{AttentionKind, Serves};
use mla_core::{Attention, Block, CacheDtype, DecoderConfig, LayerSlot, Memory, Patch, WeightSource};

use super::cascade::Writer;
use crate::error::Error;
use crate::factors::Factors;
use crate::linalg::{Mat64, add_cross, qr, solve};
use crate::metric::Metric;
use crate::scratch::{Scratch, Stored};
use crate::statistics::{stacked, weigh_first};
use crate::sweep::{Frames, Observer, StoredTensor, Stream, Windows, host, widen};

/// Share of the mean diagonal added to `E[z̃ z̃ᵀ]`.
const RIDGE: f64 = 1e-6;

/// Fits the decoders of a conversion again. `sink` weighs each window's first token, as in the statistics.
///
/// # Errors
/// When layers share a `W_up`, a layer has a shared key, or the source or the temporary file fails.
pub fn refit<S: WeightSource>(
    source: &S,
    factors: &Factors,
    windows: &[Vec<u32>],
    sink: f64,
    device: &Device,
    scratch: &Scratch,
    observer: &mut dyn Observer,
) -> Result<Factors, Error> {
    let (donor, config) = (source.config(), factors.config());
    let shared = |&layer: &usize| config.latent(layer).is_some_and(|latent| latent.up_of != layer);
    if let Some(layer) = (0..config.n_layers()).find(shared) {
        return Err(Error::SharedBasis { layer });
    }
    let beside = |layer: usize| config.latent(layer).is_some_and(|latent| latent.shared_key().is_some());
    if (0..config.n_layers()).any(beside) {
        return Err(Error::SharedKey { why: "keys beside a shared one stand for no keys of the donor's" });
    }
    let windows = Windows::new(windows);
    let mut frames = Frames::new(donor, device);
    let mut theirs = Stream::embed(source, windows, device, scratch)?;
    let mut ours = Stream::embed(source, windows, device, scratch)?;
    let mut memories: Vec<Memory<'static>> =
        (0..ours.len()).map(|_| Memory::of_pass(&unbalanced(config))).collect();
    let mut refit = Refit {
        old: factors,
        writer: Writer::new(Factors::new(unbalanced(config), scratch), donor.d_kv()),
        latents: BTreeMap::new(),
        scratch,
    };
    observer.phase("sequential correction", donor.n_layers());
    for layer in 0..donor.n_layers() {
        let block = Block::load(source, layer, device)?;
        if config.latent(layer).is_some() {
            let w = stacked(source, layer, device)?.to_matrix().to_tensor(device).transpose();
            let down = factors.down(layer)?;
            let keys = normed_keys(&block);
            let mut sums = refit.sums(layer);
            for batch in 0..ours.len() {
                let input = |stream: &Stream| {
                    let h = block.attention_input(stream.batch(batch, device)?);
                    Ok::<_, Error>(latent_input(keys, h))
                };
                let y = input(&theirs)?.matmul(w.clone().unsqueeze::<3>());
                let c = input(&ours)?.matmul(down.to_matrix().to_tensor(device).transpose().unsqueeze::<3>());
                refit.add(layer, batch, weigh_first(y, sink), weigh_first(c, sink), &mut sums)?;
            }
            refit.solve(layer, sums, &down)?;
        }
        let attention = Attention::load(&refit.writer.factors.over(source), layer, device)?;
        let (mut after_theirs, mut after_ours) = (Vec::new(), Vec::new());
        for (batch, memory) in memories.iter_mut().enumerate() {
            let x = theirs.batch(batch, device)?;
            let frame = frames.of(&x);
            let x = block.forward(x, frame, layer, &mut Memory::of_pass(donor));
            after_theirs.push(StoredTensor::keep(scratch, x)?);
            let x = ours.batch(batch, device)?;
            let attended = attention.forward(block.attention_input(x.clone()), frame, layer, memory);
            after_ours.push(StoredTensor::keep(scratch, block.after_attention(x, attended))?);
        }
        (theirs, ours) = (Stream::from_batches(after_theirs), Stream::from_batches(after_ours));
        observer.step(layer + 1);
    }
    refit.writer.factors.set_cache_dtype(config.cache_dtype);
    Ok(refit.writer.factors)
}

/// The state of a correction on its way through the layers.
struct Refit<'a> {
    old: &'a Factors,
    writer: Writer,
    /// Latents of the layers that are still read, in the old basis, a batch an entry.
    latents: BTreeMap<usize, Vec<Stored<f32>>>,
    scratch: &'a Scratch,
}

/// `Σ y z̃ᵀ` and `Σ z̃ z̃ᵀ`.
struct Sums {
    target: Mat64,
    moment: Mat64,
    /// Each layer that is read and then the layer itself, with the columns of its latent.
    places: Vec<(usize, std::ops::Range<usize>)>,
}

impl Refit<'_> {
    /// The ranks of a layer's parts.
    fn ranks(&self, layer: usize) -> Vec<usize> {
        self.old.config().latent(layer).map_or_else(Vec::new, |latent| latent.width.widths())
    }

    fn sums(&self, layer: usize) -> Sums {
        let config = self.old.config();
        let mut places = Vec::new();
        let mut column = 0;
        for j in config.reads(layer).into_iter().chain([layer]) {
            let width = config.cached_numbers(j);
            places.push((j, column..column + width));
            column += width;
        }
        Sums { target: Mat64::zeros(2 * config.d_kv(), column), moment: Mat64::zeros(column, column), places }
    }

    /// Adds a batch: `y` `[windows, length, 2 · d_kv]`, `c` `[windows, length, width]`.
    fn add(
        &mut self,
        layer: usize,
        batch: usize,
        y: Tensor<3>,
        c: Tensor<3>,
        sums: &mut Sums,
    ) -> Result<(), Error> {
        self.latents.entry(layer).or_default().push(self.scratch.keep(host(c))?);
        let y = widen(&host(y));
        let tokens = y.len() / sums.target.rows;
        let width = sums.target.cols;
        let mut z = vec![0.0f64; tokens * width];
        for (j, place) in &sums.places {
            let part = self.latents[j][batch].read()?;
            for (row, part) in z.chunks_exact_mut(width).zip(part.chunks_exact(place.len().max(1))) {
                row[place.clone()].iter_mut().zip(part).for_each(|(z, &c)| *z = f64::from(c));
            }
        }
        add_cross(&mut sums.target, &y, &z);
        add_cross(&mut sums.moment, &z, &z);
        Ok(())
    }

    /// The new decoder of a layer, and its factors.
    fn solve(&mut self, layer: usize, sums: Sums, down: &Mat64) -> Result<(), Error> {
        let config = self.old.config();
        let ranks = self.ranks(layer);
        let crossed = config.latent(layer).is_some_and(|latent| latent.reads_from.is_some());
        match (crossed, ranks.as_slice()) {
            (false, &[r_k, r_v]) => {
                let d_kv = config.d_kv();
                let parts = [
                    (0..r_k, 0..d_kv, LayerSlot::UpKey, Serves::Keys),
                    (r_k..r_k + r_v, d_kv..2 * d_kv, LayerSlot::UpValue, Serves::Values),
                ];
                for (columns, rows, up, serves) in parts {
                    let moment = sums.moment.block(columns.clone(), columns.clone());
                    let decoder = regress(moment, &sums.target.block(rows, columns.clone()))?;
                    let (w_up, triangle) = qr(&decoder);
                    self.writer.factors.insert(layer, up, &w_up)?;
                    self.writer.factors.insert_down(
                        layer,
                        serves,
                        &triangle.dot(&down.row_block(columns)),
                    )?;
                }
            }
            _ => {
                let decoder = regress(sums.moment, &sums.target)?;
                let reads: Vec<(usize, Vec<usize>)> =
                    config.reads(layer).into_iter().map(|j| (j, self.ranks(j))).collect();
                let plain = [Metric::Identity, Metric::Identity];
                self.writer.layer(layer, &ranks, &reads, &decoder, down, &plain)?;
            }
        }
        let first = (layer + 1..config.n_layers()).flat_map(|later| config.reads(later)).min();
        let first = first.unwrap_or(usize::MAX);
        self.latents.retain(|&j, _| j >= first);
        self.writer.forget(first);
        Ok(())
    }
}

/// The graph without a basis for quantising: it was that of other latents. Decoders are fitted to latents as they are
/// computed.
fn unbalanced(config: &DecoderConfig) -> DecoderConfig {
    let mut config = DecoderConfig { cache_dtype: CacheDtype::F32, ..config.clone() };
    for layer in &mut config.layers {
        if let AttentionKind::Latent(latent) = &mut layer.attention {
            latent.balanced = false;
        }
    }
    config
}

/// The keys of a donor's block, where they are normed before they are compressed.
fn normed_keys(block: &Block) -> Option<&Keys> {
    match &block.attention {
        Attention::Grouped(attention) => Some(&attention.keys),
        Attention::Latent(attention) => attention.keys.as_ref(),
    }
}

fn regress(mut moment: Mat64, target: &Mat64) -> Result<Mat64, Error> {
    moment.add_ridge(RIDGE);
    Ok(solve(&moment.symmetrised(), &target.transpose())?.transpose())
}
