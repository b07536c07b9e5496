//! The Fisher information of keys and values: one backward pass through the donor, a block at a time.
//!
//! `M_k = E[g gᵀ]` with `g = ∂L/∂K` at the output of k_proj, before RoPE, and the same for V. With L the cross-entropy
//! against labels sampled from the model itself, summed over positions, M is the Hessian of the KL to the donor (Martens
//! 2020, §5), and its eigenvalues are in one unit across layers and across K and V.

use burn::tensor::{Device, Tensor};
use mla_core::decoder::Norm;
use mla_core::{Attention, Block, Memory, WeightSource};

use crate::error::Error;
use crate::head::{Draws, Head, Labels};
use crate::linalg::{Mat64, add_gram};
use crate::scratch::{Scratch, StoredMatrix};
use crate::statistics::spread;
use crate::sweep::{Frames, Observer, StoredTensor, Stream, host, widen};

/// How the Fisher information is estimated.
#[derive(Clone, Debug, PartialEq)]
pub struct FisherOptions {
    /// What the loss is taken against; given labels are as many as positions are scored in all draws.
    pub labels: Labels,
    /// How often, with new randomness each time.
    pub draws: usize,
    /// Windows that go through the backward pass at most, spread evenly; the rest serve the moments alone.
    pub windows: usize,
    /// Whether the first position of a window counts: an attention sink whose gradient, a few hundred times the mean of
    /// the others, would be most of the metric (see [`Needs::sink`](crate::Needs::sink)).
    pub first_position: bool,
}

impl FisherOptions {
    /// Refuses what leaves nothing to average on this many windows, and labels of another number than there are positions.
    pub(crate) fn check(&self, windows: &[Vec<u32>]) -> Result<(), Error> {
        let count = windows.len().min(self.windows);
        let shortest = windows.iter().map(Vec::len).min().unwrap_or(0);
        for (what, found, expected) in
            [("draw", self.draws, 1), ("window", count, 1), ("tokens a window", shortest, 2)]
        {
            if found < expected {
                return Err(Error::Fisher { what, found, expected });
            }
        }
        let Labels::Given(labels) = &self.labels else { return Ok(()) };
        let scored_once: usize = spread(windows, self.windows).iter().map(|window| window.len() - 1).sum();
        match self.draws * scored_once {
            scored if labels.len() == scored => Ok(()),
            expected => Err(Error::Fisher { what: "labels", found: labels.len(), expected }),
        }
    }
}

/// `E[g gᵀ]` of one layer.
#[derive(Debug)]
pub struct Fisher {
    /// Of the keys, `[d_kv, d_kv]`.
    pub key: StoredMatrix,
    /// Of the values, `[d_kv, d_kv]`.
    pub value: StoredMatrix,
}

