//! The float types weights are stored in, and their conversion.

use burn::tensor::DType;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// A plain float type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// 32 bits.
    F32,
    /// 16 bits, f32's range, 8 bits of precision.
    Bf16,
    /// 16 bits, range to 65504, 11 bits of precision.
    F16,
}

impl Dtype {
    /// Bytes an element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::Bf16 | Dtype::F16 => 2,
        }
    }

    /// The name used in `config.json` and on the command line: `f32`, `bf16`, `f16`.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
            Dtype::F16 => "f16",
        }
    }

    /// PyTorch's name, as `torch_dtype` has it.
    pub fn torch_name(self) -> &'static str {
        match self {
            Dtype::F32 => "float32",
            Dtype::Bf16 => "bfloat16",
            Dtype::F16 => "float16",
        }
    }

    /// As tensors name it.
    pub(crate) fn of_tensors(self) -> DType {
        match self {
            Dtype::F32 => DType::F32,
            Dtype::Bf16 => DType::BF16,
            Dtype::F16 => DType::F16,
        }
    }

    pub(crate) fn from_safetensors(dtype: safetensors::Dtype) -> Option<Self> {
        match dtype {
            safetensors::Dtype::F32 => Some(Dtype::F32),
            safetensors::Dtype::BF16 => Some(Dtype::Bf16),
            safetensors::Dtype::F16 => Some(Dtype::F16),
            _ => None,
        }
    }

    pub(crate) fn to_safetensors(self) -> safetensors::Dtype {
        match self {
            Dtype::F32 => safetensors::Dtype::F32,
            Dtype::Bf16 => safetensors::Dtype::BF16,
            Dtype::F16 => safetensors::Dtype::F16,
        }
    }

    /// Appends little-endian elements to `out` as f32; exact.
    pub(crate) fn decode(self, bytes: &[u8], out: &mut Vec<f32>) {
        match self {
            Dtype::F32 => {
                out.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])))
            }
            Dtype::Bf16 => out.extend(
                bytes
                    .chunks_exact(2)
                    .map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16)),
            ),
            Dtype::F16 => {
                let halves: Vec<f16> =
                    bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect();
                let start = out.len();
                out.resize(start + halves.len(), 0.0);
                halves.convert_to_f32_slice(&mut out[start..]);
            }
        }
    }

    /// The first element that is NaN or infinite, found by its exponent without decoding the rest.
    pub(crate) fn first_not_finite(self, bytes: &[u8]) -> Option<(usize, f32)> {
        let saturated = |element: &[u8]| match self {
            Dtype::F32 => element[3] & 0x7f == 0x7f && element[2] & 0x80 == 0x80,
            Dtype::Bf16 => element[1] & 0x7f == 0x7f && element[0] & 0x80 == 0x80,
            Dtype::F16 => element[1] & 0x7c == 0x7c,
        };
        let index = bytes.chunks_exact(self.bytes()).position(saturated)?;
        let mut value = Vec::with_capacity(1);
        self.decode(&bytes[index * self.bytes()..(index + 1) * self.bytes()], &mut value);
        Some((index, value[0]))
    }

    /// Little-endian elements, rounded to nearest.
    ///
    /// # Errors
    /// The first finite value that overflows this type.
    pub(crate) fn encode(self, values: &[f32]) -> Result<Vec<u8>, f32> {
        let mut out = Vec::with_capacity(values.len() * self.bytes());
        for &value in values {
            let overflowed = match self {
                Dtype::F32 => {
                    out.extend(value.to_le_bytes());
                    false
                }
                Dtype::Bf16 => {
                    let rounded = bf16::from_f32(value);
                    out.extend(rounded.to_le_bytes());
                    rounded.is_infinite()
                }
                Dtype::F16 => {
                    let rounded = f16::from_f32(value);
                    out.extend(rounded.to_le_bytes());
                    rounded.is_infinite()
                }
            };
            if overflowed && value.is_finite() {
                return Err(value);
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_type_can_hold_survives_a_round_trip() {
        let values = [0.0, -1.5, 3.140625, 2048.0, f32::from_bits(0x3380_0000)];
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
            let mut back = Vec::new();
            dtype.decode(&dtype.encode(&values).expect("fits"), &mut back);
            assert_eq!(back, values, "{dtype:?}");
        }
    }

    #[test]
    fn the_first_element_that_is_no_number_is_found() {
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
            let fine = dtype.encode(&[0.0, -1.0, 65_280.0, 1e-7]).expect("fits");
            assert_eq!(dtype.first_not_finite(&fine), None, "{dtype:?}");
            for bad in [f32::INFINITY, f32::NEG_INFINITY] {
                let bytes = dtype.encode(&[1.0, 2.0, bad, f32::NAN]).expect("infinity is no overflow");
                assert_eq!(dtype.first_not_finite(&bytes), Some((2, bad)), "{dtype:?}");
            }
            let nan = dtype.encode(&[f32::NAN]).expect("NaN is no overflow");
            assert!(dtype.first_not_finite(&nan).is_some_and(|(index, value)| index == 0 && value.is_nan()));
        }
    }

    #[test]
    fn overflow_is_reported_not_rounded_to_infinity() {
        assert_eq!(Dtype::F16.encode(&[1.0, 70_000.0]), Err(70_000.0));
        assert!(Dtype::Bf16.encode(&[70_000.0, 3e38]).is_ok());
    }
}
