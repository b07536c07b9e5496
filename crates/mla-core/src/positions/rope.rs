//! Rotary position embedding in Hugging Face's half-split layout, with every way in which its frequencies are scaled.
//!
//! Dimension `j` of a head is rotated together with `j + d_rotary/2` (burn's `RotaryEncoding` pairs neighbours, which is
//! the layout of the original LLaMA weights, not of Hugging Face's). Where `d_rotary` is less than the head's width, the
//! dimensions behind it are not rotated.

use std::f64::consts::TAU;
use std::ops::Range;

use burn::tensor::{Device, Int, Tensor, TensorData};

/// The angles of a rotary embedding (Su et al. 2021).
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the geometric series of frequencies.
    pub theta: f64,
    /// Dimensions of a head that are rotated, its first ones: an even number.
    pub d_rotary: usize,
    /// What cosines and sines are multiplied by, so that scores keep their spread in long contexts (the attention factor
    /// of YaRN and LongRoPE); 1 elsewhere.
    pub amplitude: f64,
    /// How frequencies are stretched for contexts longer than trained.
    pub scaling: RopeScaling,
}

/// How frequencies are stretched for contexts longer than trained.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// Positions divided by `factor` (Chen et al. 2023).
    Linear {
        /// Ratio of the new context to the trained one.
        factor: f64,
    },
    /// NTK-aware base, grown with the sequence once it passes `original_max` (bloc97 2023).
    ///
    /// The base follows the length the sequence was *allocated* for, so that keys cached early never go stale;
    /// transformers instead leaves them at the angle of the length at which they were cached.
    Dynamic {
        /// Growth of the context the base is made for.
        factor: f64,
        /// Positions the model was trained on.
        original_max: usize,
    },
    /// LLaMA 3.1's: low frequencies divided by `factor`, high ones kept, a smooth step between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_max / low_freq_factor` are low.
        low_freq_factor: f64,
        /// Wavelengths below `original_max / high_freq_factor` are high.
        high_freq_factor: f64,
        /// Positions the model was trained on.
        original_max: usize,
    },
    /// YaRN (Peng et al. 2023, §3.2): pairs that turn less than `beta_slow` times within the trained context are divided by
    /// `factor`, those that turn more than `beta_fast` times are kept, with a ramp over the pairs between.
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Positions the model was trained on.
        original_max: usize,
        /// Turns from which on a pair is kept.
        beta_fast: f64,
        /// Turns up to which a pair is divided.
        beta_slow: f64,
        /// Whether the ramp begins and ends at whole pairs.
        truncate: bool,
    },
    /// LongRoPE (Ding et al. 2024): each pair has a divisor of its own, one for sequences within the trained context and one
    /// for longer ones.
    ///
    /// Which of the two is taken follows the length the sequence was *allocated* for, as with [`RopeScaling::Dynamic`].
    Long {
        /// A divisor a pair, for sequences of up to `original_max` positions.
        short: Vec<f64>,
        /// A divisor a pair, for longer ones.
        long: Vec<f64>,
        /// Positions the model was trained on.
        original_max: usize,
    },
}

impl RopeScaling {
    /// Whether the frequencies depend on how long a sequence is.
    fn follows_length(&self) -> bool {
        matches!(self, RopeScaling::Dynamic { .. } | RopeScaling::Long { .. })
    }
}

impl RopeConfig {
    /// The embedding as it was trained, over `d_rotary` dimensions of a head.
    pub fn plain(theta: f64, d_rotary: usize) -> Self {
        Self { theta, d_rotary, amplitude: 1.0, scaling: RopeScaling::None }
    }

