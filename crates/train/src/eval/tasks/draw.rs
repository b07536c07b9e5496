//! Draws of the tasks: the same seed gives the same prompts on every platform.

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

/// Random numbers of `digits` digits, the first of which is not 0.
///
/// # Panics
/// If `digits` is not 1 to 9.
pub fn numbers(count: usize, digits: u32, seed: u64) -> Vec<u32> {
    assert!((1..=9).contains(&digits), "numbers of 32 bits");
    let mut rng = rng(seed, 0);
    let least = 10u32.pow(digits - 1);
    (0..count).map(|_| rng.random_range(least..10 * least)).collect()
}

/// A generator of its own for each `stream` of a seed.
pub(super) fn rng(seed: u64, stream: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream as u64);
    rng
}

/// `count` of the numbers below `all`, no one twice, in random order (Fisher and Yates).
pub(super) fn choose(all: usize, count: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let mut chosen: Vec<usize> = (0..all).collect();
    for place in 0..count {
        chosen.swap(place, rng.random_range(place..all));
    }
    chosen.truncate(count);
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_as_many_digits_as_asked_and_follow_the_seed() {
        let found = numbers(500, 5, 7);
        assert!(found.iter().all(|number| number.to_string().len() == 5));
        assert_eq!(found, numbers(500, 5, 7));
        assert_ne!(found, numbers(500, 5, 8));
        // Nine digits are the most that fit, and 32 bits hold the largest of them.
        assert!(numbers(50, 9, 0).iter().all(|number| number.to_string().len() == 9));
    }

    #[test]
    fn what_is_chosen_is_chosen_once() {
        let mut chosen = choose(20, 20, &mut rng(1, 2));
        assert_ne!(chosen, (0..20).collect::<Vec<_>>());
        chosen.sort_unstable();
        assert_eq!(chosen, (0..20).collect::<Vec<_>>());
        assert_eq!(choose(20, 3, &mut rng(1, 2)).len(), 3);
    }
}
