//! What is said of a conversion's loss: its KL to the donor on windows by which nothing was chosen, and how sure that is.

use std::ops::Range;

use calib::Conversion;
use serde::{Deserialize, Serialize};

use super::Measured;
use crate::calibration::Calibration;

/// The KL to the donor, in nats a token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reported {
    /// Mean over all windows.
    pub kl: f64,
    /// Standard error of the mean, each kind of text a stratum (Cochran 1977, §5.3); `None` of one window.
    pub standard_error: Option<f64>,
    /// Tokens that it was measured on.
    pub tokens: usize,
    /// Mean of each kind of text, where there are several.
    pub kinds: Vec<OfKind>,
}

/// The KL on one kind of text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OfKind {
    /// The kind.
    pub name: String,
    /// Mean over its windows.
    pub kl: f64,
}

impl Reported {
    /// What a conversion measured on the windows to report on; `None` where there are none.
    pub fn of(conversion: &Conversion, text: &Calibration) -> Option<Self> {
        let windows = &conversion.reported;
        if windows.is_empty() {
            return None;
        }
        let mut strata: Vec<(&str, Range<usize>)> = Vec::new();
        for kind in &text.kinds {
            let first = strata.last().map_or(0, |(_, range)| range.end);
            strata.push((&kind.name, first..first + kind.counts.report));
        }
        strata.retain(|(_, range)| !range.is_empty());
        let kinds = match strata.len() {
            1 => Vec::new(),
            _ => {
                let of = |(name, range): &(&str, Range<usize>)| OfKind {
                    name: (*name).into(),
                    kl: mean(&windows[range.clone()]),
                };
                strata.iter().map(of).collect()
            }
        };
        let tokens = text.report.iter().map(Vec::len).sum();
        let ranges: Vec<Range<usize>> = strata.into_iter().map(|(_, range)| range).collect();
        Some(Self { kl: mean(windows), standard_error: standard_error(windows, &ranges), tokens, kinds })
    }

    /// For people.
    pub fn text(&self) -> String {
        let kinds: Vec<String> =
            self.kinds.iter().map(|kind| format!("{} {:.4}", kind.name, kind.kl)).collect();
        let by_kind =
            if kinds.is_empty() { String::new() } else { format!("by kind: {}\n", kinds.join(", ")) };
        format!(
            "KL to the donor on {} tokens not used to choose: {} nats a token\n{by_kind}",
            self.tokens,
            self.kl_text()
        )
    }

    /// For the card.
    pub fn rows(&self) -> Vec<Measured> {
        let whole = (
            format!("KL to the base model, {} tokens not used to choose", self.tokens),
            format!("{} nats a token", self.kl_text()),
        );
        let of = |kind: &OfKind| (format!("- {}", kind.name), format!("{:.4}", kind.kl));
        std::iter::once(whole).chain(self.kinds.iter().map(of)).collect()
    }

    /// `0.1234 ± 0.0056`.
    pub fn kl_text(&self) -> String {
        match self.standard_error {
            Some(error) => format!("{:.4} ± {error:.4}", self.kl),
            None => format!("{:.4}", self.kl),
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The standard error of the mean of all windows, of which each stratum has its share for certain. Where a stratum has a single
/// window, its spread is not known, and all windows count as one stratum.
fn standard_error(windows: &[f64], strata: &[Range<usize>]) -> Option<f64> {
    let whole = 0..windows.len();
    let single = strata.iter().any(|stratum| stratum.len() < 2);
    let strata = if single { std::slice::from_ref(&whole) } else { strata };
    let variance = |stratum: &Range<usize>| {
        let values = &windows[stratum.clone()];
        let (n, mean) = (values.len() as f64, mean(values));
        let spread = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
        (n / windows.len() as f64).powi(2) * spread / n
    };
    (windows.len() > 1).then(|| strata.iter().map(variance).sum::<f64>().sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_that_within_kinds_and_not_between_them() {
        let windows = [1.0, 3.0, 11.0, 13.0];
        // Each kind has variance 2 and a weight of a half: (1/4 · 2/2) · 2 = 1/2.
        let strata = [0..2, 2..4];
        assert!((standard_error(&windows, &strata).expect("four windows") - 0.5f64.sqrt()).abs() < 1e-12);
        let one = standard_error(&windows, &[0..1, 1..4]).expect("four windows");
        assert!((one - (104.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12, "{one}");
        assert_eq!(standard_error(&[1.0], &strata[..1]), None, "one window has no spread");
    }
}