    /// Radians a position for each of the `d_rotary / 2` pairs, for sequences of up to `length` positions.
    pub fn frequencies(&self, length: usize) -> Vec<f64> {
        let d_rotary = self.d_rotary as f64;
        let plain = |theta: f64| -> Vec<f64> {
            (0..self.d_rotary / 2).map(|j| theta.powf(-2.0 * j as f64 / d_rotary)).collect()
        };
        let trained = || plain(self.theta).into_iter();
        match &self.scaling {
            RopeScaling::None => plain(self.theta),
            RopeScaling::Linear { factor } => trained().map(|f| f / factor).collect(),
            &RopeScaling::Dynamic { factor, original_max } => {
                let stretch = factor * length.max(original_max) as f64 / original_max as f64 - (factor - 1.0);
                plain(self.theta * stretch.powf(d_rotary / (d_rotary - 2.0)))
            }
            &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max } => {
                let original_max = original_max as f64;
                let stretch = |f: f64| {
                    let turns = original_max * f / TAU;
                    if turns < low_freq_factor {
                        f / factor
                    } else if turns > high_freq_factor {
                        f
                    } else {
                        let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                };
                trained().map(stretch).collect()
            }
            &RopeScaling::Yarn { factor, original_max, beta_fast, beta_slow, truncate } => {
                // The pair, counted in fractions, that turns so often within the trained context.
                let pair = |turns: f64| {
                    d_rotary * (original_max as f64 / (turns * TAU)).ln() / (2.0 * self.theta.ln())
                };
                let (first, last) = match truncate {
                    true => (pair(beta_fast).floor(), pair(beta_slow).ceil()),
                    false => (pair(beta_fast), pair(beta_slow)),
                };
                let (first, last) = (first.max(0.0), last.min(d_rotary - 1.0));
                let width = if first == last { 0.001 } else { last - first };
                let stretch = |(j, f): (usize, f64)| {
                    let divided = ((j as f64 - first) / width).clamp(0.0, 1.0);
                    divided * f / factor + (1.0 - divided) * f
                };
                trained().enumerate().map(stretch).collect()
            }
            RopeScaling::Long { short, long, original_max } => {
                let divisors = if length > *original_max { long } else { short };
                trained().zip(divisors).map(|(f, divisor)| f / divisor).collect()
            }
        }
    }

    /// Cosines and sines for positions `0..length`.
    pub fn table(&self, length: usize, device: &Device) -> RopeTable {
        self.batch_table(length, &[length], device)
    }

    /// Cosines and sines for positions `0..length` of a batch whose sequences have room for `own` tokens each.
    ///
    /// Where the frequencies follow the length ([`RopeScaling::Dynamic`], [`RopeScaling::Long`]) each sequence has its own,
    /// so that padding changes nothing.
    pub fn batch_table(&self, length: usize, own: &[usize], device: &Device) -> RopeTable {
        let follows = self.scaling.follows_length() && own.iter().any(|&own| own != length);
        let lengths = if follows { own } else { &[length] };
        // Rounded to f32 where transformers rounds, so that far positions agree with the reference.
        let rounded = |own: &usize| self.frequencies(*own).into_iter().map(|f| f as f32).collect();
        let frequencies: Vec<Vec<f32>> = lengths.iter().map(rounded).collect();
        let rows = frequencies.iter().flat_map(|row| (0..length).map(move |p| (row, p)));
        let angles = rows.flat_map(|(row, p)| row.iter().map(move |f| f64::from(f * p as f32)));
        let amplitude = self.amplitude as f32;
        let (cos, sin): (Vec<f32>, Vec<f32>) =
            angles.map(|a| (a.cos() as f32 * amplitude, a.sin() as f32 * amplitude)).unzip();
        let shape = [lengths.len() * length, self.d_rotary / 2];
        RopeTable {
            cos: Tensor::from_data(TensorData::new(cos, shape), device),
            sin: Tensor::from_data(TensorData::new(sin, shape), device),
            length,
        }
    }
}

/// Cosines and sines of every position and pair.
///
/// # Shapes
/// Both `[length, d_rotary / 2]`, or `[batch · length, d_rotary / 2]` where each sequence has its own.
#[derive(Clone, Debug)]
pub struct RopeTable {
    pub(crate) cos: Tensor<2>,
    pub(crate) sin: Tensor<2>,
    length: usize,
}

