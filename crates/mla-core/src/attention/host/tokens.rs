//! What is cached a token, as it is kept.

use std::ops::Range;

use burn::tensor::{DType, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::cache::{Kept, Packing};
use crate::host::{Operand, Rows, Stored};

/// Cached tokens on the CPU, not copied, in the type in which they are kept.
#[derive(Debug)]
pub(crate) struct Cached<'a> {
    kind: CachedAs<'a>,
    /// The token of the first row.
    first: usize,
}

#[derive(Debug)]
enum CachedAs<'a> {
    F32(Operand),
    F16(Operand),
    Bf16(Operand),
    Packed(&'a Packing, Operand),
}

impl<'a> Cached<'a> {
    /// Keys, values or latents from token `first` on. `None` where they are not the CPU's.
    pub(crate) fn float<const D: usize>(tensor: &Tensor<D>, first: usize) -> Option<Self> {
        let kind = match tensor.dtype() {
            DType::F32 => CachedAs::F32(Operand::rows(tensor)?),
            DType::F16 => CachedAs::F16(Operand::of(tensor)?),
            DType::BF16 => CachedAs::Bf16(Operand::of(tensor)?),
            _ => return None,
        };
        Some(Self { kind, first })
    }

    /// Latents from token `first` on. `None` where they are not the CPU's.
    pub(crate) fn latents(kept: Kept<'a>, first: usize) -> Option<Self> {
        match kept {
            Kept::Float(latents) => Self::float(&latents, first),
            Kept::Packed(packing, words) => {
                Some(Self { kind: CachedAs::Packed(packing, Operand::words(&words)?), first })
            }
        }
    }

    /// As [`Operand::at`].
    pub(crate) fn at(&self, outer: &[usize]) -> Tokens<'_> {
        let rows = match &self.kind {
            CachedAs::F32(operand) => TokenRows::F32(operand.at(outer)),
            CachedAs::F16(operand) => TokenRows::F16(operand.rows_at::<f16>(outer)),
            CachedAs::Bf16(operand) => TokenRows::Bf16(operand.rows_at::<bf16>(outer)),
            CachedAs::Packed(packing, operand) => TokenRows::Packed(packing, operand.rows_at::<i32>(outer)),
        };
        Tokens { rows, first: self.first }
    }
}

/// Rows of a cache, one a token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tokens<'a> {
    rows: TokenRows<'a>,
    /// The token of the first row.
    first: usize,
}

#[derive(Clone, Copy, Debug)]
enum TokenRows<'a> {
    F32(Rows<'a>),
    F16(Rows<'a, f16>),
    Bf16(Rows<'a, bf16>),
    /// Words.
    Packed(&'a Packing, Rows<'a, i32>),
}

impl Tokens<'_> {
    /// Numbers of a token.
    pub(super) fn width(&self) -> usize {
        match self.rows {
            TokenRows::F32(rows) => rows.width,
            TokenRows::F16(rows) => rows.width,
            TokenRows::Bf16(rows) => rows.width,
            TokenRows::Packed(packing, _) => packing.width(),
        }
    }

    /// The numbers of one token.
    #[inline(always)]
    fn read(&self, token: usize, out: &mut [f32]) {
        let row = token - self.first;
        match &self.rows {
            TokenRows::F32(rows) => out.copy_from_slice(rows.row(row)),
            TokenRows::F16(rows) => rows.row(row).convert_to_f32_slice(out),
            TokenRows::Bf16(rows) => bf16::widen(rows.row(row), out),
            TokenRows::Packed(packing, rows) => packing.unpack(rows.row(row), out),
        }
    }
}

/// Whether a tile of these is a matrix where it lies.
pub(super) fn in_place(read: &[Tokens<'_>]) -> bool {
    matches!(read, [] | [Tokens { rows: TokenRows::F32(_), .. }])
}

/// Tokens that lie as a matrix where they are, as far as there are some; else none.
pub(super) fn ahead<'a>(read: &[Tokens<'a>], tokens: Range<usize>) -> Rows<'a> {
    match read {
        [Tokens { rows: TokenRows::F32(one), first }] => {
            let end = (tokens.end - first).min(one.count);
            one.span((tokens.start - first).min(end)..end)
        }
        _ => Rows::new(&[], 0, 0),
    }
}

/// A tile of what is read, one matrix: in place where that is possible, else side by side in `room`.
#[inline(always)]
pub(super) fn gather<'a>(read: &[Tokens<'a>], tokens: Range<usize>, room: &'a mut [f32]) -> Rows<'a> {
    if let [Tokens { rows: TokenRows::F32(one), first }] = read {
        return one.span(tokens.start - first..tokens.end - first);
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
