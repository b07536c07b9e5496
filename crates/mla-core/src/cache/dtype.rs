//! What a cached number is kept as.

use burn::tensor::{DType, Device};

use super::packing::Packing;

/// What the numbers of a cache are kept as.
///
/// The integers are of latents: each group of a token's numbers has a scale and an offset of its own ([`Packing`]). Keys and
/// values of a layer that has no latents are then kept in bf16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheDtype {
    /// As they are computed.
    #[default]
    F32,
    /// Half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// 8 bits.
    Int8,
    /// 4 bits.
    Int4,
    /// 3 bits.
    Int3,
}

impl CacheDtype {
    /// All of them, the widest first.
    pub const ALL: [Self; 6] = [Self::F32, Self::F16, Self::Bf16, Self::Int8, Self::Int4, Self::Int3];

    /// As it is spelled: `int4`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::Int3 => "int3",
        }
    }

    /// The type of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Bits of a quantised number; `None` for a floating-point type.
    pub fn bits(self) -> Option<u32> {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => None,
            Self::Int8 => Some(8),
            Self::Int4 => Some(4),
            Self::Int3 => Some(3),
        }
    }

    /// The type of keys and values, and of latents that are not quantised.
    pub fn float(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 | Self::Int8 | Self::Int4 | Self::Int3 => DType::BF16,
        }
    }

    /// Whether a device computes with what a cache keeps in this type; `dense` says whether it has layers without latents. A
    /// device that does not gives garbage, without an error.
    pub fn runs_on(self, device: &Device, dense: bool) -> bool {
        let of_integers = self.bits().is_some() && !dense;
        of_integers || device.supports_dtype(self.float())
    }

    /// Bytes of one token's keys and values, `numbers` in all.
    pub fn dense_bytes(self, numbers: usize) -> usize {
        numbers * self.float().size()
    }

    /// Bytes of one token's latents, scales and offsets included.
    ///
    /// # Shapes
    /// - `parts`: the widths of what is quantised apart: those of keys and values, or one of both
    pub fn latent_bytes(self, parts: &[usize]) -> usize {
        match self.bits() {
            None => self.dense_bytes(parts.iter().sum()),
            Some(bits) => Packing::new(bits, parts).words() * size_of::<i32>(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_written() {
        for dtype in CacheDtype::ALL {
            assert_eq!(CacheDtype::from_name(dtype.name()), Some(dtype));
        }
        assert_eq!(CacheDtype::from_name("int2"), None);
    }

    #[test]
    fn scales_and_offsets_are_counted() {
        // 96 numbers: three groups of 32, a word each, and 96 · bits / 32 words.
        assert_eq!(CacheDtype::Int4.latent_bytes(&[96]), 4 * (3 + 12));
        assert_eq!(CacheDtype::Int3.latent_bytes(&[96]), 4 * (3 + 9));
        assert_eq!(CacheDtype::Int8.latent_bytes(&[32, 64]), 4 * (3 + 24));
        assert_eq!(CacheDtype::F16.latent_bytes(&[32, 64]), 192);
        assert_eq!(CacheDtype::Int4.dense_bytes(8), 16);
    }
}
