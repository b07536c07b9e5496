//! A layer's keys in DeepSeek's form: one rotated key that all heads share, and keys that are not rotated.
//!
//! Pair j of kv head g is a complex number `z_gj`, which RoPE multiplies by `exp(i m θ_j)` at position m. Any complex matrix
//! that mixes the heads of one pair commutes with that (TransMLA, Meng et al. 2025, mixes them by one real rotation):
//!
//! 1. `Z_j = E[z_j z_jᴴ]`, and the metric `M_j = S²` from the Fisher gradients in the same form; `S Z_j S = U Λ Uᴴ`. The
//!    components `A_j z_j` with `A_j = Uᴴ S` are uncorrelated, and an error in any of them costs the same;
//! 2. component c of pair j loses about `Λ_cj · x² / (1 + x²)`, `x = θ_j τ'`, if it is no longer rotated, in the mean over the
//!    distances τ' of `REACH`: what turns slowly hardly turns within the distances that matter. The components that lose most are
//!    the shared key, one pair each;
//! 3. the others are scored as they are and stand for `exp(iθΔ)` at every distance Δ ≥ 0 by its mean over distances of mean τ,
//!    `1 / (1 − iθτ)`, in the mean over the τ of `NEAR`. It goes into the keys. Its phase matters: without it the loss is two to three times
//!    as large.
//!
//! Where only one series of frequencies is to be had, a pair of the shared key may turn a little faster or slower than its
//! component did: then the same two formulas hold for the difference of the frequencies.

use faer::c64;
use mla_core::positions::RopeConfig;

use crate::error::Error;
use crate::linalg::{Complex, Mat64, pair_moments};

/// Distances within which a rotation is worth most (docs/ablations.md).
pub const REACH: [f64; 2] = [10.0, 100.0];
/// Mean distances over which the rotation of what is not rotated any more is averaged.
pub const NEAR: [f64; 2] = [1.0, 10.0];
/// Share of the mean diagonal added to a metric, so that its root can be inverted.
const RIDGE: f64 = 1e-4;
/// Of the largest variance of the shared key's pairs: what is smaller counts as this.
const LEAST: f64 = 1e-8;

/// How a model's keys are laid out in heads and pairs.
#[derive(Clone, Debug)]
pub struct Turning {
    /// Width of a head.
    pub d_head: usize,
    /// Dimensions of a head that turn, its first ones.
    pub d_rotary: usize,
    /// Radians a position of each pair.
    pub frequencies: Vec<f64>,
    /// What scores of rotated dimensions are multiplied by (the square of YaRN's and LongRoPE's attention factor).
    pub loudness: f64,
    /// Distances within which a rotation is worth most: what is lost is a mean over them.
    pub reach: Vec<f64>,
    /// Mean distances over which the rotation of what is not rotated any more is averaged.
    pub near: Vec<f64>,
}

impl Turning {
    /// That of a rotary embedding, for sequences of up to `length` positions.
    pub fn new(rope: &RopeConfig, d_head: usize, length: usize) -> Self {
        Self {
            d_head,
            d_rotary: rope.d_rotary,
            frequencies: rope.frequencies(length),
            loudness: rope.amplitude * rope.amplitude,
            reach: REACH.to_vec(),
            near: NEAR.to_vec(),
        }
    }

    /// What is lost of a component that varies by `variance` if it turns by another frequency than its own, which is `off` away.
    fn lost(&self, variance: f64, off: f64) -> f64 {
        let mean: f64 = self.reach.iter().map(|reach| (off * reach).powi(2)).map(|x| x / (1.0 + x)).sum();
        variance * mean / self.reach.len() as f64
    }

    /// The mean of `exp(i · off · Δ)` over distances of mean `near`.
    fn mean_turn(&self, off: f64) -> c64 {
        let sum: c64 = self.near.iter().map(|near| c64::new(1.0, 0.0) / c64::new(1.0, -off * near)).sum();
        sum / self.near.len() as f64
    }
}

/// The components of each pair: `A_j`, its inverse, and what each of them varies.
#[derive(Clone, Debug)]
pub struct Components {
    pairs: Vec<Pair>,
}

#[derive(Clone, Debug)]
struct Pair {
    /// `A_j`, a row a component.
    to: Complex,
    /// `A_j⁻¹`, a column a component.
    from: Complex,
    /// `Λ_j`, descending.
    spectrum: Vec<f64>,
}

