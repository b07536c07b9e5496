//! Gradients of the latent matrices, a block at a time.
//!
//! A batch goes forwards without a tape; what flows between blocks is kept (Chen et al. 2016, with a block a segment), and
//! the latents that later layers read. Then every block is run again on a tape of its own, from the last to the first layer
//! that has latents: what comes back is the gradient at the block's input, at the latents it read, and at its own
//! matrices. Memory is one block's activations and one boundary a layer, whatever the model's depth.

use std::collections::{BTreeMap, HashMap, HashSet};

use burn::module::{Module, ParamId};
use burn::tensor::Tensor;
use mla_core::attention::Frame;
use mla_core::decoder::frame;
use mla_core::{Attention, Block, Decoder, DecoderConfig, Memory, Padding, PassLatents};

use crate::factors::{Factor, Track};
use crate::head::head_loss;
use crate::objective::{LossParts, Objective, Originals};

/// Who takes part.
#[derive(Clone, Copy, Debug)]
pub struct Models<'a> {
    /// The model that trains, on a device without a tape.
    pub student: &'a Decoder,
    /// Who is imitated, on the same device.
    pub teacher: Option<&'a Decoder>,
    /// What is reconstructed.
    pub originals: Option<&'a Originals>,
}

/// What a batch has to say.
#[derive(Clone, Debug)]
pub struct Gradients {
    /// The loss and its parts.
    pub loss: LossParts,
    /// One a factor, in their order: `[d_in, d_out]`, off the tape.
    pub of: Vec<Tensor<2>>,
}

/// A loss that is not finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overflow {
    /// The first layer whose output is not finite; `None` where only the loss itself is not.
    pub layer: Option<usize>,
}

/// The loss of a batch and its gradient with respect to every factor.
///
/// # Shapes
/// - `ids`: equally long windows of at least two tokens
///
/// # Errors
/// When the loss is not finite.
///
/// # Panics
/// If the objective needs a teacher or originals that are not there, or the windows differ in length.
pub fn gradients(
    models: Models<'_>,
    factors: &[Factor],
    ids: &[Vec<u32>],
    objective: Objective,
) -> Result<Gradients, Overflow> {
    let student = models.student;
    let (config, device) = (student.config(), student.device());
    let padding = Padding::none(ids.len());
    let length = ids.first().map_or(0, Vec::len);
    assert!(length >= 2, "a window predicts nothing below two tokens");
    let first = (0..config.n_layers()).find(|&layer| config.latent(layer).is_some());
    let passed = forward(student, ids, &padding, first.unwrap_or(config.n_layers()));

    let weights = objective.weights();
    let teacher = objective.needs_teacher().then(|| {
        let teacher = models.teacher.expect("the objective needs a teacher");
        (teacher, teacher.hidden(ids, &padding))
    });
    let head = head_loss(student, student.final_norm.forward(passed.out.clone()), ids, teacher, weights);
    let kl = head.kl;
    let mut total = weights.lm * head.lm + weights.kl * kl.unwrap_or(0.0);
    if !total.is_finite() {
        return Err(Overflow { layer: passed.first_overflow() });
    }

    let originals = objective.needs_originals().then(|| {
        let originals = models.originals.expect("the objective needs the original W_k and W_v");
        (originals, weights.reconstruction / originals.count().max(1) as f64)
    });
    let mut tape = Tape {
        config,
        frame: frame(config, &padding, length, &device.clone().autodiff()),
        ids: factors.iter().map(|factor| factor.id).collect(),
        passed: &passed,
        at_latents: BTreeMap::new(),
        found: HashMap::new(),
        originals,
        reconstruction: 0.0,
    };
    let mut above = through_norm(student, &passed.out, head.gradient);
    for layer in (first.unwrap_or(config.n_layers())..config.n_layers()).rev() {
        above = tape.block(layer, &student.blocks[layer], above);
    }
    let reconstruction =
        originals.map(|(originals, _)| tape.reconstruction / originals.count().max(1) as f64);
    total += weights.reconstruction * reconstruction.unwrap_or(0.0);
    if !total.is_finite() {
        return Err(Overflow { layer: passed.first_overflow() });
    }
    let zeros = |factor: &Factor| Tensor::zeros(factor.shape, &device);
    let of = factors.iter().map(|factor| tape.found.remove(&factor.id).unwrap_or_else(|| zeros(factor)));
    Ok(Gradients { of: of.collect(), loss: LossParts { total, lm: head.lm, kl, reconstruction } })
}

/// What a forward pass leaves behind.
struct Passed {
    /// The stream before each block from the first that trains on.
    before: BTreeMap<usize, Tensor<3>>,
    /// The latents that later layers read.
    latents: BTreeMap<usize, Tensor<3>>,
    /// The stream after the last block.
    out: Tensor<3>,
}

impl Passed {
    /// The first layer after which the stream is not finite.
    fn first_overflow(&self) -> Option<usize> {
        let after = self.before.keys().zip(self.before.values().skip(1).chain([&self.out]));
        let mut bad = after.filter(|(_, stream)| !is_finite(stream));
        bad.next().map(|(&layer, _)| layer)
    }
}

/// Whether every number is one.
pub(crate) fn is_finite<const D: usize>(x: &Tensor<D>) -> bool {
    // NaN and infinity stay what they are in a sum of sizes; a sum that is too large for itself counts as one.
    x.clone().abs().sum().into_scalar::<f64>().is_finite()
}

