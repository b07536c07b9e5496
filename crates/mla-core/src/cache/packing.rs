//! Quantised rows: how the numbers of one token become 32-bit words and come back.
//!
//! A row is cut into groups of about 32 numbers, each with a scale and an offset of its own (asymmetric quantisation a token
//! and group, as KIVI's of values, Liu et al. 2024): `x ≈ offset + scale · code`, scale and offset in half precision.
//!
//! ```text
//! words of a row: | scale, offset of group 0 | … of the last | codes, `bits` each, from the lowest bit on |
//! ```
//!
//! Groups do not reach from one part of a row into the next: keys and values are quantised apart.

use std::ops::Range;

use burn::tensor::{Int, Tensor, TensorData};
use half::f16;

/// Numbers that share a scale, about.
const GROUP: usize = 32;
/// Bits of a word.
const WORD: usize = 32;

/// The layout of a quantised row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packing {
    bits: usize,
    width: usize,
    groups: Vec<Range<usize>>,
}

impl Packing {
    /// Rows of `parts` that lie beside each other, `bits` a number.
    pub fn new(bits: u32, parts: &[usize]) -> Self {
        let mut groups = Vec::new();
        let mut start = 0;
        for &part in parts.iter().filter(|&&part| part > 0) {
            let end = start + part;
            let count = ((part + GROUP / 2) / GROUP).max(1);
            let size = part.div_ceil(count);
            groups.extend((start..end).step_by(size).map(|at| at..(at + size).min(end)));
            start = end;
        }
        Self { bits: bits as usize, width: start, groups }
    }

    /// Numbers of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Words of a row.
    pub fn words(&self) -> usize {
        self.groups.len() + (self.width * self.bits).div_ceil(WORD)
    }

    /// Quantises a row.
    ///
    /// # Shapes
    /// - `row`: `[width]`, `words`: `[words]`
    pub fn pack(&self, row: &[f32], words: &mut [i32]) {
        let levels = (1u32 << self.bits) - 1;
        let (heads, codes) = words.split_at_mut(self.groups.len());
        codes.fill(0);
        for (head, group) in heads.iter_mut().zip(&self.groups) {
            let numbers = &row[group.clone()];
            let (low, high) = numbers.iter().fold((f32::MAX, f32::MIN), |(l, h), &x| (l.min(x), h.max(x)));
            let offset = half(low);
            // What is not finite must not come back as if it were.
            let scale = match numbers.iter().all(|x| x.is_finite()) {
                true => half((high - offset.to_f32()) / levels as f32),
                false => f16::NAN,
            };
            *head = ((u32::from(offset.to_bits()) << 16) | u32::from(scale.to_bits())).cast_signed();
            let (offset, scale) = (offset.to_f32(), scale.to_f32());
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            for (at, &x) in group.clone().zip(numbers) {
                // The conversion saturates: below the offset is code 0.
                let code = (((x - offset) * inverse).round() as u32).min(levels);
                let (word, shift) = (at * self.bits / WORD, at * self.bits % WORD);
                codes[word] |= (code << shift).cast_signed();
                if shift + self.bits > WORD {
                    codes[word + 1] |= (code >> (WORD - shift)).cast_signed();
                }
            }
        }
    }

    /// Brings a row back.
    ///
    /// # Shapes
    /// - `words`: `[words]`, `row`: `[width]`
    #[inline(always)]
    pub fn unpack(&self, words: &[i32], row: &mut [f32]) {
        let (heads, codes) = words.split_at(self.groups.len());
        match self.bits {
            3 => codes_of::<3, 8>(codes, row),
            4 => codes_of::<4, 8>(codes, row),
            _ => codes_of::<8, 4>(codes, row),
        }
        for (&head, group) in heads.iter().zip(&self.groups) {
            let [offset, scale] = head_of(head);
            row[group.clone()].iter_mut().for_each(|x| *x = offset + scale * *x);
        }
    }

    /// Quantises the rows of a tensor.
    ///
    /// # Shapes
    /// - `rows`: `[a, b, width]` → `[a, b, words]`
    pub(super) fn pack_tensor(&self, rows: Tensor<3>) -> Tensor<3, Int> {
        let ([a, b, width], words, device) = (rows.dims(), self.words(), rows.device());
        let rows = crate::source::host_f32(rows);
        let mut packed = vec![0; a * b * words];
        for (row, words) in rows.chunks_exact(width).zip(packed.chunks_exact_mut(words)) {
            self.pack(row, words);
        }
        Tensor::from_data(TensorData::new(packed, [a, b, words]), (&device, burn::tensor::DType::I32))
    }

