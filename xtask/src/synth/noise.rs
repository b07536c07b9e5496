//! Normal bf16 numbers, cheap enough for thousands of millions of them.

/// Bits of randomness a number; a table of this size fits the first level of cache.
const BITS: u32 = 12;

/// Draws from a table of the normal distribution's quantiles.
#[derive(Debug)]
pub struct Noise {
    quantiles: Vec<[u8; 2]>,
}

impl Noise {
    /// Of mean 0 and this standard deviation.
    pub fn new(standard_deviation: f64) -> Self {
        let count = 1usize << BITS;
        // The midpoint of each of as many equally likely intervals.
        let quantile = |at: usize| standard_deviation * normal_quantile((at as f64 + 0.5) / count as f64);
        Self { quantiles: (0..count).map(|at| bf16(quantile(at) as f32)).collect() }
    }

    /// Fills little-endian bf16 numbers with draws that depend on `seed` alone.
    pub fn fill(&self, seed: &str, into: &mut [u8]) {
        let mut state = fnv1a(seed);
        for numbers in into.chunks_mut(10) {
            let mut bits = split_mix(&mut state);
            for number in numbers.chunks_mut(2) {
                let drawn = self.quantiles[(bits & ((1 << BITS) - 1)) as usize];
                number.copy_from_slice(&drawn[..number.len()]);
                bits >>= BITS;
            }
        }
    }
}

/// Fills little-endian bf16 numbers with 1.
pub fn ones(into: &mut [u8]) {
    for number in into.chunks_exact_mut(2) {
        number.copy_from_slice(&bf16(1.0));
    }
}

/// The upper half of an f32, rounded to nearest.
fn bf16(value: f32) -> [u8; 2] {
    (((value.to_bits() + 0x8000) >> 16) as u16).to_le_bytes()
}

/// A stream of 64-bit numbers (Steele, Lea & Flood 2014, SplitMix64).
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// A number for a name (Fowler–Noll–Vo 1a, 64 bits).
fn fnv1a(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// Where the standard normal distribution reaches `p`, by bisection of its integral.
fn normal_quantile(p: f64) -> f64 {
    let (mut low, mut high) = (-10.0, 10.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if normal_cdf(middle) < p { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// The standard normal distribution function by its power series (Marsaglia 2004, eq. 3), exact to 1e-12 within ±6.
fn normal_cdf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return if x > 0.0 { 1.0 } else { 0.0 };
    }
    let (mut term, mut sum) = (x, x);
    for odd in (3..400).step_by(2) {
        term *= x * x / f64::from(odd);
        sum += term;
    }
    0.5 + sum * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(seed: &str, count: usize) -> Vec<f64> {
        let mut bytes = vec![0; 2 * count];
        Noise::new(0.02).fill(seed, &mut bytes);
        let number = |bytes: &[u8]| {
            f64::from(f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16))
        };
        bytes.chunks_exact(2).map(number).collect()
    }

    #[test]
    fn draws_have_the_moments_of_the_normal_distribution() {
        let count = 200_000;
        let drawn = numbers("a", count);
        let moment = |power| drawn.iter().map(|x: &f64| (x / 0.02).powi(power)).sum::<f64>() / count as f64;
        // Five standard errors of each: 1, 2 and 96 are the variances of x, x² and x⁴.
        for (power, expected, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (4, 3.0, 96.0)] {
            // bf16 has 8 bits, and a table of 4096 lacks the outermost tails.
            let bound = 5.0 * f64::sqrt(variance / count as f64) + 0.02;
            assert!((moment(power) - expected).abs() < bound, "{power}: {}", moment(power));
        }
    }

    #[test]
    fn a_name_fixes_its_numbers_and_another_name_has_others() {
        assert_eq!(numbers("a", 101), numbers("a", 101));
        assert_eq!(numbers("a", 101)[..7], numbers("a", 7));
        assert_ne!(numbers("a", 101), numbers("b", 101));
    }

    #[test]
    fn bf16_rounds_to_nearest() {
        assert_eq!(bf16(1.0), 0x3f80u16.to_le_bytes());
        assert_eq!(bf16(1.0 + 1.0 / 256.0 + 1e-6), 0x3f81u16.to_le_bytes());
        assert_eq!(bf16(-0.5), 0xbf00u16.to_le_bytes());
        let mut bytes = [0; 4];
        ones(&mut bytes);
        assert_eq!(bytes, [0x80, 0x3f, 0x80, 0x3f]);
    }

    #[test]
    fn quantiles_invert_the_distribution() {
        // Tables of the normal distribution.
        for (p, x) in [(0.5, 0.0), (0.975, 1.959_963_985), (0.001, -3.090_232_306)] {
            assert!((normal_quantile(p) - x).abs() < 1e-8, "{p}: {}", normal_quantile(p));
        }
    }
}
