//! A tensor that grows along its token axis: preallocated, or as long as a window.

use std::ops::Range;

use burn::tensor::kind::Basic;
use burn::tensor::{DType, Device, Distribution, Float, Slice, Tensor};

/// Tokens that are filled at a time.
pub(super) const FILL: usize = 1024;

/// Tokens along the axis before the last.
///
/// With room for all of them, writing moves the tensor out and back, so that a backend may write in place: no pass allocates
/// a second copy. Of a window's tokens each pass makes a new tensor, which costs what reading them does.
#[derive(Debug)]
pub(super) struct Buffer<const D: usize, K: Basic = Float> {
    /// `None` before the first token of a window.
    data: Option<Tensor<D, K>>,
    /// How many tokens are kept; `None` for as many as there is room for.
    window: Option<usize>,
    /// The first token that is kept.
    first: usize,
    /// With room for all tokens, or for none.
    shape: [usize; D],
    dtype: DType,
    device: Device,
}

impl<const D: usize, K: Basic> Buffer<D, K> {
    /// Zeros for `shape`'s tokens, or, where a window is shorter, nothing yet.
    pub(super) fn new(shape: [usize; D], window: Option<usize>, dtype: DType, device: &Device) -> Self {
        let window = window.filter(|&window| window < shape[D - 2]);
        let data = window.is_none().then(|| Tensor::zeros(shape, (device, dtype)));
        Self { data, window, first: 0, shape, dtype, device: device.clone() }
    }

    /// Writes `x`, which is of the buffer's type, at token `at`. Of a window, what no token of `x` sees goes.
    ///
    /// # Panics
    /// If it does not fit: the owner checks its capacity first.
    pub(super) fn append(&mut self, at: usize, x: Tensor<D, K>) {
        let token_axis = D - 2;
        let end = at + x.dims()[token_axis];
        let Some(window) = self.window else {
            let data = self.data.take().expect("a buffer holds its tensor between calls");
            let mut place: [Slice; D] = std::array::from_fn(|_| Slice::full());
            place[token_axis] = Slice::from(at..end);
            self.data = Some(data.slice_assign(place, x));
            return;
        };
        let kept = (at - self.first).min(window - 1);
        self.data = Some(match self.data.take() {
            Some(data) if kept > 0 => {
                let rows = data.dims()[token_axis];
                Tensor::cat(vec![data.narrow(token_axis, rows - kept, kept), x], token_axis)
            }
            _ => x,
        });
        self.first = at - kept;
    }

    /// Lets go of what no later token sees.
    pub(super) fn trim(&mut self) {
        let (Some(window), Some(data)) = (self.window, &self.data) else { return };
        let mut shape = data.dims();
        let rows = shape[D - 2];
        if rows > window {
            shape[D - 2] = window;
            // A copy: a part of a tensor may hold all of it.
            let part = data.clone().narrow(D - 2, rows - window, window);
            let whole: [Slice; D] = std::array::from_fn(|_| Slice::full());
            let room = Tensor::zeros(shape, (&self.device, self.dtype));
            self.data = Some(room.slice_assign(whole, part));
            self.first += rows - window;
        }
    }

    /// The first token that is kept.
    pub(super) fn first(&self) -> usize {
        self.first
    }

    /// Some tokens.
    ///
    /// # Panics
    /// If they are not kept.
    pub(super) fn tokens(&self, tokens: Range<usize>) -> Tensor<D, K> {
        let data = self.data.as_ref().expect("tokens were appended");
        data.clone().narrow(D - 2, tokens.start - self.first, tokens.len())
    }

    /// As it would be with room for all tokens.
    pub(super) fn shape(&self) -> [usize; D] {
        self.shape
    }

    /// Where it lies.
    pub(super) fn device(&self) -> Device {
        self.device.clone()
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        self.data.as_ref().map_or(0, |data| data.shape().num_elements() * self.dtype.size())
    }

    /// Where the last of `tokens` tokens begin that are kept, for who writes them without the others.
    pub(super) fn skip_to(&mut self, tokens: usize) -> usize {
        self.first = self.window.map_or(0, |window| tokens.saturating_sub(window));
        self.first
    }
}

impl<const D: usize> Buffer<D> {
    /// Writes `x` at token `at`, rounded to the buffer's type.
    ///
    /// # Panics
    /// As [`append`](Self::append).
    pub(super) fn append_rounded(&mut self, at: usize, x: Tensor<D>) {
        self.append(at, x.cast(self.dtype));
    }

    /// Writes random numbers into the first `tokens` tokens, a thousand at a time: all at once would take as much room again.
    pub(super) fn fill(&mut self, tokens: usize) {
        let device = self.device();
        for start in (self.skip_to(tokens)..tokens).step_by(FILL) {
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
        let mut buffer = Buffer::<3>::new([1, 4, 2], None, DType::F32, &device);
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
        let mut buffer = Buffer::<3>::new([1, 2, 1], None, DType::BF16, &device);
        assert_eq!(buffer.bytes(), 4);
        buffer.append_rounded(0, Tensor::from_data([[[1.0], [1.003]]], &device));
        let kept: Vec<f32> = buffer.tokens(0..2).cast(DType::F32).into_data().iter::<f32>().collect();
        assert_eq!(kept, [1.0, 1.0]);
    }

    #[test]
    fn a_window_keeps_what_a_later_token_sees() {
        let device = Device::flex();
        let mut buffer = Buffer::<3>::new([1, 100, 1], Some(3), DType::F32, &device);
        let rows = |from: usize, to: usize| {
            let numbers: Vec<f32> = (from..to).map(|x| x as f32).collect();
            Tensor::<1>::from_data(numbers.as_slice(), &device).reshape([1, to - from, 1])
        };
        let kept = |buffer: &Buffer<3>, to: usize| {
            let all = buffer.tokens(buffer.first()..to);
            all.into_data().iter::<f32>().map(|x| x as usize).collect::<Vec<_>>()
        };
        assert_eq!(buffer.bytes(), 0);
        buffer.append(0, rows(0, 2));
        assert_eq!(kept(&buffer, 2), [0, 1]);
        // The first of five new tokens sees two before it.
        buffer.append(2, rows(2, 7));
        assert_eq!(kept(&buffer, 7), [0, 1, 2, 3, 4, 5, 6]);
        buffer.trim();
        assert_eq!((kept(&buffer, 7), buffer.bytes()), (vec![4, 5, 6], 12));
        buffer.append(7, rows(7, 8));
        buffer.trim();
        assert_eq!((kept(&buffer, 8), buffer.bytes()), (vec![5, 6, 7], 12));
        let whole = Buffer::<3>::new([1, 3, 1], Some(3), DType::F32, &device);
        assert_eq!(whole.bytes(), 12, "a window as long as the room is none");
    }
}
