//! Which windows a step sees: a permutation an epoch, fixed by the seed, so that any step can be found without those before.

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

/// The windows of a run, cut into batches.
#[derive(Clone, Debug)]
pub struct Batches<'a> {
    windows: &'a [Vec<u32>],
    size: usize,
    seed: u64,
    /// The epoch whose order is at hand.
    shuffled: Option<(usize, Vec<usize>)>,
}

impl<'a> Batches<'a> {
    /// Batches of `size` windows; the last of an epoch may have fewer.
    ///
    /// # Panics
    /// If there is no window or a batch has none.
    pub fn new(windows: &'a [Vec<u32>], size: usize, seed: u64) -> Self {
        assert!(!windows.is_empty() && size > 0, "a batch has a window");
        Self { windows, size, seed, shuffled: None }
    }

    /// Batches of an epoch.
    pub fn of_an_epoch(&self) -> usize {
        self.windows.len().div_ceil(self.size)
    }

    /// The batch with this number, counted over all epochs.
    pub fn get(&mut self, number: usize) -> Vec<Vec<u32>> {
        let (epoch, place) = (number / self.of_an_epoch(), number % self.of_an_epoch());
        if self.shuffled.as_ref().is_none_or(|(at, _)| *at != epoch) {
            self.shuffled = Some((epoch, self.order(epoch)));
        }
        let order = self.shuffled.as_ref().map_or(&[][..], |(_, order)| order);
        let batch = order.iter().skip(place * self.size).take(self.size);
        batch.map(|&window| self.windows[window].clone()).collect()
    }

    /// Fisher and Yates's shuffle, drawn from the seed and the epoch alone.
    fn order(&self, epoch: usize) -> Vec<usize> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(epoch as u64);
        let mut order: Vec<usize> = (0..self.windows.len()).collect();
        for last in (1..order.len()).rev() {
            order.swap(last, rng.random_range(0..=last));
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(count: u32) -> Vec<Vec<u32>> {
        (0..count).map(|i| vec![i, i]).collect()
    }

    #[test]
    fn an_epoch_shows_every_window_once_and_the_next_in_another_order() {
        let windows = windows(11);
        let mut batches = Batches::new(&windows, 3, 5);
        assert_eq!(batches.of_an_epoch(), 4);
        let epoch = |batches: &mut Batches<'_>, epoch: usize| -> Vec<u32> {
            (0..4).flat_map(|place| batches.get(4 * epoch + place)).map(|window| window[0]).collect()
        };
        let (first, second) = (epoch(&mut batches, 0), epoch(&mut batches, 1));
        for seen in [&first, &second] {
            let mut sorted = seen.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..11).collect::<Vec<_>>());
        }
        assert_ne!(first, second);
        assert_ne!(first, epoch(&mut Batches::new(&windows, 3, 6), 0), "another seed, another order");
    }

    #[test]
    fn a_batch_does_not_depend_on_those_that_were_asked_for_before() {
        let windows = windows(7);
        let mut whole = Batches::new(&windows, 2, 1);
        let all: Vec<_> = (0..12).map(|number| whole.get(number)).collect();
        assert_eq!(Batches::new(&windows, 2, 1).get(9), all[9]);
    }
}
