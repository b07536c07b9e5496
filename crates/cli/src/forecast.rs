//! `--dry-run`: what a conversion would take on this machine, and whether it fits.

use std::path::Path;
use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor};
use calib::{Options, Plan, Prediction, Speed, TextSize, predict};
use handlers::Model;
use mla_core::WeightSource;
use serde_json::{Value, json};

use crate::calibration::Mixture;
use crate::convert::Request;
use crate::error::UserError;
use crate::machine::{disk_available, memory_available};
use crate::report::bytes;
use crate::session::Session;

/// What a conversion would take, and what there is.
#[derive(Clone, Copy, Debug)]
pub struct Forecast {
    task: &'static str,
    prediction: Prediction,
    output_bytes: u64,
    memory_available: Option<u64>,
    disk_available: Option<u64>,
}

/// Predicts a conversion. Times a product on the device for it, a fraction of a second.
pub fn forecast(
    session: &Session,
    donor: &Model,
    request: &Request,
    calibration: Option<&Mixture>,
    scratch_memory: u64,
    folder: &Path,
) -> Forecast {
    let config = donor.config();
    let speed = speed(&session.device, config.d_model);
    let text = calibration.map(text_size);
    let prediction = predict(config, &request.plans, text, &request.options, scratch_memory, speed);
    Forecast {
        task: "the conversion",
        prediction,
        output_bytes: donor.checkpoint().file_bytes().saturating_add(prediction.factor_bytes),
        memory_available: memory_available(),
        disk_available: disk_available(folder),
    }
}

/// Predicts what a comparison keeps of its text and its fits, beside what running a model takes. Its time is not known.
pub fn comparison(
    donor: &Model,
    plans: &[Plan],
    options: &Options,
    calibration: Option<&Mixture>,
    scratch_memory: u64,
    folder: &Path,
) -> Forecast {
    let config = donor.config();
    let speed = Speed { flops: f64::INFINITY, weights: f64::INFINITY };
    Forecast {
        task: "the comparison",
        prediction: predict(config, plans, calibration.map(text_size), options, scratch_memory, speed),
        output_bytes: 0,
        memory_available: memory_available(),
        disk_available: disk_available(folder),
    }
}

fn text_size(calibration: &Mixture) -> TextSize {
    let counts = calibration.counts();
    TextSize {
        windows: counts.fit,
        select: counts.select,
        report: counts.report,
        length: calibration.length,
        sampled: calibration.sampled_windows(),
    }
}

impl Forecast {
    /// Refuses what cannot fit.
    ///
    /// # Errors
    /// When memory or disk would run out.
    pub fn check(&self) -> Result<(), UserError> {
        let short = |what, needed: u64, available: Option<u64>| match available {
            Some(available) if needed > available => Err(UserError::TooLarge {
                task: self.task,
                what,
                needed: bytes(needed),
                available: bytes(available),
            }),
            _ => Ok(()),
        };
        short("memory", self.prediction.peak_memory_bytes, self.memory_available)?;
        short("disk", self.prediction.scratch_bytes.saturating_add(self.output_bytes), self.disk_available)
    }

    /// For `--json`.
    pub fn object(&self) -> Value {
        json!({
            "predicted": {
                "seconds": self.prediction.seconds,
                "peak_memory_bytes": self.prediction.peak_memory_bytes,
                "scratch_bytes": self.prediction.scratch_bytes,
                "output_bytes": self.output_bytes,
            },
            "available": { "memory_bytes": self.memory_available, "disk_bytes": self.disk_available },
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        let of =
            |available: Option<u64>| available.map_or(String::new(), |n| format!(" of {} free", bytes(n)));
        format!(
            "time about {}\nmemory {}{}\ndisk {} for the result, {} while it runs{}\n",
            duration(self.prediction.seconds),
            bytes(self.prediction.peak_memory_bytes),
            of(self.memory_available),
            bytes(self.output_bytes),
            bytes(self.prediction.scratch_bytes),
            of(self.disk_available),
        )
    }
}

/// Products of the shapes that a conversion is made of, timed.
fn speed(device: &Device, d_model: usize) -> Speed {
    let rows = 1024;
    let random = |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Uniform(-1.0, 1.0), device);
    let d_model = d_model.min(2048);
    let (a, b) = (random([rows, d_model]), random([d_model, 4 * d_model]));
    // The first product pays for threads and pages.
    let product = |_| {
        let begun = Instant::now();
        drop(a.clone().matmul(b.clone()).into_data());
        begun.elapsed().as_secs_f64()
    };
    let fastest = (0..4).map(product).fold(f64::INFINITY, f64::min).max(1e-9);
    let operations = 2.0 * (rows * d_model * 4 * d_model) as f64;
    let begun = Instant::now();
    drop(Tensor::<2>::from_data(b.transpose().into_data(), device).into_data());
    let laid_out = (4 * d_model * d_model) as f64 / begun.elapsed().as_secs_f64().max(1e-9);
    // Beside its products a pass has norms, nonlinearities and softmaxes; beside its layout a weight is read and widened.
    Speed { flops: PRODUCTS_SHARE * operations / fastest, weights: LAYOUT_SHARE * laid_out }
}

/// Share of the time of a pass that its products take.
const PRODUCTS_SHARE: f64 = 0.6;
/// Share of the time of loading a weight that laying it out takes.
const LAYOUT_SHARE: f64 = 0.5;

/// `8 s`, `3 min`, `2.5 h`.
fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_come_in_the_unit_that_reads_best() {
        assert_eq!([8.4, 200.0, 9000.0].map(duration), ["8 s", "3 min", "2.5 h"]);
    }
}
