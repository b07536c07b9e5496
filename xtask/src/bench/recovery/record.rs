//! `recovery.json`: what was converted, how it was trained, and what was measured before and after.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::super::setting::Setting;

/// What makes two runs comparable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Protocol {
    /// The text calibrated on and trained on.
    pub training: String,
    /// Windows of calibration, spread evenly, and tokens of each.
    pub calibration: [usize; 2],
    /// Steps of a run.
    pub steps: usize,
    /// Windows a step, and tokens of each.
    pub batch: [usize; 2],
    /// The texts measured on.
    pub texts: Vec<String>,
    /// Windows of each, from its start.
    pub windows: usize,
    /// Tokens of each.
    pub window_length: usize,
}

/// The file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// One for all runs.
    pub protocol: Protocol,
    /// The donor's perplexity on each text.
    pub donor: Vec<f64>,
    /// What was run, in the order of the page.
    pub runs: Vec<Run>,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// What was trained, by its name.
    pub conversion: String,
    /// How.
    pub trained: Trained,
    /// As it could be typed.
    pub command: String,
    /// Where and when.
    pub setting: Option<Setting>,
    /// Wall time with the measurements.
    pub elapsed_s: f64,
    /// Wall time of the training.
    pub train_s: f64,
    /// Its peak memory.
    pub peak_bytes: u64,
    /// `max |W_upᵀ W_up − I|` at its end.
    pub orthonormality: f64,
    /// Perplexity before, on each text.
    pub before: Vec<f64>,
    /// Perplexity after.
    pub after: Vec<f64>,
}

/// A model to train.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversion {
    /// In the tables and on the command line.
    pub name: &'static str,
    /// Beside calibration, which all share.
    pub flags: &'static [&'static str],
    /// The rates of W_down and of W_up that brought back most of what docs/training.md lists.
    pub found: (f64, f64),
}

/// A way to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trained {
    /// The loss.
    pub loss: String,
    /// Learning rate of W_down.
    pub euclidean_lr: f64,
    /// Learning rate of W_up.
    pub riemannian_lr: f64,
    /// Whether the rates are those that cacheshrink defaults to.
    pub is_cacheshrinks: bool,
}

/// What cacheshrink defaults to.
const CACHESHRINK: (f64, f64) = (1e-5, 1e-4);
/// The control: all ranks full, so that it is the donor to rounding, with the matrices that train in its place.
const CONTROL: &str = "donor";

/// The models that are trained.
pub fn conversions() -> [Conversion; 4] {
    let separate = |name, flags| Conversion { name, flags, found: (3e-3, 1e-2) };
    // A cascade's matrices read the latents of many layers, and go astray at rates that the others bear.
    let cascade = |name, flags| Conversion { name, flags, found: (3e-5, 3e-4) };
    [
        separate("separate 4x", &["--method", "separate", "--compression-ratio", "4"]),
        cascade("cascade 4x", &["--method", "cascade", "--cascade-window", "7", "--compression-ratio", "4"]),
        cascade("cascade 8x", &["--method", "cascade", "--cascade-window", "7", "--compression-ratio", "8"]),
        separate(CONTROL, &["--method", "separate", "--compression-ratio", "1"]),
    ]
}

impl Protocol {
    /// The one of the published numbers.
    pub fn full() -> Self {
        Self {
            training: "calib.txt".into(),
            calibration: [32, 512],
            steps: 100,
            batch: [4, 128],
            texts: vec!["heldout.txt".into(), "mobydick.txt".into()],
            windows: 10,
            window_length: 512,
        }
    }

    /// As little as runs through.
    pub fn quick() -> Self {
        Self { calibration: [4, 128], steps: 2, windows: 2, ..Self::full() }
    }
}

impl Conversion {
    /// Whether nothing is lost, so that training shows what a new text alone brings.
    pub fn is_control(&self) -> bool {
        self.name == CONTROL
    }

    /// How it is trained. A donor imitating itself learns nothing by `kl`.
    pub fn trained(&self) -> Vec<Trained> {
        let losses: &[&str] = match self.is_control() {
            true => &["reconstruction", "distillation"],
            false => &["reconstruction", "distillation", "kl"],
        };
        let of = |loss: &&str| {
            let loss = (*loss).to_owned();
            [CACHESHRINK, self.found].map(|rates| Trained {
                loss: loss.clone(),
                euclidean_lr: rates.0,
                riemannian_lr: rates.1,
                is_cacheshrinks: rates == CACHESHRINK,
            })
        };
        losses.iter().flat_map(of).collect()
    }

    /// `shrink convert …`.
    pub fn arguments(&self, protocol: &Protocol, model: &Path, text: &Path, out: &Path) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["convert".into(), model.into(), "--output".into(), out.into()];
        args.extend(self.flags.iter().map(OsString::from));
        args.extend(
            ["--objective", "fisher", "--ranks", "global", "--store-original-weights"].map(OsString::from),
        );
        args.extend(["--calibration".into(), text.into()]);
        let [windows, length] = protocol.calibration.map(|n| n.to_string().into());
        args.extend(["--num-calibration-samples".into(), windows, "--max-calibration-length".into(), length]);
        args
    }
}

