//! The loss at the head and its gradient, a few positions at a time: logits are never held whole.

use burn::tensor::{Tensor, TensorData};
use mla_core::Decoder;
use rayon::prelude::*;

use crate::objective::Weights;

/// Positions whose logits are held at a time.
const CHUNK_POSITIONS: usize = 128;

/// What the head has to say about a batch.
pub(crate) struct HeadLoss {
    /// The mean cross-entropy of the next token.
    pub(crate) lm: f64,
    /// The mean KL to the teacher at the temperature, where there is one.
    pub(crate) kl: Option<f64>,
    /// The gradient of the weighted sum with respect to `hidden`: `[windows, length, d_model]`.
    pub(crate) gradient: Tensor<3>,
}

/// The loss of a batch and its gradient.
///
/// With `q = softmax(z / T)` of the model and `p` of the teacher, `∂KL/∂z = (q − p) / T`, and `∂CE/∂z = softmax(z) − onehot`.
/// The gradient with respect to `hidden` is that, times how much a logit moves with what the head's matrix gives, times that
/// matrix. Sums are f64.
///
/// # Shapes
/// - `hidden`: `[windows, length, d_model]`, what the head multiplies; of the teacher likewise
pub(crate) fn head_loss(
    model: &Decoder,
    hidden: Tensor<3>,
    ids: &[Vec<u32>],
    teacher: Option<(&Decoder, Tensor<3>)>,
    weights: Weights,
) -> HeadLoss {
    let [windows, length, d_model] = hidden.dims();
    let scored = windows * (length - 1);
    // The last position of a window predicts nothing of it.
    let targets: Vec<usize> = ids.iter().flat_map(|window| &window[1..]).map(|&id| id as usize).collect();
    let rows = |hidden: Tensor<3>| {
        let width = hidden.dims()[2];
        hidden.narrow(1, 0, length - 1).reshape([scored, width])
    };
    let (hidden, teacher) = (rows(hidden), teacher.map(|(decoder, hidden)| (decoder, rows(hidden))));
    let (device, scales) = (hidden.device(), model.config().scales);
    let (mut lm, mut kl) = (0.0, 0.0);
    let mut gradients = Vec::with_capacity(scored.div_ceil(CHUNK_POSITIONS));
    for start in (0..scored).step_by(CHUNK_POSITIONS) {
        let count = CHUNK_POSITIONS.min(scored - start);
        let logits = |decoder: &Decoder, hidden: &Tensor<2>| {
            let logits = decoder.logits(hidden.clone().narrow(0, start, count).unsqueeze::<3>());
            logits.try_into_vec_as::<f32>().expect("a float tensor reads back as f32")
        };
        let mut ours = logits(model, &hidden);
        let vocab = ours.len() / count;
        let theirs = teacher.as_ref().map(|(decoder, hidden)| logits(decoder, hidden));
        let targets = &targets[start..start + count];
        let losses: Vec<[f64; 2]> = ours
            .par_chunks_mut(vocab)
            .enumerate()
            .map(|(i, row)| {
                let theirs = theirs.as_ref().map(|theirs| &theirs[i * vocab..(i + 1) * vocab]);
                let logits = (!scales.leave_logits()).then(|| row.to_vec());
                let losses = into_gradient(row, theirs, targets[i], weights, scored as f64);
                for (gradient, logit) in row.iter_mut().zip(logits.into_iter().flatten()) {
                    *gradient *= scales.logit_slope(logit);
                }
                losses
            })
            .collect();
        for [row_lm, row_kl] in losses {
            lm += row_lm;
            kl += row_kl;
        }
        let ours = Tensor::<2>::from_data(TensorData::new(ours, [count, vocab]), &device);
        gradients.push(match &model.head {
            Some(head) => ours.matmul(head.weight.val().transpose()),
            None => ours.matmul(model.tokens.weight.val()),
        });
    }
    let gradient = Tensor::cat(gradients, 0).reshape([windows, length - 1, d_model]);
    let last = Tensor::zeros([windows, 1, d_model], &device);
    HeadLoss {
        lm: lm / scored as f64,
        kl: teacher.is_some().then_some(kl / scored as f64),
        gradient: Tensor::cat(vec![gradient, last], 1),
    }
}

