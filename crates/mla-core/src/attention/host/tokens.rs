//! What is cached a token, as it is kept.

use std::ops::Range;

use burn::tensor::{DType, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::cache::{Kept, Packing};
use crate::host::{Operand, Rows};

/// Cached tokens on the CPU, not copied, in the type in which they are kept.
#[derive(Debug)]
pub(crate) enum Cached<'a> {
    F32(Operand),
    F16(Operand),
    Bf16(Operand),
    Packed(&'a Packing, Operand),
}

impl<'a> Cached<'a> {
    /// Keys, values or latents. `None` where they are not the CPU's.
    pub(crate) fn float<const D: usize>(tensor: &Tensor<D>) -> Option<Self> {
        match tensor.dtype() {
            DType::F32 => Operand::rows(tensor).map(Cached::F32),
            DType::F16 => Operand::of(tensor).map(Cached::F16),
            DType::BF16 => Operand::of(tensor).map(Cached::Bf16),
            _ => None,
        }
    }

    /// Latents. `None` where they are not the CPU's.
    pub(crate) fn latents(kept: Kept<'a>) -> Option<Self> {
        match kept {
            Kept::Float(latents) => Self::float(&latents),
            Kept::Packed(packing, words) => Some(Cached::Packed(packing, Operand::words(&words)?)),
        }
    }

    /// As [`Operand::at`].
    pub(crate) fn at(&self, outer: &[usize]) -> Tokens<'_> {
        match self {
            Cached::F32(operand) => Tokens::F32(operand.at(outer)),
            Cached::F16(operand) => Tokens::F16(operand.rows_at::<f16>(outer)),
            Cached::Bf16(operand) => Tokens::Bf16(operand.rows_at::<bf16>(outer)),
            Cached::Packed(packing, operand) => Tokens::Packed(packing, operand.rows_at::<i32>(outer)),
        }
    }
}

/// Rows of a cache, one a token.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tokens<'a> {
    F32(Rows<'a>),
    F16(Rows<'a, f16>),
    Bf16(Rows<'a, bf16>),
    /// Words.
    Packed(&'a Packing, Rows<'a, i32>),
}

impl Tokens<'_> {
    /// Numbers of a token.
    pub(super) fn width(&self) -> usize {
        match self {
            Tokens::F32(rows) => rows.width,
            Tokens::F16(rows) => rows.width,
            Tokens::Bf16(rows) => rows.width,
            Tokens::Packed(packing, _) => packing.width(),
        }
    }

    /// The numbers of one token.
    #[inline(always)]
    fn read(&self, token: usize, out: &mut [f32]) {
        match self {
            Tokens::F32(rows) => out.copy_from_slice(rows.row(token)),
            Tokens::F16(rows) => rows.row(token).convert_to_f32_slice(out),
            Tokens::Bf16(rows) => {
                // The upper half of an f32: a loop of shifts, which becomes vector code.
                for (x, &half) in out.iter_mut().zip(rows.row(token)) {
                    *x = f32::from_bits(u32::from(half.to_bits()) << 16);
                }
            }
            Tokens::Packed(packing, rows) => packing.unpack(rows.row(token), out),
        }
    }
}

/// Whether a tile of these is a matrix where it lies.
pub(super) fn in_place(read: &[Tokens<'_>]) -> bool {
    matches!(read, [] | [Tokens::F32(_)])
}

/// A tile of what is read, one matrix: in place where that is possible, else side by side in `room`.
#[inline(always)]
pub(super) fn gather<'a>(read: &[Tokens<'a>], tokens: Range<usize>, room: &'a mut [f32]) -> Rows<'a> {
    if let [Tokens::F32(one)] = read {
        return one.span(tokens);
    }
    let width: usize = read.iter().map(Tokens::width).sum();
    let room = &mut room[..tokens.len() * width];
    if width > 0 {
        for (token, room) in tokens.clone().zip(room.chunks_exact_mut(width)) {
            let mut column = 0;
            for cached in read {
                let end = column + cached.width();
                cached.read(token, &mut room[column..end]);
                column = end;
            }
        }
    }
    Rows::new(room, tokens.len(), width)
}