fn forward(student: &Decoder, ids: &[Vec<u32>], padding: &Padding, first: usize) -> Passed {
    let (config, device) = (student.config(), student.device());
    let frame = frame(config, padding, ids[0].len(), &device);
    let mut memory = Memory::of_pass(config);
    let mut x = student.embed(ids, padding, 0);
    let (mut before, mut latents) = (BTreeMap::new(), BTreeMap::new());
    for (layer, block) in student.blocks.iter().enumerate() {
        if layer >= first {
            before.insert(layer, x.clone());
        }
        x = block.forward(x, &frame, layer, &mut memory);
        if let Memory::Pass(pass) = &memory
            && let Some(latent) = pass.get(layer)
        {
            latents.insert(layer, latent);
        }
    }
    Passed { before, latents, out: x }
}

/// The gradient before the final norm.
fn through_norm(student: &Decoder, out: &Tensor<3>, above: Tensor<3>) -> Tensor<3> {
    let x = Tensor::from_inner(out.clone()).require_grad();
    let norm = student.final_norm.clone().map(&mut Track { ids: &HashSet::new() });
    let gradients = (norm.forward(x.clone()) * Tensor::from_inner(above)).sum().backward();
    x.grad(&gradients).expect("the stream has a gradient")
}

/// The backward pass between two blocks.
struct Tape<'a> {
    config: &'a DecoderConfig,
    frame: Frame,
    ids: HashSet<ParamId>,
    passed: &'a Passed,
    /// Gradients at latents, from the layers that read them.
    at_latents: BTreeMap<usize, Tensor<3>>,
    /// Gradients of the factors, summed over the layers that share them.
    found: HashMap<ParamId, Tensor<2>>,
    /// What is reconstructed, and the weight of one layer.
    originals: Option<(&'a Originals, f64)>,
    /// `Σ ½ (MSE_K + MSE_V)` so far.
    reconstruction: f64,
}

impl Tape<'_> {
    /// Runs a block on a tape; the gradient at its input, given the one at its output.
    fn block(&mut self, layer: usize, block: &Block, above: Tensor<3>) -> Tensor<3> {
        let block = block.clone().map(&mut Track { ids: &self.ids });
        let x = Tensor::from_inner(self.passed.before[&layer].clone()).require_grad();
        let leaf = |j: usize| (j, Tensor::from_inner(self.passed.latents[&j].clone()).require_grad());
        let earlier: BTreeMap<usize, Tensor<3>> = self.config.reads(layer).into_iter().map(leaf).collect();
        let mut memory = Memory::Pass(PassLatents::holding(self.config, earlier.clone()));

        let h = block.attention_input(x.clone());
        let (attended, mismatch) = match &block.attention {
            Attention::Latent(attention) => {
                let known = attention.project(h.clone(), &self.frame, layer, &mut memory);
                let mismatch = self.mismatch(layer, &h, [&known.keys, &known.values]);
                (attention.attend(h, known, &self.frame, layer), mismatch)
            }
            Attention::Grouped(attention) => {
                let (k, v) = attention.project(h.clone());
                (attention.attend(h, k, v, &self.frame, layer, &mut memory), None)
            }
        };
        let out = block.after_attention(x.clone(), attended);
        // One number whose gradient is all that comes back: from above, from later layers that read the latents, and from
        // what this layer is to reconstruct.
        let mut pulled = (out * Tensor::from_inner(above)).sum();
        if let (Some(at_latent), Memory::Pass(pass)) = (self.at_latents.remove(&layer), &memory) {
            let latent = pass.get(layer).expect("a later layer reads it");
            pulled = pulled + (latent * Tensor::from_inner(at_latent)).sum();
        }
        if let (Some(mismatch), Some((_, weight))) = (mismatch, self.originals) {
            self.reconstruction += mismatch.clone().into_scalar::<f64>();
            pulled = pulled + mismatch * weight;
        }
        let mut gradients = pulled.backward();

        for (j, leaf) in earlier {
            // A layer whose widths leave nothing to read has cross terms of no column.
            if let Some(gradient) = leaf.grad(&gradients) {
                add(&mut self.at_latents, j, gradient);
            }
        }
        if let Attention::Latent(attention) = &block.attention {
            for (_, linear) in attention.factors() {
                if let Some(gradient) = linear.weight.val().grad_remove(&mut gradients) {
                    let sum = match self.found.remove(&linear.weight.id) {
                        Some(sum) => sum + gradient,
                        None => gradient,
                    };
                    self.found.insert(linear.weight.id, sum);
                }
            }
        }
        x.grad(&gradients).expect("the stream has a gradient")
    }

    /// `½ (MSE_K + MSE_V)` of a layer, on the tape.
    fn mismatch(&self, layer: usize, h: &Tensor<3>, rebuilt: [&Tensor<3>; 2]) -> Option<Tensor<1>> {
        let (originals, _) = self.originals?;
        let [k, v] = originals.project(layer, h.clone())?;
        let mse = |a: &Tensor<3>, b: Tensor<3>| {
            let off = a.clone() - b;
            (off.clone() * off).mean()
        };
        Some((mse(rebuilt[0], k) + mse(rebuilt[1], v)) * 0.5)
    }
}

fn add(sums: &mut BTreeMap<usize, Tensor<3>>, key: usize, term: Tensor<3>) {
    let sum = match sums.remove(&key) {
        Some(sum) => sum + term,
        None => term,
    };
    sums.insert(key, sum);
}
