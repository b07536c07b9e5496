//! Tensors of the CPU backend as slices.

use std::ops::Range;

use burn::tensor::Tensor;
use burn_flex::{Flex, FlexTensor};
use faer::MatRef;

/// A matrix whose rows are slices, `stride` numbers apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows<'a> {
    data: &'a [f32],
    /// Number of rows.
    pub(crate) count: usize,
    /// Numbers of a row.
    pub(crate) width: usize,
    stride: usize,
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

    fn at(data: &'a [f32], start: usize, [count, width]: [usize; 2], stride: isize) -> Self {
        // The stride of an axis of one means nothing.
        let stride = if count > 1 { stride as usize } else { width };
        let numbers = if count * width == 0 { 0 } else { (count - 1) * stride + width };
        Self { data: &data[start..start + numbers], count, width, stride }
    }

    /// One row.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &'a [f32] {
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
    /// A tensor whose last two axes make matrices that lie densely along one of them: a weight, transposed or not. `None`
    /// where it does not, or the tensor is of another backend or type, or on a tape.
    pub(crate) fn weight<const D: usize>(tensor: &Tensor<D>) -> Option<Self> {
        if tensor.dtype() != burn::tensor::DType::F32 {
            return None;
        }
        let tensor = tensor.clone().try_into_primitive::<Flex>().ok()?;
        let strides = tensor.layout().strides();
        let dense = strides.iter().rev().take(2).any(|&stride| stride == 1);
        (dense && strides.iter().all(|&stride| stride >= 0)).then_some(Self { tensor })
    }

    /// As [`weight`](Self::weight); the last axis lies densely, so that every row is a slice.
    pub(crate) fn rows<const D: usize>(tensor: &Tensor<D>) -> Option<Self> {
        Self::weight(tensor).filter(|operand| operand.tensor.layout().strides().last() == Some(&1))
    }

    /// The matrix of a tensor of two axes.
    ///
    /// # Panics
    /// If it has other axes.
    pub(crate) fn matrix(&self) -> MatRef<'_, f32> {
        let (layout, data) = (self.tensor.layout(), self.tensor.storage::<f32>());
        let (shape, strides) = (layout.shape(), layout.strides());
        assert_eq!(shape.num_dims(), 2, "a matrix has two axes");
        let dense = |outer: usize, inner: usize| {
            let rows = Rows::at(data, layout.start_offset(), [shape[outer], shape[inner]], strides[outer]);
            rows.matrix()
        };
        if strides[1] == 1 { dense(0, 1) } else { dense(1, 0).transpose() }
    }

    /// The rows of the last two axes, at `outer` of those before, of a tensor from [`rows`](Self::rows).
    ///
    /// # Panics
    /// If there are other axes than `outer` says.
    pub(crate) fn at(&self, outer: &[usize]) -> Rows<'_> {
        let (layout, data) = (self.tensor.layout(), self.tensor.storage::<f32>());
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
