//! Tensors of the CPU backend as slices.

use burn::tensor::Tensor;
use burn_flex::{Flex, FlexTensor};
use faer::MatRef;

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

    /// A matrix made of the last two axes, at `outer` of those before.
    ///
    /// # Panics
    /// If there are other axes than `outer` says.
    pub(crate) fn matrix(&self, outer: &[usize]) -> MatRef<'_, f32> {
        let layout = self.tensor.layout();
        let (shape, strides) = (layout.shape(), layout.strides());
        let axes = shape.num_dims();
        assert_eq!(outer.len() + 2, axes, "an index an outer axis");
        let skipped: usize = outer.iter().zip(strides).map(|(&at, &stride)| at * stride as usize).sum();
        let start = layout.start_offset() + skipped;
        let (row, column) = ((shape[axes - 2], strides[axes - 2]), (shape[axes - 1], strides[axes - 1]));
        let dense = |outer: (usize, isize), inner: usize| {
            // The stride of an axis of one means nothing.
            let stride = if outer.0 > 1 { outer.1 as usize } else { inner };
            let numbers = if outer.0 * inner == 0 { 0 } else { (outer.0 - 1) * stride + inner };
            let data = &self.tensor.storage::<f32>()[start..start + numbers];
            MatRef::from_row_major_slice_with_stride(data, outer.0, inner, stride)
        };
        match column.1 {
            1 => dense(row, column.0),
            _ => dense(column, row.0).transpose(),
        }
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