/// A component of the shared key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chosen {
    /// The donor's pair that it is a component of.
    pub pair: usize,
    /// Which of that pair's components.
    pub component: usize,
    /// Radians a position by which it turns now.
    pub frequency: f64,
}

/// What becomes of a layer's keys K.
#[derive(Clone, Debug)]
pub struct SharedKey {
    /// To the shared key, before it is rotated: `[d_rope, d_kv]`.
    pub down: Mat64,
    /// What each kv head reads of the shared key: `[d_kv, d_rope]`.
    pub up: Mat64,
    /// To the keys that are not rotated: `[d_kv, d_kv]`.
    pub rest: Mat64,
    /// The loss of all rotations that are given up, or changed.
    pub lost: f64,
    /// The loss of errors in the shared key whose numbers vary as much as its own do.
    pub noise: f64,
}

impl Components {
    /// Step 1.
    ///
    /// # Shapes
    /// - `moment`: `E[K Kᵀ]`, biases included, `metric`: `E[g gᵀ]` of the keys before the rotation, both `[d_kv, d_kv]`
    ///
    /// # Errors
    /// When an eigendecomposition does not converge.
    pub fn new(moment: &Mat64, metric: &Mat64, turning: &Turning) -> Result<Self, Error> {
        let pairs = |matrix| pair_moments(matrix, turning.d_head, turning.d_rotary);
        let pair = |(z, m): (Complex, Complex)| {
            let [root, inverse] = roots(m)?;
            let (spectrum, u) = root.dot(&z).dot(&root).eigh()?;
            let spectrum = spectrum.into_iter().map(|lambda| lambda.max(0.0)).collect();
            Ok(Pair { to: u.adjoint().dot(&root), from: inverse.dot(&u), spectrum })
        };
        let pairs = pairs(moment).into_iter().zip(pairs(metric)).map(pair);
        Ok(Self { pairs: pairs.collect::<Result<_, Error>>()? })
    }

    /// What the components of a pair vary, largest first.
    pub fn spectrum(&self, pair: usize) -> &[f64] {
        &self.pairs[pair].spectrum
    }

    /// Components of all pairs.
    pub fn count(&self) -> usize {
        self.pairs.iter().map(|pair| pair.spectrum.len()).sum()
    }

    /// Each component at its own frequency with what is lost if it is no longer rotated, those that lose most first.
    pub fn worth(&self, turning: &Turning) -> Vec<(f64, Chosen)> {
        let mut all: Vec<(f64, Chosen)> = self
            .each()
            .map(|(pair, component, variance)| {
                let frequency = turning.frequencies[pair];
                (turning.lost(variance, frequency), Chosen { pair, component, frequency })
            })
            .collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        all
    }

    /// Step 2, with each component at its own frequency: the `count` that lose most, in the order of their pairs.
    pub fn costliest(&self, count: usize, turning: &Turning) -> Vec<Chosen> {
        let mut chosen: Vec<Chosen> =
            self.worth(turning).into_iter().take(count).map(|(_, chosen)| chosen).collect();
        chosen.sort_by_key(|chosen| (chosen.pair, chosen.component));
        chosen
    }

    /// Step 2, with given frequencies: the component that gains most by each, in their order. Each frequency has one, each
    /// component at most one.
    pub fn assigned(&self, frequencies: &[f64], turning: &Turning) -> Vec<Chosen> {
        let own = |pair: usize| turning.frequencies[pair];
        let mut all: Vec<(f64, usize, Chosen)> = frequencies
            .iter()
            .enumerate()
            .flat_map(|(slot, &frequency)| {
                self.each().map(move |(pair, component, variance)| {
                    let gained =
                        turning.lost(variance, own(pair)) - turning.lost(variance, own(pair) - frequency);
                    (gained, slot, Chosen { pair, component, frequency })
                })
            })
            .collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut slots: Vec<Option<Chosen>> = vec![None; frequencies.len()];
        for (_, slot, one) in all {
            let same = |other: &Chosen| (other.pair, other.component) == (one.pair, one.component);
            if slots[slot].is_none() && !slots.iter().flatten().any(same) {
                slots[slot] = Some(one);
            }
        }
        slots.into_iter().flatten().collect()
    }

    /// The loss of all rotations that a choice gives up or changes.
    pub fn lost(&self, chosen: &[Chosen], turning: &Turning) -> f64 {
        let of = |(pair, component, variance): (usize, usize, f64)| {
            let kept = chosen.iter().find(|chosen| (chosen.pair, chosen.component) == (pair, component));
            turning.lost(variance, turning.frequencies[pair] - kept.map_or(0.0, |kept| kept.frequency))
        };
        self.each().map(of).sum()
    }