    /// Brings rows back on their device: what [`unpack`](Self::unpack) does, in tensors.
    ///
    /// # Shapes
    /// - `words`: `[a, b, words]` → `[a, b, width]`
    pub(super) fn unpack_tensor(&self, words: Tensor<3, Int>) -> Tensor<3> {
        let ([a, b, _], groups, device) = (words.dims(), self.groups.len(), words.device());
        let heads = words.clone().narrow(2, 0, groups);
        let codes = self.codes_of_tensor(words.narrow(2, groups, self.words() - groups));
        let of: Vec<i32> = self
            .groups
            .iter()
            .enumerate()
            .flat_map(|(at, group)| group.clone().map(move |_| at as i32))
            .collect();
        let of: Tensor<1, Int> = Tensor::from_data(TensorData::new(of, [self.width]), &device);
        let spread = |half: Tensor<3, Int>| float_of(half).select(2, of.clone());
        let scale = spread(heads.clone().bitwise_and_scalar(0xffff));
        let offset = spread(heads.bitwise_right_shift_scalar(16).bitwise_and_scalar(0xffff));
        (offset + scale * codes.float()).reshape([a, b, self.width])
    }

    /// # Shapes
    /// - `words`: `[a, b, words of codes]` → `[a, b, width]`
    fn codes_of_tensor(&self, words: Tensor<3, Int>) -> Tensor<3, Int> {
        let ([a, b, count], device) = (words.dims(), words.device());
        // The least that begins and ends with a word and with a code.
        let period = if self.bits == 3 { 3 } else { 1 };
        let missing = count.next_multiple_of(period) - count;
        let none = Tensor::zeros([a, b, missing], (&device, words.dtype()));
        let words = if missing > 0 { Tensor::cat(vec![words, none], 2) } else { words };
        let periods = (count + missing) / period;
        let words = words.reshape([a * b, periods, period]);
        let code = |at: usize| {
            let (word, shift) = (at * self.bits / WORD, at * self.bits % WORD);
            let part = |word: usize, shift: usize, bits: usize| {
                let word = words.clone().narrow(2, word, 1);
                word.bitwise_right_shift_scalar(shift as i32).bitwise_and_scalar((1 << bits) - 1)
            };
            match (shift + self.bits).checked_sub(WORD).filter(|&beyond| beyond > 0) {
                None => part(word, shift, self.bits),
                Some(beyond) => {
                    let within = self.bits - beyond;
                    part(word, shift, within)
                        + part(word + 1, 0, beyond).bitwise_left_shift_scalar(within as i32)
                }
            }
        };
        let codes = (0..period * WORD / self.bits).map(code).collect();
        let codes: Tensor<3, Int> = Tensor::cat(codes, 2);
        codes.reshape([a, b, periods * period * WORD / self.bits]).narrow(2, 0, self.width)
    }
}

/// The nearest half-precision number that is one.
fn half(x: f32) -> f16 {
    f16::from_f32(x.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()))
}

/// Offset and scale.
#[inline(always)]
fn head_of(head: i32) -> [f32; 2] {
    let head = head.cast_unsigned();
    [f16::from_bits((head >> 16) as u16).to_f32(), f16::from_bits(head as u16).to_f32()]
}

/// `N` codes at a time, which lie within 32 bits.
#[inline(always)]
fn codes_of<const BITS: usize, const N: usize>(words: &[i32], row: &mut [f32]) {
    let mask = (1i32 << BITS) - 1;
    let codes = |at: usize| {
        let (word, shift) = (at * N * BITS / WORD, at * N * BITS % WORD);
        let window = match shift + N * BITS > WORD {
            false => words[word].cast_unsigned() >> shift,
            true => {
                (words[word].cast_unsigned() >> shift) | (words[word + 1].cast_unsigned() << (WORD - shift))
            }
        };
        // Signed, since that is what processors turn into floating-point numbers.
        std::array::from_fn::<f32, N, _>(|lane| ((window >> (lane * BITS)).cast_signed() & mask) as f32)
    };
    let (chunks, rest) = row.as_chunks_mut::<N>();
    let whole = chunks.len();
    for (at, chunk) in chunks.iter_mut().enumerate() {
        *chunk = codes(at);
    }
    if !rest.is_empty() {
        // The last window may lie beyond the last word.
        let last = |code: usize| {
            let (word, shift) = (code * BITS / WORD, code * BITS % WORD);
            let low = words[word].cast_unsigned() >> shift;
            let beyond = (shift + BITS).saturating_sub(WORD);
            let high = if beyond > 0 { words[word + 1].cast_unsigned() << (BITS - beyond) } else { 0 };
            ((low | high).cast_signed() & mask) as f32
        };
        rest.iter_mut().enumerate().for_each(|(at, x)| *x = last(whole * N + at));
    }
}

