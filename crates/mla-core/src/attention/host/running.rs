//! Online softmax (Milakov & Gimelshein 2018) of a walk, and of several as one.

use super::lanes;

/// Softmax and weighted sum so far, a row a query head and new token.
pub(super) struct Running {
    pub(super) max: Vec<f32>,
    pub(super) sum: Vec<f32>,
    pub(super) mixed: Vec<f32>,
    pub(super) width: usize,
}

impl Running {
    pub(super) fn new(rows: usize, width: usize) -> Self {
        Self { max: vec![f32::MIN; rows], sum: vec![0.0; rows], mixed: vec![0.0; rows * width], width }
    }

    /// Before any token: the weight that sinks take, and no value. One sink a row.
    pub(super) fn of_sinks(sinks: Vec<f32>, width: usize) -> Self {
        let rows = sinks.len();
        Self { max: sinks, sum: vec![1.0; rows], mixed: vec![0.0; rows * width], width }
    }

    /// Two walks through different tokens as one.
    pub(super) fn merged(mut self, other: Self) -> Self {
        for row in 0..self.max.len() {
            let max = self.max[row].max(other.max[row]);
            let (ours, theirs) = ((self.max[row] - max).exp(), (other.max[row] - max).exp());
            self.max[row] = max;
            self.sum[row] = self.sum[row] * ours + other.sum[row] * theirs;
            let place = row * self.width..(row + 1) * self.width;
            lanes::scale(&mut self.mixed[place.clone()], ours);
            lanes::add_scaled(&mut self.mixed[place.clone()], &other.mixed[place], theirs);
        }
        self
    }

    /// What the weights of all but the sinks add up to, a row each.
    pub(super) fn weight_beside(&self, sinks: &[f32]) -> Vec<f32> {
        let rows = sinks.iter().zip(&self.max).zip(&self.sum);
        rows.map(|((sink, max), sum)| 1.0 - (sink - max).exp() / sum).collect()
    }

    /// The weighted means. A row that saw nothing is padding, which nobody reads.
    pub(super) fn mean(mut self) -> Vec<f32> {
        for (row, sum) in self.mixed.chunks_exact_mut(self.width.max(1)).zip(&self.sum) {
            lanes::scale(row, if *sum > 0.0 { 1.0 / sum } else { 0.0 });
        }
        self.mixed
    }
}