/// The Fisher information of every layer's keys and values; of a layer with latents, of those that are rebuilt.
///
/// `boundaries` holds the stream before every block and after the last, as [`sweep`](crate::sweep::sweep()) leaves it;
/// the mean is over all its tokens, those without a prediction counted, and over all draws. Each block is run again under
/// automatic differentiation, so memory is one block with the activations of one batch, whatever the number of layers.
///
/// # Errors
/// When the source or the temporary file fails, or the model overflows.
///
/// # Panics
/// If a layer reads the latents of another.
pub fn fisher<S: WeightSource>(
    source: &S,
    mut boundaries: Vec<Stream>,
    options: &FisherOptions,
    device: &Device,
    scratch: &Scratch,
    observer: &mut dyn Observer,
) -> Result<Vec<Fisher>, Error> {
    let config = source.config();
    let n_layers = config.n_layers();
    observer.phase("gradients", n_layers + 1);
    let tracked = device.clone().autodiff();
    let last = boundaries.pop().expect("a sweep that keeps boundaries leaves the last");
    let mut above = loss_gradient(source, &last, options, device, &tracked, scratch)?;
    drop(last);
    observer.step(1);
    let mut found = Vec::with_capacity(n_layers);
    let mut frames = Frames::new(config, &tracked);
    for layer in (0..n_layers).rev() {
        let before = boundaries.pop().expect("one boundary a block");
        let block = Block::load(source, layer, &tracked)?;
        let d_kv = config.d_kv();
        let (mut key, mut value) = (Mat64::zeros(d_kv, d_kv), Mat64::zeros(d_kv, d_kv));
        let (mut below, mut tokens) = (Vec::with_capacity(above.len()), 0);
        for (place, g) in above.iter().enumerate() {
            // One draw after the other, each with all batches.
            let batch = place % before.len();
            let x = before.batch(batch, &tracked)?.require_grad();
            let [windows, length, _] = x.dims();
            tokens += windows * length;
            let frame = frames.of(&x);
            // Zeros added to K and V: their gradient is that of K and V themselves.
            let probe = || Tensor::<3>::zeros([windows, length, d_kv], &tracked).require_grad();
            let (at_key, at_value) = (probe(), probe());
            let h = block.attention_input(x.clone());
            let memory = &mut Memory::of_pass(config);
            let attended = match &block.attention {
                Attention::Grouped(attention) => {
                    let (k, v) = attention.project(h.clone());
                    let (k, v) = (k + at_key.clone(), v + at_value.clone());
                    attention.attend(h, k, v, frame, layer, memory)
                }
                Attention::Latent(attention) => {
                    let mut known = attention.project(h.clone(), frame, layer, memory);
                    known.keys = known.keys + at_key.clone();
                    known.values = known.values + at_value.clone();
                    attention.attend(h, known, frame, layer)
                }
            };
            let out = block.after_attention(x.clone(), attended);
            let gradients = (out * g.load(&tracked)?).sum().backward();
            let of = |leaf: &Tensor<3>| leaf.grad(&gradients).expect("every leaf has a gradient");
            let counted = |g: Tensor<3>| match options.first_position {
                true => g,
                false => g.narrow(1, 1, length - 1),
            };
            add_outer(&mut key, counted(of(&at_key)));
            add_outer(&mut value, counted(of(&at_value)));
            if layer > 0 {
                below.push(StoredTensor::keep(scratch, of(&x))?);
            }
        }
        let mean = |mut sum: Mat64| {
            sum.mirror_lower();
            sum.scale(1.0 / tokens.max(1) as f64);
            match sum.data.iter().all(|x| x.is_finite()) {
                true => scratch.keep_matrix(sum),
                false => Err(Error::NotFinite { layer }),
            }
        };
        found.push(Fisher { key: mean(key)?, value: mean(value)? });
        above = below;
        observer.step(n_layers - layer + 1);
    }
    found.reverse();
    Ok(found)
}

/// `∂L/∂x` after the last block, through the final norm.
fn loss_gradient<S: WeightSource>(
    source: &S,
    last: &Stream,
    options: &FisherOptions,
    device: &Device,
    tracked: &Device,
    scratch: &Scratch,
) -> Result<Vec<StoredTensor>, Error> {
    let head = Head::load(source, device)?;
    let norm = Norm::load_final(source, tracked)?;
    let mut draws = Draws::new(&options.labels);
    let mut gradients = Vec::with_capacity(last.len() * options.draws);
    for _ in 0..options.draws {
        for batch in 0..last.len() {
            let hidden = head.norm.forward(last.batch(batch, device)?);
            let above = head.gradient(hidden, &options.labels, &mut draws)?;
            let x = last.batch(batch, tracked)?.require_grad();
            let above = Tensor::from_data(above.into_data(), tracked);
            let grads = (norm.forward(x.clone()) * above).sum().backward();
            let gradient = x.grad(&grads).expect("the stream has a gradient");
            gradients.push(StoredTensor::keep(scratch, gradient)?);
        }
    }
    Ok(gradients)
}

fn add_outer(sum: &mut Mat64, g: Tensor<3>) {
    add_gram(sum, &widen(&host(g)));
}
