//! What the numbers of a command line may be, said once for all commands.
//!
//! What depends on the model (a width, a context) is checked where the model is known. What is here no model could take, or
//! would overflow a product of sizes.

use std::ops::RangeInclusive;

use clap::builder::RangedU64ValueParser;
use train::Settings;

/// The most that is ever counted on a command line: products of two such numbers fit 64 bits.
const MOST: u64 = Settings::MOST;
/// The largest rank that a latent is padded to.
const MOST_RANK: u64 = 16_384;
/// More threads than a machine has processors only wait.
const THREADS: u64 = 1024;
/// Lines with a word each: texts have not many more words.
const LINES: u64 = 10_000;
/// Repetitions that are not bounded by a text or a model, and bring nothing any more long before this.
const ROUNDS: u64 = 1000;
/// Steps of a trial of learning rates at most.
const TRIAL_STEPS: u64 = 1000;

/// A parser of floating-point numbers.
pub trait Number: Fn(&str) -> Result<f64, String> + Clone + Send + Sync + 'static {}
impl<F: Fn(&str) -> Result<f64, String> + Clone + Send + Sync + 'static> Number for F {}

/// 0, 1, 2, …
pub fn any_count() -> RangedU64ValueParser<usize> {
    (0..=MOST).into()
}

/// 1, 2, 3, …
pub fn count() -> RangedU64ValueParser<usize> {
    (1..=MOST).into()
}

/// Numbers that a latent is padded to: more than any kernel knows is a slip.
pub fn rank() -> RangedU64ValueParser<usize> {
    (1..=MOST_RANK).into()
}

/// Tokens of a window: two at least, of which the first predicts the second.
pub fn window() -> RangedU64ValueParser<usize> {
    (2..=MOST).into()
}

/// Threads of the processor.
pub fn threads() -> RangedU64ValueParser<usize> {
    (1..=THREADS).into()
}

/// Lines of one prompt.
pub fn lines() -> RangedU64ValueParser<usize> {
    (1..=LINES).into()
}

/// A place in a text, from its start to its end.
pub fn depth() -> impl Number {
    number(0.0..=1.0)
}

/// Steps of a trial: more are a run.
pub fn trial_steps() -> RangedU64ValueParser<usize> {
    (1..=TRIAL_STEPS).into()
}

/// Rounds of a refinement; none is allowed.
pub fn rounds() -> RangedU64ValueParser<usize> {
    (0..=ROUNDS).into()
}

/// Draws of which one at least is made.
pub fn draws() -> RangedU64ValueParser<usize> {
    (1..=ROUNDS).into()
}

/// A part of a mixture, in any unit.
pub fn part() -> impl Number {
    number(f64::MIN_POSITIVE..=1e6)
}

/// A donor's cache over the new one's; the model bounds it from above.
pub fn ratio() -> impl Number {
    number(1.0..=f64::MAX)
}

/// A temperature; at 0 nothing is drawn.
pub fn temperature() -> impl Number {
    number(0.0..=f64::MAX)
}

/// A probability that something is to reach.
pub fn probability() -> impl Number {
    number(f64::MIN_POSITIVE..=1.0)
}

/// The weight of a token beside others of weight 1.
pub fn weight() -> impl Number {
    number(0.0..=100.0)
}

/// GiB of memory.
pub fn gib() -> impl Number {
    number(0.0..=1e6)
}

/// `6.4x` or `6.4`.
pub fn bytes_ratio() -> impl Number {
    |text: &str| {
        let number = text.strip_suffix(['x', 'X']).unwrap_or(text).trim();
        within(number, 1.0, &(1.0..=1e4)).map_err(|expected| format!("{expected}, as in 6.4x"))
    }
}

/// `5%` or `0.05`.
pub fn share() -> impl Number {
    |text: &str| {
        let range = f64::MIN_POSITIVE..=10.0;
        let (number, unit) = match text.strip_suffix('%') {
            Some(percent) => (percent.trim(), 100.0),
            None => (text.trim(), 1.0),
        };
        within(number, unit, &range).map_err(|expected| format!("{expected}, as in 5% or 0.05"))
    }
}

/// A whole number of a training run, in the range of its setting.
pub fn setting(name: &str) -> RangedU64ValueParser<usize> {
    Settings::count_range(name).into()
}

/// A number of a training run, in the range of its setting.
pub fn rate(name: &str) -> impl Number + use<> {
    number(Settings::number_range(name))
}

fn number(range: RangeInclusive<f64>) -> impl Number {
    move |text: &str| within(text, 1.0, &range)
}

/// A number over its unit; NaN is in no range.
fn within(text: &str, unit: f64, range: &RangeInclusive<f64>) -> Result<f64, String> {
    match text.parse::<f64>().map(|number| number / unit) {
        Ok(number) if range.contains(&number) => Ok(number),
        Ok(_) => Err(format!("expected {}", words(range))),
        Err(_) => Err("expected a number".into()),
    }
}

/// `0 to 10`, `more than 0, at most 1`, `1 or more`.
fn words(range: &RangeInclusive<f64>) -> String {
    match (*range.start(), *range.end()) {
        (least, f64::MAX) => format!("{least} or more"),
        (f64::MIN_POSITIVE, most) => format!("more than 0, at most {most}"),
        (least, most) => format!("{least} to {most}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_out_of_range_is_told_what_it_may_be() {
        for (parsed, expected) in [
            (ratio()("0.999"), Err("expected 1 or more")),
            (ratio()("inf"), Err("expected 1 or more")),
            (ratio()("NaN"), Err("expected 1 or more")),
            (ratio()("two"), Err("expected a number")),
            (ratio()("1e308"), Ok(1e308)),
            (probability()("0"), Err("expected more than 0, at most 1")),
            (probability()("-0.0"), Err("expected more than 0, at most 1")),
            (weight()("101"), Err("expected 0 to 100")),
            (bytes_ratio()("6.4x"), Ok(6.4)),
            (bytes_ratio()("6.4"), Ok(6.4)),
            (bytes_ratio()("0.5x"), Err("expected 1 to 10000, as in 6.4x")),
            (share()("5%"), Ok(0.05)),
            (share()("0.05"), Ok(0.05)),
            (share()("0%"), Err("expected more than 0, at most 10, as in 5% or 0.05")),
            (rate("weight_decay")("1.5"), Err("expected 0 to 1")),
        ] {
            assert_eq!(parsed.as_ref().map_err(String::as_str), expected.as_ref().map_err(|text| *text));
        }
    }
}
