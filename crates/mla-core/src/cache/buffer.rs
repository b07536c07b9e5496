//! A preallocated tensor that grows along its token axis.

use std::ops::Range;

use burn::tensor::{Device, Distribution, Slice, Tensor};

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
        self.data = Some(data.slice_assign(place, x));
        self.tokens(0..end)
    }

    /// Some tokens.
    pub(super) fn tokens(&self, tokens: Range<usize>) -> Tensor<D> {
        let data = self.data.as_ref().expect("a buffer holds its tensor between calls");
        data.clone().narrow(D - 2, tokens.start, tokens.len())
    }

    /// Writes random numbers into the first `tokens` tokens.
    ///
    /// # Panics
    /// If they do not fit.
    pub(super) fn fill(&mut self, tokens: usize) {
        let data = self.data.as_ref().expect("a buffer holds its tensor between calls");
        let mut shape: [usize; D] = data.dims();
        shape[D - 2] = tokens;
        let random: Tensor<D> = Tensor::random(shape, Distribution::Normal(0.0, 1.0), &data.device());
        self.append(0, random);
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        self.data.as_ref().map_or(0, |data| data.shape().num_elements() * data.dtype().size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_appended_comes_back_in_order_and_no_room_is_made_for_it() {
        let device = Device::flex();
        let mut buffer = Buffer::new([1, 4, 2], &device);
        let bytes = buffer.bytes();
        assert_eq!(bytes, 4 * 2 * 4);
        let row = |x: f32| Tensor::<3>::from_data([[[x, -x]]], &device);
        buffer.append(0, row(1.0));
        let two = buffer.append(1, row(2.0));
        assert_eq!(two.into_data().iter::<f32>().collect::<Vec<_>>(), [1.0, -1.0, 2.0, -2.0]);
        let again = buffer.append(1, row(3.0));
        assert_eq!(again.into_data().iter::<f32>().collect::<Vec<_>>(), [1.0, -1.0, 3.0, -3.0]);
        assert_eq!(buffer.tokens(0..1).into_data().iter::<f32>().collect::<Vec<_>>(), [1.0, -1.0]);
        assert_eq!(buffer.bytes(), bytes);
    }
}
