//! Tensors of the CPU backend as slices.

use std::ops::Range;

use burn::tensor::{DType, Element, Int, Tensor};
use burn_flex::{Flex, FlexTensor};
use faer::MatRef;

/// A matrix whose rows are slices, `stride` numbers apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows<'a, T = f32> {
    data: &'a [T],
    /// Number of rows.
    pub(crate) count: usize,
    /// Numbers of a row.
    pub(crate) width: usize,
    stride: usize,
}

impl<'a, T> Rows<'a, T> {
    fn at(data: &'a [T], start: usize, [count, width]: [usize; 2], stride: isize) -> Self {
        // The stride of an axis of one means nothing.
        let stride = if count > 1 { stride as usize } else { width };
        let numbers = if count * width == 0 { 0 } else { (count - 1) * stride + width };
        Self { data: &data[start..start + numbers], count, width, stride }
    }

    /// One row.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &'a [T] {
        &self.data[row * self.stride..row * self.stride + self.width]
    }

    /// Some rows.
    #[inline(always)]
    pub(crate) fn span(&self, rows: Range<usize>) -> Self {
        assert!(rows.end <= self.count, "rows {rows:?} of {}", self.count);
        let data = if rows.is_empty() { &[] } else { &self.data[rows.start * self.stride..] };
        Self { data, count: rows.len(), ..*self }
    }

    /// Some columns.
    #[inline(always)]
    pub(crate) fn columns(&self, columns: Range<usize>) -> Self {
        assert!(columns.end <= self.width, "columns {columns:?} of {}", self.width);
        let data = if self.count == 0 { &[] } else { &self.data[columns.start..] };
        Self { data, width: columns.len(), ..*self }
    }
}

impl<'a> Rows<'a> {
    /// Rows that touch.
    ///
    /// # Panics
    /// If `data` does not hold `count · width` numbers.
    pub(crate) fn new(data: &'a [f32], count: usize, width: usize) -> Self {
        assert_eq!(data.len(), count * width, "{count} rows of {width}");
        Self { data, count, width, stride: width }
    }

    /// For a general product.
    #[inline(always)]
    pub(crate) fn matrix(&self) -> MatRef<'a, f32> {
        let numbers =
            if self.count * self.width == 0 { 0 } else { (self.count - 1) * self.stride + self.width };
        MatRef::from_row_major_slice_with_stride(&self.data[..numbers], self.count, self.width, self.stride)
    }
}

/// A tensor of f32 on the CPU, not copied.
#[derive(Debug)]
pub(crate) struct Operand {
    tensor: FlexTensor,
}

impl Operand {
    /// `None` where a row is no slice.
    fn new(tensor: FlexTensor) -> Option<Self> {
        let strides = tensor.layout().strides();
        (strides.last() == Some(&1) && strides.iter().all(|&stride| stride >= 0)).then_some(Self { tensor })
    }

    /// A tensor whose last axis lies densely, so that every row is a slice. `None` where it does not, or the tensor is of
    /// another backend or type, or on a tape.
    pub(crate) fn rows<const D: usize>(tensor: &Tensor<D>) -> Option<Self> {
        (tensor.dtype() == DType::F32).then(|| Self::of(tensor))?
    }

    /// As [`rows`](Self::rows), of any type of floats.
    pub(crate) fn of<const D: usize>(tensor: &Tensor<D>) -> Option<Self> {
        Self::new(tensor.clone().try_into_primitive::<Flex>().ok()?)
    }

    /// As [`rows`](Self::rows), of integers.
    pub(crate) fn words<const D: usize>(tensor: &Tensor<D, Int>) -> Option<Self> {
        Self::new(tensor.clone().try_into_primitive::<Flex>().ok()?)
    }

    /// The rows of the last two axes, at `outer` of those before, of a tensor from [`rows`](Self::rows).
    ///
    /// # Panics
    /// If there are other axes than `outer` says.
    pub(crate) fn at(&self, outer: &[usize]) -> Rows<'_> {
        self.rows_at(outer)
    }

    /// As [`at`](Self::at), in the tensor's own type.
    ///
    /// # Panics
    /// As there.
    pub(crate) fn rows_at<T: Element + bytemuck::Pod>(&self, outer: &[usize]) -> Rows<'_, T> {
        let (layout, data) = (self.tensor.layout(), self.tensor.storage::<T>());
        let (shape, strides) = (layout.shape(), layout.strides());
        let axes = shape.num_dims();
        assert_eq!(outer.len() + 2, axes, "an index an outer axis");
        let skipped: usize = outer.iter().zip(strides).map(|(&at, &stride)| at * stride as usize).sum();
        let size = [shape[axes - 2], shape[axes - 1]];
        Rows::at(data, layout.start_offset() + skipped, size, strides[axes - 2])
    }

    /// A tensor of one axis.
    ///
    /// # Panics
    /// If it has more, or gaps.
    pub(crate) fn vector(&self) -> &[f32] {
        let layout = self.tensor.layout();
        assert_eq!((layout.shape().num_dims(), layout.strides()[0]), (1, 1), "a vector has one dense axis");
        let start = layout.start_offset();
        &self.tensor.storage::<f32>()[start..start + layout.shape()[0]]
    }
}