impl Trained {
    /// `shrink train …`.
    pub fn arguments(
        &self,
        protocol: &Protocol,
        donor: &Path,
        text: &Path,
        model: &Path,
        out: &Path,
    ) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["train".into(), model.into(), "--output".into(), out.into()];
        args.extend(["--data".into(), text.into(), "--teacher".into(), donor.into()]);
        args.extend(["--loss".into(), (&self.loss).into()]);
        let numbers = [
            ("--euclidean-lr", self.euclidean_lr.to_string()),
            ("--riemannian-lr", self.riemannian_lr.to_string()),
            ("--max-steps", protocol.steps.to_string()),
            ("--batch-size", protocol.batch[0].to_string()),
            ("--max-length", protocol.batch[1].to_string()),
        ];
        args.extend(numbers.into_iter().flat_map(|(flag, number)| [OsString::from(flag), number.into()]));
        args
    }
}

impl fmt::Display for Trained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:e} and {:e}", self.loss, self.euclidean_lr, self.riemannian_lr)
    }
}

impl Run {
    /// What share of the lost log-perplexity came back, on each text; `None` where next to nothing was lost.
    pub fn recovered(&self, donor: &[f64]) -> Vec<Option<f64>> {
        let share = |((before, after), donor): ((&f64, &f64), &f64)| {
            let lost = (before / donor).ln();
            (lost > 1e-3).then(|| (before / after).ln() / lost)
        };
        self.before.iter().zip(&self.after).zip(donor).map(share).collect()
    }
}

impl Record {
    /// Reads the file; an empty record where there is none.
    ///
    /// # Errors
    /// When it is damaged, or its runs followed another protocol.
    pub fn load(path: &Path, protocol: &Protocol) -> Result<Self> {
        if !path.exists() {
            return Ok(Self { protocol: protocol.clone(), donor: Vec::new(), runs: Vec::new() });
        }
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let record: Self =
            serde_json::from_str(&text).with_context(|| format!("{} is no such record", path.display()))?;
        if record.protocol != *protocol {
            bail!("{} was measured by another protocol; remove it or choose another --out", path.display());
        }
        Ok(record)
    }

    /// Whether this run is there.
    pub fn has(&self, conversion: &Conversion, trained: &Trained) -> bool {
        self.runs.iter().any(|run| run.conversion == conversion.name && run.trained == *trained)
    }

    /// Adds a run where the order of the page wants it.
    pub fn keep(&mut self, run: Run) {
        self.runs.push(run);
        let place = |run: &Run| {
            let conversion = conversions().iter().position(|known| known.name == run.conversion);
            let trained = conversions()[conversion.unwrap_or(0)]
                .trained()
                .iter()
                .position(|known| *known == run.trained);
            (conversion, trained)
        };
        self.runs.sort_by_key(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_back_is_a_share_of_the_lost_logarithm() {
        let run = |before: f64, after: f64| Run {
            conversion: "separate 4x".into(),
            trained: conversions()[0].trained()[0].clone(),
            command: String::new(),
            setting: None,
            elapsed_s: 0.0,
            train_s: 0.0,
            peak_bytes: 0,
            orthonormality: 0.0,
            before: vec![before],
            after: vec![after],
        };
        let share = |before, after| run(before, after).recovered(&[10.0])[0];
        assert!(share(40.0, 20.0).is_some_and(|share| (share - 0.5).abs() < 1e-12));
        assert!(share(40.0, 80.0).is_some_and(|share| share < 0.0), "made worse");
        assert_eq!(share(10.0, 9.0), None, "nothing was lost");
    }

    #[test]
    fn runs_stand_in_the_order_of_the_page_whatever_came_first() {
        let mut record = Record { protocol: Protocol::quick(), donor: vec![], runs: vec![] };
        let all: Vec<(Conversion, Trained)> = conversions()
            .into_iter()
            .flat_map(|conversion| {
                conversion.trained().into_iter().map(move |trained| (conversion.clone(), trained))
            })
            .collect();
        assert_eq!(all.len(), 22);
        for (conversion, trained) in all.iter().rev() {
            assert!(!record.has(conversion, trained));
            record.keep(Run {
                conversion: conversion.name.into(),
                trained: trained.clone(),
                command: String::new(),
                setting: None,
                elapsed_s: 0.0,
                train_s: 0.0,
                peak_bytes: 0,
                orthonormality: 0.0,
                before: vec![],
                after: vec![],
            });
            assert!(record.has(conversion, trained));
        }
        let order: Vec<_> = record.runs.iter().map(|run| (run.conversion.as_str(), &run.trained)).collect();
        let expected: Vec<_> = all.iter().map(|(conversion, trained)| (conversion.name, trained)).collect();
        assert_eq!(order, expected);
    }
}
