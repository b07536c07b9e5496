//! Second moments of activations, `C = E[h hᵀ]`.

use burn::tensor::Tensor;

use crate::linalg::{Mat64, add_gram};

/// `Σ h hᵀ` over tokens, accumulated in f64.
///
/// Not centred: attention sinks make the mean anything but small, and centring measures far worse
/// (docs/factorisation.md).
#[derive(Clone, Debug)]
pub struct Moments {
    /// Lower triangle of the sum.
    sum: Mat64,
    tokens: usize,
}

impl Moments {
    /// No tokens yet, of width `d`.
    pub fn new(d: usize) -> Self {
        Self { sum: Mat64::zeros(d, d), tokens: 0 }
    }

    /// Adds the tokens of a batch.
    ///
    /// # Shapes
    /// - `h`: `[batch, t, d]`
    ///
    /// # Panics
    /// If the width differs, or the device fails while it is read.
    pub fn add(&mut self, h: Tensor<3>) {
        let [batch, t, d] = h.dims();
        assert_eq!(d, self.sum.cols, "width of the activations");
        let values = h.try_into_vec_as::<f32>().expect("a float tensor reads back as f32");
        let values: Vec<f64> = values.into_iter().map(f64::from).collect();
        add_gram(&mut self.sum, &values);
        self.tokens += batch * t;
    }

    /// Adds what another part of the data gave.
    ///
    /// # Panics
    /// If the widths differ.
    pub fn merge(&mut self, other: &Self) {
        assert_eq!(other.sum.cols, self.sum.cols, "width of the activations");
        self.sum.data.iter_mut().zip(&other.sum.data).for_each(|(a, b)| *a += b);
        self.tokens += other.tokens;
    }

    /// Tokens added so far.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Whether every sum is a number.
    pub fn is_finite(&self) -> bool {
        self.sum.data.iter().all(|x| x.is_finite())
    }

    /// `E[h hᵀ]`, both triangles: `[d, d]`.
    pub fn covariance(&self) -> Mat64 {
        let mut c = self.sum.clone();
        let tokens = self.tokens.max(1) as f64;
        for r in 0..c.rows {
            for k in 0..=r {
                let mean = c.at(r, k) / tokens;
                c.data[r * self.sum.cols + k] = mean;
                c.data[k * self.sum.cols + r] = mean;
            }
        }
        c
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution};

    #[test]
    fn moments_merge_and_equal_the_mean_outer_product() {
        let device = Device::flex();
        let h = Tensor::<3>::random([2, 5, 3], Distribution::Normal(0.5, 1.0), &device);
        let mut whole = Moments::new(3);
        whole.add(h.clone());
        let (mut first, mut second) = (Moments::new(3), Moments::new(3));
        first.add(h.clone().narrow(0, 0, 1));
        second.add(h.clone().narrow(0, 1, 1));
        first.merge(&second);
        assert_eq!(first.tokens(), 10);
        let flat = h.reshape([10, 3]);
        let by_hand: Vec<f64> =
            (flat.clone().transpose().matmul(flat) / 10.0).into_data().iter::<f64>().collect();
        for c in [whole.covariance(), first.covariance()] {
            let gap = c.data.iter().zip(&by_hand).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(gap < 1e-6, "{gap}");
        }
    }
}
