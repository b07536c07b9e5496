//! What a conversion really costs: converted models run beside their donor, a block at a time.
//!
//! The donor's block is loaded once; each candidate runs the same block with its own attention on its own stream. What
//! comes out is the KL to the donor, and on the way the error of K and V in the model as it runs, each layer on the
//! activations that the compressed layers before it produce.

use burn::tensor::{Device, Tensor};
use mla_core::{Attention, Block, Memory, Patch, WeightSource};

use crate::error::Error;
use crate::factors::Factors;
use crate::head::Head;
use crate::report::MeasuredError;
use crate::scratch::Scratch;
use crate::sweep::{Frames, Observer, StoredTensor, Stream, Windows};

/// What held-back text says of one candidate.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Mean `KL(donor ‖ candidate)` a token, in nats.
    pub kl: f64,
    /// The same of each window.
    pub windows: Vec<f64>,
    /// The error of each layer's K and V; `None` for a layer that keeps its attention.
    pub errors: Vec<Option<MeasuredError>>,
}

/// Runs candidates beside the donor on windows that none of them was fitted to.
///
/// # Errors
/// When the source or the temporary file fails, or a candidate's logits are not finite.
///
/// # Panics
/// If there is no window.
pub fn judge<S: WeightSource>(
    source: &S,
    candidates: &[&Factors],
    windows: &[Vec<u32>],
    device: &Device,
    scratch: &Scratch,
    observer: &mut dyn Observer,
) -> Result<Vec<Verdict>, Error> {
    let config = source.config();
    let n_layers = config.n_layers();
    assert!(!windows.is_empty(), "a verdict needs text");
    let lengths: Vec<usize> = windows.iter().map(Vec::len).collect();
    let windows = Windows::new(windows);
    observer.phase("measuring", n_layers + 1);
    let mut frames = Frames::new(config, device);
    let mut donor = Stream::embed(source, windows, device, scratch)?;
    let mut runs = Vec::with_capacity(candidates.len());
    for factors in candidates {
        let stream = Stream::embed(source, windows, device, scratch)?;
        let memories = (0..stream.len()).map(|_| Memory::of_pass(factors.config())).collect();
        // A candidate may turn by a rotary embedding that the donor has not got.
        let frames = Frames::new(factors.config(), device);
        runs.push(Run { factors, frames, stream, memories, errors: Vec::with_capacity(n_layers) });
    }
    for layer in 0..n_layers {
        let block = Block::load(source, layer, device)?;
        let Attention::Grouped(attention) = &block.attention else {
            return Err(Error::AlreadyLatent { layer });
        };
        let theirs = |run: &Run<'_>| Attention::load(&run.factors.over(source), layer, device);
        let attentions: Vec<Attention> = runs.iter().map(theirs).collect::<Result<_, _>>()?;
        let mut squares = vec![[Squares::default(), Squares::default()]; runs.len()];
        // One batch at a time through all of them, so that one batch's true K and V are there at a time.
        for batch in 0..donor.len() {
            let x = donor.batch(batch, device)?;
            let h = block.attention_input(x.clone());
            let (true_k, true_v) = attention.project(h.clone());
            let memory = &mut Memory::of_pass(config);
            let frame = frames.of(&x);
            let attended = attention.attend(h, true_k.clone(), true_v.clone(), frame, layer, memory);
            donor.replace(batch, StoredTensor::keep(scratch, block.after_attention(x, attended))?);
            for ((run, attention), sums) in runs.iter_mut().zip(&attentions).zip(&mut squares) {
                let x = run.stream.batch(batch, device)?;
                let h = block.attention_input(x.clone());
                let (memory, frame) = (&mut run.memories[batch], run.frames.of(&x));
                let attended = match attention {
                    Attention::Grouped(_) => attention.forward(h, frame, layer, memory),
                    Attention::Latent(latent) => {
                        let known = latent.project(h.clone(), frame, layer, memory);
                        // Keys beside a shared one stand for something else than the donor's.
                        if known.shared.is_none() {
                            sums[0].add(&known.keys, &true_k);
                        }
                        sums[1].add(&known.values, &true_v);
                        latent.attend(h, known, frame, layer)
                    }
                };
                run.stream.replace(batch, StoredTensor::keep(scratch, block.after_attention(x, attended))?);
            }
        }
        for ((run, attention), [key, value]) in runs.iter_mut().zip(&attentions).zip(squares) {
            run.errors.push(match attention {
                Attention::Grouped(_) => None,
                Attention::Latent(latent) => Some(MeasuredError {
                    key: latent.shared.is_none().then(|| key.relative()),
                    value: value.relative(),
                }),
            });
        }
        observer.step(layer + 1);
    }
    let head = Head::load(source, device)?;
    let mut kl: Vec<Vec<f64>> = vec![Vec::new(); runs.len()];
    for batch in 0..donor.len() {
        let last = |stream: &Stream| Ok::<_, Error>(head.norm.forward(stream.batch(batch, device)?));
        let theirs = last(&donor)?;
        let ours: Vec<Tensor<3>> = runs.iter().map(|run| last(&run.stream)).collect::<Result<_, _>>()?;
        for (all, windows) in kl.iter_mut().zip(head.divergences(theirs, ours)?) {
            all.extend(windows);
        }
    }
    observer.step(n_layers + 1);
    let verdict = |(run, windows): (Run<'_>, Vec<f64>)| {
        let sum: f64 = windows.iter().zip(&lengths).map(|(kl, &length)| kl * length as f64).sum();
        let kl = sum / lengths.iter().sum::<usize>() as f64;
        if !kl.is_finite() {
            return Err(Error::DivergenceNotFinite);
        }
        // A divergence is never negative; rounding may make it so.
        Ok(Verdict { kl: kl.max(0.0), windows, errors: run.errors })
    };
    runs.into_iter().zip(kl).map(verdict).collect()
}

/// A candidate on its way through the layers.
struct Run<'a> {
    factors: &'a Factors,
    frames: Frames<'a>,
    stream: Stream,
    memories: Vec<Memory<'static>>,
    errors: Vec<Option<MeasuredError>>,
}

/// `Σ‖x − x̂‖²` and `Σ‖x‖²`.
#[derive(Clone, Copy, Default)]
struct Squares {
    error: f64,
    whole: f64,
}

impl Squares {
    fn add(&mut self, ours: &Tensor<3>, truth: &Tensor<3>) {
        let square = |x: Tensor<3>| f64::from(x.powi_scalar(2).mean().into_scalar::<f32>());
        let numbers = truth.shape().num_elements() as f64;
        self.error += square(ours.clone() - truth.clone()) * numbers;
        self.whole += square(truth.clone()) * numbers;
    }

    fn relative(self) -> f64 {
        if self.whole > 0.0 { self.error / self.whole } else { 0.0 }
    }
}