/// The numbers of half-precision bits, for a backend that has no such type.
///
/// # Shapes
/// - `[a, b, c]` → the same
fn float_of(bits: Tensor<3, Int>) -> Tensor<3> {
    let (shape, device) = (bits.dims(), bits.device());
    let exponent = bits.clone().bitwise_right_shift_scalar(10).bitwise_and_scalar(31);
    // 2^(e − 25) of a mantissa with its leading bit; what is below the normal numbers has the exponent 1, and no such bit.
    let mut powers: Vec<f32> = (0..32).map(|e| f32::from_bits((127 + e.max(1) - 25) << 23)).collect();
    // The largest exponent is that of numbers that are none.
    powers[31] = f32::NAN;
    let powers = Tensor::<1>::from_data(TensorData::new(powers, [32]), &device);
    let power = powers.select(0, exponent.clone().reshape([-1])).reshape(shape);
    let leading = exponent.greater_elem(0).int() * 1024;
    let mantissa = (bits.clone().bitwise_and_scalar(1023) + leading).float();
    let sign = (bits.bitwise_right_shift_scalar(15).bitwise_and_scalar(1) * -2 + 1).float();
    mantissa * power * sign
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use proptest::prelude::*;

    fn rows(count: usize, width: usize, seed: u64) -> Vec<f32> {
        let number = |i: usize| {
            let x =
                (i as u64 + 1).wrapping_mul(seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15)) >> 40;
            (x as f32 / 8_388_608.0 - 1.0) * if i.is_multiple_of(7) { 40.0 } else { 1.0 }
        };
        (0..count * width).map(number).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_number_comes_back_within_half_a_step(
            bits in prop::sample::select(vec![3u32, 4, 8]), k in 1usize..100, v in 0usize..100, seed in 0u64..1000,
        ) {
            let packing = Packing::new(bits, &[k, v]);
            let row = rows(1, k + v, seed);
            let mut words = vec![-1; packing.words()];
            packing.pack(&row, &mut words);
            let mut back = vec![0.0; k + v];
            packing.unpack(&words, &mut back);
            for group in &packing.groups {
                prop_assert!(group.end <= k || group.start >= k, "{group:?} of {k} and {v}");
                let numbers = &row[group.clone()];
                let range = numbers.iter().fold((f32::MAX, f32::MIN), |(l, h), &x| (l.min(x), h.max(x)));
                let step = (range.1 - range.0) / ((1 << bits) - 1) as f32;
                // Half a step, and what half precision takes from scale and offset.
                let bound = step * 0.5 + 2e-3 * range.0.abs().max(range.1.abs());
                for (x, y) in numbers.iter().zip(&back[group.clone()]) {
                    prop_assert!((x - y).abs() <= bound, "{x} came back as {y}: {bound}");
                }
            }
        }

        #[test]
        fn tensors_come_back_as_rows_do(
            bits in prop::sample::select(vec![3u32, 4, 8]), k in 1usize..70, v in 0usize..70, seed in 0u64..1000,
        ) {
            let packing = Packing::new(bits, &[k, v]);
            let numbers = rows(6, k + v, seed);
            let device = Device::default();
            let tensor = Tensor::<3>::from_data(TensorData::new(numbers.clone(), [2, 3, k + v]), &device);
            let back = crate::source::host_f32(packing.unpack_tensor(packing.pack_tensor(tensor)));
            for (row, back) in numbers.chunks_exact(k + v).zip(back.chunks_exact(k + v)) {
                let mut words = vec![0; packing.words()];
                packing.pack(row, &mut words);
                let mut right = vec![0.0; k + v];
                packing.unpack(&words, &mut right);
                prop_assert_eq!(&right[..], back);
            }
        }
    }

    #[test]
    fn groups_are_as_equal_as_can_be() {
        let sizes = |part| Packing::new(4, &[part]).groups.iter().map(Range::len).collect::<Vec<_>>();
        assert_eq!(sizes(12), [12]);
        assert_eq!(sizes(47), [47]);
        assert_eq!(sizes(48), [24, 24]);
        assert_eq!(sizes(97), [33, 33, 31]);
        assert_eq!(sizes(192), [32; 6]);
    }

    #[test]
    fn what_is_all_the_same_or_too_large_comes_back_as_a_number() {
        let packing = Packing::new(4, &[4]);
        let mut words = vec![0; packing.words()];
        let mut back = [0.0; 4];
        packing.pack(&[2.5; 4], &mut words);
        packing.unpack(&words, &mut back);
        assert_eq!(back, [2.5; 4]);
        for broken in [f32::NAN, f32::INFINITY] {
            let row = [1.0, broken, 0.0, 2.0];
            packing.pack(&row, &mut words);
            packing.unpack(&words, &mut back);
            assert!(back.iter().all(|x| x.is_nan()), "{back:?}");
            let tensor = Tensor::<3>::from_data(TensorData::new(row.to_vec(), [1, 1, 4]), &Device::default());
            let back = crate::source::host_f32(packing.unpack_tensor(packing.pack_tensor(tensor)));
            assert!(back.iter().all(|x| x.is_nan()), "{back:?}");
        }
        packing.pack(&[1e30, -1e30, 0.0, 1.0], &mut words);
        packing.unpack(&words, &mut back);
        assert!(back.iter().all(|x| x.is_finite()) && back[0] > 0.0 && back[1] < 0.0, "{back:?}");
    }
}
