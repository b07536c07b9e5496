//! Numbers as they are stored, in 32 bits or 16, and widened as they are read.

use bytemuck::Pod;
use half::{bf16, f16};
use pulp::Simd;

/// A type that weights are stored in. Its numbers are finite, and every one of them is an f32.
pub(crate) trait Stored: Pod + Send + Sync {
    /// The number.
    fn widened(self) -> f32;

    /// As many of them as a vector holds.
    ///
    /// # Panics
    /// If there are fewer.
    #[inline(always)]
    fn vector<S: Simd>(simd: S, from: &[Self]) -> S::f32s {
        let mut vector = simd.splat_f32s(0.0);
        let lanes: &mut [f32] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut vector));
        // A loop of as many rounds as there are lanes: the compiler makes vector code of it.
        for (lane, x) in lanes.iter_mut().zip(&from[..S::F32_LANES]) {
            *lane = x.widened();
        }
        vector
    }

    /// Widens a row.
    #[inline(always)]
    fn widen(from: &[Self], out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(from) {
            *out = x.widened();
        }
    }
}

impl Stored for f32 {
    #[inline(always)]
    fn widened(self) -> f32 {
        self
    }

    #[inline(always)]
    fn vector<S: Simd>(_: S, from: &[Self]) -> S::f32s {
        S::as_simd_f32s(from).0[0]
    }
}

impl Stored for bf16 {
    /// The upper half of an f32.
    #[inline(always)]
    fn widened(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Stored for f16 {
    /// Exponent and fraction moved to where f32 has them, and scaled by the difference of the two biases, 2¹¹²: subnormal numbers become
    /// what they are, and there is no branch.
    #[inline(always)]
    fn widened(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let size = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((112 + 127) << 23);
        f32::from_bits(size.to_bits() | (bits & 0x8000) << 16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finite_number_is_widened_exactly() {
        for bits in 0..=u16::MAX {
            let (brain, half) = (bf16::from_bits(bits), f16::from_bits(bits));
            if brain.is_finite() {
                assert_eq!(brain.widened().to_bits(), brain.to_f32().to_bits());
            }
            if half.is_finite() {
                assert_eq!(half.widened().to_bits(), half.to_f32().to_bits());
            }
        }
    }
}