    /// Step 3. The shared key's pairs are scaled so that each varies as much as an error in it costs, which is how they are
    /// best rounded.
    pub fn split(&self, chosen: &[Chosen], turning: &Turning, d_kv: usize) -> SharedKey {
        let (d_head, half) = (turning.d_head, turning.d_rotary / 2);
        let d_rope = 2 * chosen.len();
        let variance = |chosen: &Chosen| self.pairs[chosen.pair].spectrum[chosen.component];
        let largest = chosen.iter().map(variance).fold(f64::MIN_POSITIVE, f64::max);
        let mut down = Mat64::zeros(d_rope, d_kv);
        let mut up = Mat64::zeros(d_kv, d_rope);
        let mut rest = Mat64::zeros(d_kv, d_kv);
        let heads = d_kv / d_head;
        let of_head = |head: usize, pair: usize| [head * d_head + pair, head * d_head + pair + half];
        for (place, one) in chosen.iter().enumerate() {
            let Pair { to, from, .. } = &self.pairs[one.pair];
            let scale = variance(one).max(LEAST * largest).powf(-0.25);
            let gain = turning.mean_turn(turning.frequencies[one.pair] - one.frequency).conj() / scale;
            let own = [place, place + chosen.len()];
            for head in 0..heads {
                let there = of_head(head, one.pair);
                add_complex(&mut down, own, there, to.at(one.component, head) * scale);
                add_complex(&mut up, there, own, from.at(head, one.component) * gain);
            }
        }
        for (j, Pair { to, from, spectrum }) in self.pairs.iter().enumerate() {
            let gain = turning.mean_turn(turning.frequencies[j]).conj() * turning.loudness;
            let left = (0..spectrum.len())
                .filter(|&c| !chosen.iter().any(|chosen| (chosen.pair, chosen.component) == (j, c)));
            for component in left {
                for (g, h) in (0..heads).flat_map(|g| (0..heads).map(move |h| (g, h))) {
                    let through = from.at(g, component) * to.at(component, h) * gain;
                    add_complex(&mut rest, of_head(g, j), of_head(h, j), through);
                }
            }
        }
        for head in 0..heads {
            for place in (turning.d_rotary..d_head).map(|j| head * d_head + j) {
                rest.data[place * d_kv + place] = 1.0;
            }
        }
        // Scaled so, a pair varies by √Λ, and an error of a number costs half as much.
        let spread: f64 = chosen.iter().map(|one| variance(one).sqrt()).sum();
        let noise = spread * spread / d_rope.max(1) as f64;
        SharedKey { down, up, rest, lost: self.lost(chosen, turning), noise }
    }

    /// Pair, component and variance of each component.
    fn each(&self) -> impl Iterator<Item = (usize, usize, f64)> + '_ {
        let pairs = self.pairs.iter().enumerate();
        pairs.flat_map(|(j, pair)| {
            pair.spectrum.iter().enumerate().map(move |(c, &variance)| (j, c, variance))
        })
    }
}

/// `M^{1/2}` and its inverse; of nothing, the identity.
fn roots(mut m: Complex) -> Result<[Complex; 2], Error> {
    let n = m.size;
    let trace: f64 = (0..n).map(|at| m.at(at, at).re).sum();
    let ridge = if trace > 0.0 { RIDGE * trace / n as f64 } else { 1.0 };
    (0..n).for_each(|at| m.data[at * n + at] += ridge);
    let (values, vectors) = m.eigh()?;
    Ok([0.5, -0.5].map(|power| {
        let mut scaled = vectors.clone();
        for (at, x) in scaled.data.iter_mut().enumerate() {
            *x *= values[at % n].max(f64::MIN_POSITIVE).powf(power);
        }
        scaled.dot(&vectors.adjoint())
    }))
}

/// Adds a multiplication by a complex number: from the pair of dimensions `cols` to the pair `rows`.
fn add_complex(matrix: &mut Mat64, rows: [usize; 2], cols: [usize; 2], by: c64) {
    let width = matrix.cols;
    for (row, col, entry) in [(0, 0, by.re), (0, 1, -by.im), (1, 0, by.im), (1, 1, by.re)] {
        matrix.data[rows[row] * width + cols[col]] += entry;
    }
}
