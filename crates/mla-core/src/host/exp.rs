//! The exponential function as vector code.

/// `eˣ` for −87 ≤ x ≤ 88, within some units in the last place, and the value at the nearer end beyond: `2ⁿ · 2ᶠ` with |f| ≤ ½,
/// where n goes straight into the exponent. Without a branch, so that a loop over it becomes vector code.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// 1.5 · 2²³: adding it leaves the nearest integer in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -87.0 { -87.0 } else { x };
    let t = if x > 88.0 { 88.0 } else { x } * std::f32::consts::LOG2_E;
    let shifted = t + ROUND;
    let f = (t - (shifted - ROUND)) * std::f32::consts::LN_2;
    // Taylor's series of eᶠ for |f| ≤ ln(2)/2: the next term is below 6 · 10⁻⁹.
    let series = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let value = series.into_iter().fold(1.0 / 5040.0, |sum, term| sum * f + term);
    f32::from_bits(value.to_bits().wrapping_add(shifted.to_bits() << 23))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_those_of_the_library() {
        let mut worst = 0f64;
        for step in -870_000..=880_000 {
            let x = step as f32 * 1e-4;
            let right = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) / right - 1.0).abs());
        }
        assert!(worst < 4e-6, "{worst}");
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e30) < 2e-38);
        assert!((exp(88.0)..f32::MAX).contains(&exp(1e30)));
        assert!(exp(f32::NAN).is_nan());
    }
}
