//! What follows the last block, over a vocabulary that is never held whole: labels, the loss's gradient, divergences.
//!
//! Logits of `n` tokens are `n · vocab_size` numbers and the head is `vocab_size · d_model`: both are taken in slices.

use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};
use mla_core::decoder::{HeadKind, Norm, Scales};
use mla_core::{Slot, WeightSource};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use rayon::prelude::*;

use crate::error::Error;
use crate::sweep::host;

/// Rows of the head that are held at a time.
const VOCABULARY_SLICE: usize = 8192;
/// Tokens whose logits over one slice are held at a time.
const TOKEN_SLICE: usize = 1024;

/// The final norm and the rows of the head, read when they are needed.
pub(crate) struct Head<'a, S> {
    source: &'a S,
    slot: Slot,
    /// The norm before the head.
    pub(crate) norm: Norm,
    device: Device,
}

/// The labels that the loss of a Fisher pass is taken against.
#[derive(Clone, Debug, PartialEq)]
pub enum Labels {
    /// Drawn from the model's own prediction, which makes it the true Fisher information: the Hessian of the KL to the
    /// donor (Martens 2020, §5).
    Sampled {
        /// Fixes every draw.
        seed: u64,
    },
    /// One a scored position, window by window: all positions of a window but the last.
    Given(Vec<u32>),
}

impl<'a, S: WeightSource> Head<'a, S> {
    pub(crate) fn load(source: &'a S, device: &Device) -> Result<Self, Error> {
        let slot = match source.config().head {
            HeadKind::Tied => Slot::TokenEmbedding,
            HeadKind::Own => Slot::Head,
        };
        Ok(Self { source, slot, norm: Norm::load_final(source, device)?, device: device.clone() })
    }

    fn slices(&self) -> impl Iterator<Item = Range<usize>> + use<'a, S> {
        let vocabulary = self.source.config().vocab_size;
        (0..vocabulary)
            .step_by(VOCABULARY_SLICE)
            .map(move |start| start..(start + VOCABULARY_SLICE).min(vocabulary))
    }

    /// `[rows, d_model]`.
    fn rows(&self, slice: &Range<usize>) -> Result<Tensor<2>, Error> {
        let rows: Vec<u32> = slice.clone().map(|row| row as u32).collect();
        Ok(self.source.rows(self.slot, &rows, &self.device)?)
    }

    /// The gradient of the summed cross-entropy with respect to `hidden`: `(softmax(E h) − onehot(label)) E`.
    ///
    /// The last position of a window predicts nothing of it, and has no gradient.
    ///
    /// # Shapes
    /// - `hidden`: `[windows, length, d_model]`, what the head multiplies → the same
    pub(crate) fn gradient(
        &self,
        hidden: Tensor<3>,
        labels: &Labels,
        draws: &mut Draws,
    ) -> Result<Tensor<3>, Error> {
        let [windows, length, d_model] = hidden.dims();
        let tokens = windows * length;
        let scored = |token: usize| !(token + 1).is_multiple_of(length);
        let hidden = hidden.reshape([tokens, d_model]);
        // One pass over the head for the mass of each slice, one for the probabilities themselves.
        let mut masses: Vec<Vec<f64>> = vec![Vec::new(); tokens];
        self.logits(&hidden, |_, first, rows| {
            let found: Vec<f64> = rows.par_iter().map(|row| log_sum_exp(row)).collect();
            found.into_iter().enumerate().for_each(|(i, mass)| masses[first + i].push(mass));
            Ok(None)
        })?;
        let log_z: Vec<f64> = masses.iter().map(|masses| log_sum_exp_f64(masses)).collect();
        if let Some(token) = log_z.iter().position(|z| !z.is_finite()) {
            return Err(Error::LogitsNotFinite { token });
        }
        let targets: Vec<Option<Target>> = (0..tokens)
            .map(|token| scored(token).then(|| draws.target(labels, &masses[token], log_z[token])))
            .collect();
        let gradient = self.logits(&hidden, |slice, first, mut rows| {
            let targets = &targets[first..first + rows.len()];
            rows.par_iter_mut().zip(targets).enumerate().for_each(|(i, (row, target))| match target {
                None => row.fill(0.0),
                Some(target) => target.subtract(row, slice, log_z[first + i]),
            });
            Ok(Some(rows))
        })?;
        let gradient = gradient.unwrap_or_else(|| Tensor::zeros([tokens, d_model], &self.device));
        Ok(gradient.reshape([windows, length, d_model]))
    }

    /// Shows `visit` the logits of each slice of the vocabulary and of the tokens; what it returns in their place, a gradient
    /// at the logits, is multiplied with the slice's rows of the head and summed: `[tokens, d_model]`.
    fn logits(
        &self,
        hidden: &Tensor<2>,
        mut visit: impl FnMut(&Range<usize>, usize, Vec<Vec<f32>>) -> Result<Option<Vec<Vec<f32>>>, Error>,
    ) -> Result<Option<Tensor<2>>, Error> {
        let [tokens, _] = hidden.dims();
        let scales = self.source.config().scales;
        let mut sums: Vec<Option<Tensor<2>>> = vec![None; tokens.div_ceil(TOKEN_SLICE)];
        for slice in self.slices() {
            let rows = self.rows(&slice)?;
            let columns = rows.clone().transpose();
            for (place, first) in (0..tokens).step_by(TOKEN_SLICE).enumerate() {
                let count = TOKEN_SLICE.min(tokens - first);
                let logits = scales.logits(hidden.clone().narrow(0, first, count).matmul(columns.clone()));
                let logits = to_rows(logits, slice.len());
                let slopes = (!scales.leave_logits()).then(|| slopes(&scales, &logits));
                if let Some(weights) = visit(&slice, first, logits)? {
                    let mut weights = weights.concat();
                    if let Some(slopes) = slopes {
                        weights.iter_mut().zip(slopes).for_each(|(weight, slope)| *weight *= slope);
                    }
                    let weights = TensorData::new(weights, [count, slice.len()]);
                    let part = Tensor::<2>::from_data(weights, &self.device).matmul(rows.clone());
                    sums[place] = Some(match sums[place].take() {
                        Some(sum) => sum + part,
                        None => part,
                    });
                }
            }
        }
        let sums: Option<Vec<Tensor<2>>> = sums.into_iter().collect();
        Ok(sums.filter(|sums| !sums.is_empty()).map(|sums| Tensor::cat(sums, 0)))
    }

    /// The mean `KL(donor ‖ model)` a token in nats of each window, for each of several models on the same tokens.
    ///
    /// # Shapes
    /// - `donor`, each of `models`: `[windows, length, d_model]`, what the head multiplies → `[models][windows]`
    pub(crate) fn divergences(
        &self,
        donor: Tensor<3>,
        models: Vec<Tensor<3>>,
    ) -> Result<Vec<Vec<f64>>, Error> {
        let [windows, length, d_model] = donor.dims();
        let tokens = windows * length;
        let flat = |x: Tensor<3>| x.reshape([tokens, d_model]);
        let (donor, models) = (flat(donor), models.into_iter().map(flat).collect::<Vec<_>>());
        let scales = self.source.config().scales;
        let mut sums = vec![vec![PairSum::default(); tokens]; models.len()];
        for slice in self.slices() {
            let columns = self.rows(&slice)?.transpose();
            for first in (0..tokens).step_by(TOKEN_SLICE) {
                let count = TOKEN_SLICE.min(tokens - first);
                let logits = |x: &Tensor<2>| {
                    let products = x.clone().narrow(0, first, count).matmul(columns.clone());
                    to_rows(scales.logits(products), slice.len())
                };
                let theirs = logits(&donor);
                for (model, sums) in models.iter().zip(&mut sums) {
                    let ours = logits(model);
                    let sums = &mut sums[first..first + count];
                    sums.par_iter_mut().zip(&theirs).zip(&ours).for_each(|((sum, p), q)| sum.add(p, q));
                }
            }
        }
        let mean = |window: &[PairSum]| window.iter().map(PairSum::divergence).sum::<f64>() / length as f64;
        Ok(sums.iter().map(|sums| sums.chunks_exact(length).map(mean).collect()).collect())
    }
}

