//! A preallocated tensor that grows along its token axis.

use std::ops::Range;

use burn::tensor::kind::Basic;
use burn::tensor::{DType, Device, Distribution, Float, Slice, Tensor};

/// Tokens that are filled at a time.
pub(super) const FILL: usize = 1024;

/// Room for `capacity` tokens along the axis before the last.
///
/// Writing moves the tensor out and back, so that a backend may write in place: no pass allocates a second copy.
#[derive(Debug)]
pub(super) struct Buffer<const D: usize, K: Basic = Float> {
    data: Option<Tensor<D, K>>,
}

impl<const D: usize, K: Basic> Buffer<D, K> {
    /// Zeros.
    pub(super) fn new(shape: [usize; D], dtype: DType, device: &Device) -> Self {
        Self { data: Some(Tensor::zeros(shape, (device, dtype))) }
    }

    /// Writes `x`, which is of the buffer's type, at token `at`.
    ///
    /// # Panics
    /// If it does not fit: the owner checks its capacity first.
    pub(super) fn append(&mut self, at: usize, x: Tensor<D, K>) {
        let token_axis = D - 2;
        let end = at + x.dims()[token_axis];
        let data = self.data.take().expect("a buffer holds its tensor between calls");
        let mut place: [Slice; D] = std::array::from_fn(|_| Slice::full());
        place[token_axis] = Slice::from(at..end);
        self.data = Some(data.slice_assign(place, x));
    }

    /// Some tokens.
    pub(super) fn tokens(&self, tokens: Range<usize>) -> Tensor<D, K> {
        self.data().clone().narrow(D - 2, tokens.start, tokens.len())
    }

    /// As it was allocated.
    pub(super) fn shape(&self) -> [usize; D] {
        self.data().dims()
    }

    /// Where it lies.
    pub(super) fn device(&self) -> Device {
        self.data().device()
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        self.data().shape().num_elements() * self.data().dtype().size()
    }

    fn data(&self) -> &Tensor<D, K> {
        self.data.as_ref().expect("a buffer holds its tensor between calls")
    }
}

impl<const D: usize> Buffer<D> {
    /// Writes `x` at token `at`, rounded to the buffer's type.
    ///
    /// # Panics
    /// As [`append`](Self::append).
    pub(super) fn append_rounded(&mut self, at: usize, x: Tensor<D>) {
        let dtype = self.data().dtype();
        self.append(at, x.cast(dtype));
    }

    /// Writes random numbers into the first `tokens` tokens, a thousand at a time: all at once would take as much room again.
    pub(super) fn fill(&mut self, tokens: usize) {
        let device = self.device();
        for start in (0..tokens).step_by(FILL) {
            let mut shape = self.shape();
            shape[D - 2] = (tokens - start).min(FILL);
            self.append_rounded(start, Tensor::random(shape, Distribution::Normal(0.0, 1.0), &device));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_appended_comes_back_in_order_and_no_room_is_made_for_it() {
        let device = Device::default();
        let mut buffer = Buffer::<3>::new([1, 4, 2], DType::F32, &device);
        let bytes = buffer.bytes();
        assert_eq!(bytes, 4 * 2 * 4);
        let row = |x: f32| Tensor::<3>::from_data([[[x, -x]]], &device);
        let read =
            |buffer: &Buffer<3>, tokens| buffer.tokens(tokens).into_data().iter::<f32>().collect::<Vec<_>>();
        buffer.append(0, row(1.0));
        buffer.append(1, row(2.0));
        assert_eq!(read(&buffer, 0..2), [1.0, -1.0, 2.0, -2.0]);
        buffer.append(1, row(3.0));
        assert_eq!(read(&buffer, 0..2), [1.0, -1.0, 3.0, -3.0]);
        assert_eq!(read(&buffer, 0..1), [1.0, -1.0]);
        assert_eq!(buffer.bytes(), bytes);
    }

    #[test]
    fn half_the_bytes_hold_the_nearest_numbers() {
        let device = Device::flex();
        let mut buffer = Buffer::<3>::new([1, 2, 1], DType::BF16, &device);
        assert_eq!(buffer.bytes(), 4);
        buffer.append_rounded(0, Tensor::from_data([[[1.0], [1.003]]], &device));
        let kept: Vec<f32> = buffer.tokens(0..2).cast(DType::F32).into_data().iter::<f32>().collect();
        assert_eq!(kept, [1.0, 1.0]);
    }
}