/// Turns a row of logits into the loss's gradient with respect to them; its cross-entropy and its KL.
///
/// Each exponential is taken once. With `q_i = a_i / A` and `p_i = b_i / B`, where `a_i = exp((z_i − max z) / T)` and B, b
/// likewise of the teacher's logits y, `KL = Σ p_i (log b_i − log a_i) − log B + log A`, which takes no logarithm an element.
fn into_gradient(
    row: &mut [f32],
    teacher: Option<&[f32]>,
    target: usize,
    weights: Weights,
    scored: f64,
) -> [f64; 2] {
    let Weights { lm, kl, temperature, .. } = weights;
    let plain = Softmax::of(row, 1.0);
    let loss = plain.sum.ln() - f64::from(row[target] - plain.top);
    let Some(teacher) = teacher else {
        let share = (lm / scored / plain.sum) as f32;
        row.iter_mut().zip(&plain.terms).for_each(|(z, term)| *z = share * term);
        row[target] -= (lm / scored) as f32;
        return [loss, 0.0];
    };
    let theirs = Softmax::of(teacher, temperature);
    let softened = if temperature == 1.0 { None } else { Some(Softmax::of(row, temperature)) };
    let ours = softened.as_ref().unwrap_or(&plain);
    let mut gap = 0.0;
    for ((z, y), p) in row.iter().zip(teacher).zip(&theirs.terms) {
        gap += f64::from(*p) * f64::from((y - theirs.top) - (z - ours.top));
    }
    let divergence = gap / temperature / theirs.sum - theirs.sum.ln() + ours.sum.ln();
    let [of_lm, of_ours, of_theirs] = [
        lm / scored / plain.sum,
        kl / temperature / scored / ours.sum,
        kl / temperature / scored / theirs.sum,
    ]
    .map(|share| share as f32);
    for (((z, plain), q), p) in row.iter_mut().zip(&plain.terms).zip(&ours.terms).zip(&theirs.terms) {
        *z = of_lm * plain + (of_ours * q - of_theirs * p);
    }
    row[target] -= (lm / scored) as f32;
    [loss, divergence]
}

/// The numerators of a softmax and their sum, in f64.
struct Softmax {
    top: f32,
    terms: Vec<f32>,
    sum: f64,
}

impl Softmax {
    fn of(row: &[f32], temperature: f64) -> Self {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let scale = (1.0 / temperature) as f32;
        let terms: Vec<f32> = row.iter().map(|&z| ((z - top) * scale).exp()).collect();
        let sum = terms.iter().map(|&term| f64::from(term)).sum();
        Self { top, terms, sum }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rows_gradient_is_that_of_finite_differences() {
        let row = [0.3f32, -1.2, 2.0, 0.7, -0.1];
        let teacher = [1.0f32, 0.2, -0.5, 0.9, 0.0];
        let weights = Weights { lm: 0.1, kl: 3.6, temperature: 2.0, reconstruction: 0.0 };
        let loss = |row: &[f32; 5]| {
            let [lm, kl] = into_gradient(&mut row.clone(), Some(&teacher), 3, weights, 1.0);
            weights.lm * lm + weights.kl * kl
        };
        let mut gradient = row;
        into_gradient(&mut gradient, Some(&teacher), 3, weights, 1.0);
        for i in 0..row.len() {
            let at = |step: f32| {
                let mut moved = row;
                moved[i] += step;
                loss(&moved)
            };
            let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
            assert!((slope - f64::from(gradient[i])).abs() < 1e-4, "{i}: {slope} {}", gradient[i]);
        }
        assert!(gradient.iter().sum::<f32>().abs() < 1e-6, "logits may be shifted");
    }
}