impl RopeTable {
    /// Number of positions the table covers.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The rows of a sequence of the batch.
    pub(crate) fn rows_of(&self, sequence: usize) -> Range<usize> {
        let own = self.cos.dims()[0] > self.length;
        let start = if own { sequence * self.length } else { 0 };
        start..start + self.length
    }

    /// The rotation of consecutive positions, the same in every sequence of a batch.
    pub fn span(&self, start: usize, count: usize) -> Rotation {
        let rows = |t: &Tensor<2>| t.clone().narrow(0, start, count).unsqueeze::<4>();
        Rotation { cos: rows(&self.cos), sin: rows(&self.sin) }
    }

    /// The rotation of positions that differ between the sequences of a batch.
    ///
    /// # Shapes
    /// - `positions`: row-major `[batch, count]`
    pub fn gather(&self, mut positions: Vec<i64>, batch: usize) -> Rotation {
        let count = positions.len() / batch;
        if self.cos.dims()[0] > self.length {
            for (sequence, positions) in positions.chunks_exact_mut(count).enumerate() {
                positions.iter_mut().for_each(|position| *position += (sequence * self.length) as i64);
            }
        }
        let device = self.cos.device();
        let index = Tensor::<1, Int>::from_data(TensorData::new(positions, [batch * count]), &device);
        let rows =
            |t: &Tensor<2>| t.clone().select(0, index.clone()).reshape([batch as i64, 1, count as i64, -1]);
        Rotation { cos: rows(&self.cos), sin: rows(&self.sin) }
    }
}

/// The rotation of some positions, ready to be applied to heads.
///
/// # Shapes
/// Both `[batch or 1, 1, t, d_rotary / 2]`.
#[derive(Clone, Debug)]
pub struct Rotation {
    cos: Tensor<4>,
    sin: Tensor<4>,
}

impl Rotation {
    /// The rotation whose pair `i` turns as this one's pair `pairs[i]`.
    ///
    /// # Panics
    /// If there is no such pair.
    pub fn of_pairs(&self, pairs: &[usize]) -> Self {
        let device = self.cos.device();
        let index: Vec<i64> = pairs.iter().map(|&pair| pair as i64).collect();
        let index = Tensor::<1, Int>::from_data(TensorData::new(index, [pairs.len()]), &device);
        let some = |t: &Tensor<4>| t.clone().select(3, index.clone());
        Self { cos: some(&self.cos), sin: some(&self.sin) }
    }