/// How much each logit moves with what the head's matrix gives.
fn slopes(scales: &Scales, logits: &[Vec<f32>]) -> Vec<f32> {
    logits.iter().flatten().map(|&logit| scales.logit_slope(logit)).collect()
}

fn to_rows(logits: Tensor<2>, width: usize) -> Vec<Vec<f32>> {
    host(logits).chunks_exact(width).map(<[f32]>::to_vec).collect()
}

fn log_sum_exp(row: &[f32]) -> f64 {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    f64::from(top) + row.iter().map(|&l| f64::from((l - top).exp())).sum::<f64>().ln()
}

fn log_sum_exp_f64(values: &[f64]) -> f64 {
    let top = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    top + values.iter().map(|&l| (l - top).exp()).sum::<f64>().ln()
}

/// The random state of a pass over all windows.
pub(crate) struct Draws {
    rng: ChaCha8Rng,
    given: usize,
}

/// The label of one position, as far as it is known before the probabilities are.
enum Target {
    /// A token.
    Known(u32),
    /// The token of the slice that starts at `slice` at which the cumulated probability passes `mass`.
    InSlice { slice: usize, mass: f64 },
}

impl Draws {
    pub(crate) fn new(labels: &Labels) -> Self {
        let seed = match labels {
            Labels::Sampled { seed } => *seed,
            Labels::Given(_) => 0,
        };
        Self { rng: ChaCha8Rng::seed_from_u64(seed), given: 0 }
    }

