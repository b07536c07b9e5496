//! Windows of a text, and which of them serve what.

use std::collections::BTreeSet;

/// How many windows of a text serve what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// To fit to.
    pub fit: usize,
    /// To choose plans by.
    pub select: usize,
    /// To report on.
    pub report: usize,
}

impl Counts {
    /// Windows in all.
    pub fn all(self) -> usize {
        self.fit + self.select + self.report
    }
}

/// Windows of one text; none serves two purposes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// To fit to.
    pub fit: Vec<Vec<u32>>,
    /// To choose plans by.
    pub select: Vec<Vec<u32>>,
    /// To report on.
    pub report: Vec<Vec<u32>>,
}

/// Cuts a text: windows to fit to, spread evenly, and between them those to measure on. A text that has none to spare gives some
/// of those to fit to: every eighth to choose by, and where there are sixteen every eighth to report on.
pub fn split(tokens: &[u32], length: usize, counts: Counts) -> Parts {
    let all: Vec<&[u32]> = tokens.chunks_exact(length.max(1)).collect();
    let fit = counts.fit.min(all.len());
    let fitted: Vec<usize> = (0..fit).map(|i| i * all.len() / fit).collect();
    let of = |places: &[usize]| places.iter().map(|&place| all[place].to_vec()).collect();
    let aside = counts.select + counts.report;
    if all.len() >= fit + aside {
        let used: BTreeSet<usize> = fitted.iter().copied().collect();
        let spare: Vec<usize> = (0..all.len()).filter(|window| !used.contains(window)).collect();
        let picked: Vec<usize> = (0..aside).map(|i| spare[(2 * i + 1) * spare.len() / (2 * aside)]).collect();
        // Both kinds are spread over the text: as evenly among those picked as their numbers allow.
        let selects = |i: usize| (i + 1) * counts.select / aside > i * counts.select / aside;
        let (select, report): (Vec<_>, Vec<_>) = (0..aside).partition(|&i| selects(i));
        let at = |places: Vec<usize>| places.into_iter().map(|i| picked[i]).collect::<Vec<_>>();
        return Parts { fit: of(&fitted), select: of(&at(select)), report: of(&at(report)) };
    }
    // Every eighth, from the middle of each eight; a single window cannot be split.
    let is_select = |i: usize| fit > 1 && i % 8 == 4.min(fit - 1) && i / 8 < counts.select;
    let is_report = |i: usize| fit >= 16 && i % 8 == 1 && i / 8 < counts.report;
    let mut parts = Parts::default();
    for (i, &place) in fitted.iter().enumerate() {
        let part = match (is_select(i), is_report(i)) {
            (true, _) => &mut parts.select,
            (_, true) => &mut parts.report,
            _ => &mut parts.fit,
        };
        part.push(all[place].to_vec());
    }
    parts
}

/// Whole numbers in the ratio of some shares that add up to `total` (largest remainders; of equals the first).
pub fn apportion(total: usize, shares: &[f64]) -> Vec<usize> {
    let sum: f64 = shares.iter().sum();
    let exact: Vec<f64> = shares.iter().map(|share| total as f64 * share / sum).collect();
    let mut whole: Vec<usize> = exact.iter().map(|x| x.floor() as usize).collect();
    let mut order: Vec<usize> = (0..shares.len()).collect();
    let rest = |i: &usize| exact[*i] - exact[*i].floor();
    order.sort_by(|a, b| rest(b).total_cmp(&rest(a)).then(a.cmp(b)));
    let missing = total.saturating_sub(whole.iter().sum());
    order.into_iter().take(missing).for_each(|i| whole[i] += 1);
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(fit: usize) -> Counts {
        Counts { fit, select: 4, report: 8 }
    }

    #[test]
    fn windows_are_spread_evenly_and_never_short() {
        let tokens: Vec<u32> = (0..103).collect();
        let none = |fit| Counts { fit, select: 0, report: 0 };
        let parts = split(&tokens, 10, none(3));
        assert_eq!(parts.fit.iter().map(|w| w[0]).collect::<Vec<_>>(), [0, 30, 60]);
        assert_eq!(split(&tokens, 10, none(99)).fit.len(), 10);
        assert_eq!(split(&tokens[..9], 10, counts(3)), Parts::default());
    }

    #[test]
    fn no_window_serves_two_purposes() {
        let tokens: Vec<u32> = (0..1000).collect();
        for (length, fit, expected) in [
            (10, 32, (32, 4, 8)),
            (10, 88, (88, 4, 8)),
            (10, 100, (88, 4, 8)),
            (10, 97, (85, 4, 8)),
            (100, 10, (9, 1, 0)),
            (500, 2, (1, 1, 0)),
            (600, 5, (1, 0, 0)),
        ] {
            let Parts { fit, select, report } = split(&tokens, length, counts(fit));
            assert_eq!((fit.len(), select.len(), report.len()), expected, "{length}");
            let all: BTreeSet<&Vec<u32>> = fit.iter().chain(&select).chain(&report).collect();
            assert_eq!(all.len(), fit.len() + select.len() + report.len(), "{length}");
        }
    }

    #[test]
    fn shares_add_up() {
        assert_eq!(apportion(128, &[1.0, 1.0]), [64, 64]);
        assert_eq!(apportion(7, &[2.0, 1.0, 1.0]), [3, 2, 2]);
        assert_eq!(apportion(3, &[1.0; 7]), [1, 1, 1, 0, 0, 0, 0]);
    }
}
