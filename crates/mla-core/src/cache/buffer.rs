//! A preallocated tensor that grows along its token axis.

use burn::tensor::{Device, Slice, Tensor};

/// Room for `capacity` tokens along the axis before the last.
///
/// Writing moves the tensor out and back, so that a backend may write in place: no pass allocates a second copy.
#[derive(Debug)]
pub(super) struct Buffer<const D: usize> {
    data: Option<Tensor<D>>,
}

impl<const D: usize> Buffer<D> {
    pub(super) fn new(shape: [usize; D], device: &Device) -> Self {
        Self { data: Some(Tensor::zeros(shape, device)) }
    }

    /// Writes `x` at token `at` and returns everything up to its end.
    ///
    /// # Panics
    /// If it does not fit: the owner checks its capacity first.
    pub(super) fn append(&mut self, at: usize, x: Tensor<D>) -> Tensor<D> {
        let token_axis = D - 2;
        let end = at + x.dims()[token_axis];
        let data = self.data.take().expect("a buffer holds its tensor between calls");
        let mut place: [Slice; D] = std::array::from_fn(|_| Slice::full());
        place[token_axis] = Slice::from(at..end);
        let data = data.slice_assign(place, x);
        let visible = data.clone().narrow(token_axis, 0, end);
        self.data = Some(data);
        visible
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        self.data.as_ref().map_or(0, |data| data.shape().num_elements() * data.dtype().size())
    }
}