    /// Rotates each head's pairs `(j, j + d_rotary/2)`.
    ///
    /// # Shapes
    /// - `x`: `[batch, heads, t, d_head]` → the same
    pub fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let (half, d_head) = (self.cos.dims()[3], x.dims()[3]);
        let (a, b) = (x.clone().narrow(3, 0, half), x.clone().narrow(3, half, half));
        let first = a.clone() * self.cos.clone() - b.clone() * self.sin.clone();
        let second = b * self.cos.clone() + a * self.sin.clone();
        let mut parts = vec![first, second];
        if 2 * half < d_head {
            parts.push(x.narrow(3, 2 * half, d_head - 2 * half));
        }
        Tensor::cat(parts, 3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(d_rotary: usize, scaling: RopeScaling) -> RopeConfig {
        RopeConfig { scaling, ..RopeConfig::plain(10_000.0, d_rotary) }
    }

    #[test]
    fn rotation_keeps_norms_and_depends_on_distance_only() {
        let device = Device::default();
        let table = config(8, RopeScaling::None).table(16, &device);
        let q = Tensor::<4>::from_data([[[[1.0, -2.0, 0.5, 3.0, 0.25, 1.5, -1.0, 2.0]]]], &device);
        let k = Tensor::<4>::from_data([[[[0.5, 1.0, -1.5, 2.0, 1.0, -0.5, 2.5, 1.0]]]], &device);
        let dot = |i: usize, j: usize| -> f32 {
            (table.span(i, 1).apply(q.clone()) * table.span(j, 1).apply(k.clone())).sum().into_scalar()
        };
        assert!((dot(7, 4) - dot(12, 9)).abs() < 1e-5);
        assert!((dot(7, 4) - dot(7, 5)).abs() > 1e-2);
        let norm = |t: Tensor<4>| -> f32 { t.square().sum().into_scalar() };
        assert!((norm(table.span(9, 1).apply(q.clone())) - norm(q)).abs() < 1e-4);
    }

    #[test]
    fn gathered_rows_equal_the_span() {
        let device = Device::default();
        let table = config(4, RopeScaling::None).table(10, &device);
        let x = Tensor::<4>::ones([1, 1, 3, 4], &device);
        let same = table.gather(vec![5, 6, 7], 1).apply(x.clone()) - table.span(5, 3).apply(x);
        assert_eq!(same.abs().max().into_scalar::<f32>(), 0.0);
    }

    #[test]
    fn scalings_meet_the_plain_frequencies_where_they_should() {
        let plain = config(64, RopeScaling::None).frequencies(0);
        let dynamic = config(64, RopeScaling::Dynamic { factor: 2.0, original_max: 128 });
        assert_eq!(dynamic.frequencies(100), plain);
        assert!(dynamic.frequencies(256)[31] < plain[31]);
        let llama3 = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max: 8192,
        };
        let scaled = config(64, llama3).frequencies(0);
        assert_eq!(scaled[0], plain[0]);
        assert!((scaled[31] - plain[31] / 8.0).abs() < 1e-12);
        for truncate in [true, false] {
            let yarn = RopeScaling::Yarn {
                factor: 4.0,
                original_max: 2048,
                beta_fast: 32.0,
                beta_slow: 1.0,
                truncate,
            };
            let scaled = config(64, yarn).frequencies(0);
            assert_eq!((scaled[0], scaled[31]), (plain[0], plain[31] / 4.0));
            assert!(plain.iter().zip(&scaled).any(|(f, g)| *g < f * 0.99 && *g > f / 3.96), "a ramp");
        }
        let long = RopeScaling::Long { short: vec![1.0; 32], long: vec![3.0; 32], original_max: 64 };
        let long = config(64, long);
        assert_eq!(long.frequencies(64), plain);
        assert_eq!(long.frequencies(65)[7], plain[7] / 3.0);
    }

    #[test]
    fn dimensions_behind_the_rotary_ones_stand_still() {
        let device = Device::default();
        let x = Tensor::<4>::from_data([[[[1.0, -2.0, 0.5, 3.0, 0.25, 1.5]]]], &device);
        let whole = config(4, RopeScaling::None).table(8, &device).span(5, 1);
        let partly = whole.apply(x.clone());
        let rotated = whole.apply(x.clone().narrow(3, 0, 4));
        let gap = |a: Tensor<4>, b: Tensor<4>| -> f32 { (a - b).abs().max().into_scalar() };
        assert_eq!(gap(partly.clone().narrow(3, 4, 2), x.narrow(3, 4, 2)), 0.0);
        assert_eq!(gap(partly.narrow(3, 0, 4), rotated), 0.0);
    }

    #[test]
    fn an_amplitude_scales_what_is_rotated() {
        let device = Device::default();
        let x = Tensor::<4>::from_data([[[[1.0, -2.0, 0.5, 3.0]]]], &device);
        let plain = RopeConfig::plain(100.0, 4);
        let loud = RopeConfig { amplitude: 1.5, ..plain.clone() };
        let [plain, loud] = [plain, loud].map(|rope| rope.table(4, &device).span(3, 1).apply(x.clone()));
        assert!((plain * 1.5 - loud).abs().max().into_scalar::<f32>() < 1e-6);
    }
}