    /// `masses`: the log of the sum of each slice's exponentials.
    fn target(&mut self, labels: &Labels, masses: &[f64], log_z: f64) -> Target {
        match labels {
            Labels::Given(labels) => {
                self.given += 1;
                Target::Known(labels[self.given - 1])
            }
            Labels::Sampled { .. } => {
                let mut left = self.rng.random::<f64>();
                for (slice, mass) in masses.iter().map(|mass| (mass - log_z).exp()).enumerate() {
                    if left < mass || slice + 1 == masses.len() {
                        return Target::InSlice { slice: slice * VOCABULARY_SLICE, mass: left.min(mass) };
                    }
                    left -= mass;
                }
                unreachable!("the last slice takes what is left")
            }
        }
    }
}

impl Target {
    /// Turns a row of logits over one slice into `softmax − onehot`.
    fn subtract(&self, row: &mut [f32], slice: &Range<usize>, log_z: f64) {
        row.iter_mut().for_each(|l| *l = (f64::from(*l) - log_z).exp() as f32);
        match *self {
            Target::Known(label) if slice.contains(&(label as usize)) => {
                row[label as usize - slice.start] -= 1.0
            }
            Target::InSlice { slice: start, mass } if start == slice.start => {
                let mut left = mass;
                let crossed = row.iter().position(|&p| {
                    left -= f64::from(p);
                    left < 0.0
                });
                // Rounding may leave a crumb behind the last token of the slice.
                row[crossed.unwrap_or(row.len() - 1)] -= 1.0;
            }
            Target::Known(_) | Target::InSlice { .. } => {}
        }
    }
}

/// `KL(p ‖ q)` of two rows of logits that come in slices.
#[derive(Clone, Debug)]
struct PairSum {
    top_p: f64,
    z_p: f64,
    top_q: f64,
    z_q: f64,
    /// `Σ exp(p − top_p) (p − q)`.
    weighted: f64,
}

impl Default for PairSum {
    fn default() -> Self {
        Self { top_p: f64::NEG_INFINITY, z_p: 0.0, top_q: f64::NEG_INFINITY, z_q: 0.0, weighted: 0.0 }
    }
}

impl PairSum {
    fn add(&mut self, p: &[f32], q: &[f32]) {
        let top = |row: &[f32]| f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let (top_p, top_q) = (self.top_p.max(top(p)), self.top_q.max(top(q)));
        let (fade_p, fade_q) = ((self.top_p - top_p).exp(), (self.top_q - top_q).exp());
        self.z_p *= fade_p;
        self.weighted *= fade_p;
        self.z_q *= fade_q;
        for (&p, &q) in p.iter().zip(q) {
            let e = f64::from((p - top_p as f32).exp());
            self.z_p += e;
            self.weighted += e * f64::from(p - q);
            self.z_q += f64::from((q - top_q as f32).exp());
        }
        (self.top_p, self.top_q) = (top_p, top_q);
    }

    fn divergence(&self) -> f64 {
        let log_z = |top: f64, z: f64| top + z.ln();
        self.weighted / self.z_p - log_z(self.top_p, self.z_p) + log_z(self.top_q, self.z_q)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_divergence_in_slices_is_the_whole() {
        let p: Vec<f32> = (0..50).map(|i| ((i * 37) % 17) as f32 / 3.0).collect();
        let q: Vec<f32> = (0..50).map(|i| ((i * 11) % 23) as f32 / 4.0).collect();
        let (z_p, z_q) = (log_sum_exp(&p), log_sum_exp(&q));
        let whole: f64 = p
            .iter()
            .zip(&q)
            .map(|(&p, &q)| {
                let log_p = f64::from(p) - z_p;
                log_p.exp() * (log_p - f64::from(q) + z_q)
            })
            .sum();
        let mut sum = PairSum::default();
        for slice in [0..7, 7..31, 31..50] {
            sum.add(&p[slice.clone()], &q[slice]);
        }
        assert!((sum.divergence() - whole).abs() < 1e-6, "{} {whole}", sum.divergence());
    }

    #[test]
    fn labels_are_drawn_as_often_as_the_model_predicts_them() {
        let probabilities = [0.1f32, 0.2, 0.3, 0.4];
        let logits = probabilities.map(f32::ln);
        let masses: Vec<f64> = logits.chunks(2).map(log_sum_exp).collect();
        let labels = Labels::Sampled { seed: 7 };
        let mut draws = Draws::new(&labels);
        let mut counts = [0usize; 4];
        for _ in 0..20_000 {
            // Slices of two: the second starts where the real one would.
            let target = draws.target(&labels, &masses, 0.0);
            for (place, start) in [0, VOCABULARY_SLICE].into_iter().enumerate() {
                let mut row = logits[2 * place..2 * place + 2].to_vec();
                target.subtract(&mut row, &(start..start + 2), 0.0);
                counts.iter_mut().skip(2 * place).zip(&row).for_each(|(n, &x)| *n += usize::from(x < 0.0));
            }
        }
        assert_eq!(counts.iter().sum::<usize>(), 20_000);
        for (count, expected) in counts.into_iter().zip(probabilities.map(f64::from)) {
            // Four standard deviations of a binomial.
            let deviation = (expected * (1.0 - expected) / 20_000f64).sqrt();
            assert!((count as f64 / 20_000.0 - expected).abs() < 4.0 * deviation, "{counts:?}");
        }
    }
}
