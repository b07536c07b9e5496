//! `quality.json`: what was measured, kept raw, and models measured at different times in one file.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::setting::Setting;
use super::Subject;

/// What makes two numbers comparable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Protocol {
    /// The text calibrated on.
    pub calibration: String,
    /// Windows of it, spread evenly.
    pub calibration_windows: usize,
    /// Tokens a window.
    pub calibration_length: usize,
    /// The texts measured on, each for itself.
    pub texts: Vec<String>,
    /// Windows of each, from its start.
    pub windows: usize,
    /// Tokens a window.
    pub length: usize,
    /// The donor's cache over the model's.
    pub ratios: Vec<f64>,
}

/// The file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// One for all models.
    pub protocol: Protocol,
    /// The models measured so far.
    pub models: Vec<Measured>,
}

/// One model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Its name in the tables.
    pub name: String,
    /// Its folder.
    pub folder: String,
    /// What a reader must know of it.
    pub about: String,
    /// What the program was asked, in the order of the grid.
    pub answers: Vec<Answer>,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// As it could be typed.
    pub command: String,
    /// Where and when.
    pub setting: Setting,
    /// Wall time.
    pub elapsed_s: f64,
    /// What it printed.
    pub compared: Value,
}

/// One configuration at one ratio, as the tables want it.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// The method, e.g. `cascade`.
    pub method: String,
    /// The method with the parameter that tells its configurations apart, e.g. `cascade w7`.
    pub label: String,
    /// The metric.
    pub objective: String,
    /// The allocation.
    pub ranks: String,
    /// Which of the protocol's ratios this is.
    pub ratio: f64,
    /// Of all layers, at 16 bit.
    pub cache_bytes_a_token: f64,
    /// Perplexity over the donor's, a text each.
    pub relative: Vec<f64>,
}

impl Protocol {
    /// The one of the published numbers.
    pub fn full() -> Self {
        Self {
            calibration: "calib.txt".into(),
            calibration_windows: 32,
            calibration_length: 512,
            texts: vec!["heldout.txt".into(), "mobydick.txt".into()],
            windows: 10,
            length: 512,
            ratios: vec![2.0, 4.0, 8.0],
        }
    }

    /// As little as runs through.
    pub fn quick() -> Self {
        Self { calibration_windows: 2, windows: 2, ratios: vec![4.0], ..Self::full() }
    }
}

impl Record {
    /// Reads the file; an empty record where there is none.
    ///
    /// # Errors
    /// When it is damaged, or its numbers were measured by another protocol.
    pub fn load(path: &Path, protocol: &Protocol) -> Result<Self> {
        if !path.exists() {
            return Ok(Self { protocol: protocol.clone(), models: Vec::new() });
        }
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let record: Self =
            serde_json::from_str(&text).with_context(|| format!("{} is no such record", path.display()))?;
        if record.protocol != *protocol {
            bail!("{} was measured by another protocol; remove it or choose another --out", path.display());
        }
        Ok(record)
    }

    /// The entry of a model, made where the order of the page wants it. What it was asked other than `commands` is
    /// forgotten, and so is everything unless it is to be kept.
    pub fn begin(&mut self, subject: Subject, commands: &[String], keep: bool) -> &mut Measured {
        let name = subject.name();
        if !self.models.iter().any(|model| model.name == name) {
            self.models.push(Measured { name: name.into(), ..Measured::default() });
        }
        let place = |name: &str| Subject::ALL.iter().position(|subject| subject.name() == name);
        self.models.sort_by_key(|model| place(&model.name));
        let model = self.models.iter_mut().find(|model| model.name == name).expect("it was made");
        model.folder = subject.folder().into();
        model.about = subject.about().into();
        model.answers.retain(|answer| keep && commands.contains(&answer.command));
        model
    }

    /// The file's text.
    pub fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

impl Measured {
    /// The donor's perplexity on each text.
    ///
    /// # Errors
    /// When the program printed something else.
    pub fn donor(&self) -> Result<Vec<f64>> {
        let texts = self.first()["texts"].as_array().context("shrink compare printed no texts")?;
        texts.iter().map(|text| number(&text["donor_perplexity"], "donor_perplexity")).collect()
    }

    /// Cache bytes of the donor, a token at 16 bit.
    ///
    /// # Errors
    /// As [`donor`](Self::donor).
    pub fn donor_cache_bytes(&self) -> Result<f64> {
        let field = "donor_cached_numbers_a_token";
        Ok(2.0 * number(&self.first()[field], field)?)
    }

    /// Every configuration at every ratio, in the order measured.
    ///
    /// # Errors
    /// As [`donor`](Self::donor).
    pub fn points(&self, protocol: &Protocol) -> Result<Vec<Point>> {
        let donor = self.donor()?;
        let plans = |answer: &Answer| answer.compared["plans"].as_array().cloned().unwrap_or_default();
        self.answers.iter().flat_map(plans).map(|plan| point(&plan, &donor, &protocol.ratios)).collect()
    }

    /// What the first process printed, null where there was none.
    fn first(&self) -> &Value {
        self.answers.first().map_or(&Value::Null, |answer| &answer.compared)
    }
}

fn point(plan: &Value, donor: &[f64], ratios: &[f64]) -> Result<Point> {
    let text = |field: &str| {
        let found = plan[field].as_str().with_context(|| format!("shrink compare printed no {field}"))?;
        Ok::<_, anyhow::Error>(found.to_owned())
    };
    let perplexity = plan["perplexity"].as_array().context("shrink compare printed no perplexity")?;
    let relative =
        perplexity.iter().zip(donor).map(|(found, donor)| Ok(number(found, "perplexity")? / donor));
    // Whole latent numbers make the ratio found a little other than the one asked for.
    let found = number(&plan["compression_ratio"], "compression_ratio")?;
    let distance = |ratio: &f64| (found / ratio).ln().abs();
    let ratio = ratios.iter().copied().min_by(|a, b| distance(a).total_cmp(&distance(b)));
    // `cascade w7 fisher global`: what stands before the metric and the ranks.
    let name = text("name")?;
    let words: Vec<&str> = name.split_whitespace().collect();
    Ok(Point {
        method: text("method")?,
        label: words[..words.len().saturating_sub(2)].join(" "),
        objective: text("objective")?,
        ranks: text("ranks")?,
        ratio: ratio.unwrap_or(found),
        cache_bytes_a_token: 2.0 * number(&plan["cached_numbers_a_token"], "cached_numbers_a_token")?,
        relative: relative.collect::<Result<_>>()?,
    })
}

fn number(value: &Value, field: &str) -> Result<f64> {
    value.as_f64().with_context(|| format!("shrink compare printed no {field}"))
}

/// A record of one model, for tests: `rows` are name, ratio and perplexities, the donor's are 10 and 20.
#[cfg(test)]
pub fn sample(name: &str, rows: &[(&str, f64, [f64; 2])]) -> Measured {
    use serde_json::json;
    let plan = |&(name, ratio, perplexity): &(&str, f64, [f64; 2])| {
        let words: Vec<&str> = name.split(' ').collect();
        let [.., objective, ranks] = words.as_slice() else { panic!("metric and ranks: {name}") };
        json!({
            "name": name, "method": words[0], "objective": objective, "ranks": ranks, "compression_ratio": ratio,
            "cached_numbers_a_token": (768.0 / ratio) as u64, "perplexity": perplexity,
        })
    };
    let texts = [json!({ "donor_perplexity": 10.0 }), json!({ "donor_perplexity": 20.0 })];
    let setting = Setting {
        date: "2025-01-31".into(),
        program: "shrink 0.1.0".into(),
        revision: "abc".into(),
        processor: "CPU".into(),
        cores: 2,
    };
    let compared = json!({
        "donor_cached_numbers_a_token": 768,
        "texts": texts,
        "plans": rows.iter().map(plan).collect::<Vec<_>>(),
    });
    Measured {
        name: name.into(),
        folder: format!("{name}-folder"),
        about: format!("About {name}."),
        answers: vec![Answer {
            command: format!("shrink compare {name}"),
            setting,
            elapsed_s: 90.0,
            compared,
        }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record { protocol: Protocol::full(), models: Vec::new() }
    }

    #[test]
    fn models_stand_in_the_order_of_the_page_and_keep_only_what_is_asked_again() {
        let mut record = record();
        let commands = ["shrink compare mha".to_owned()];
        record.models =
            vec![sample("qwen2", &[]), sample("mha", &[("joint mse uniform", 2.0, [12.0, 24.0])])];
        assert!(record.begin(Subject::Llama, &[], true).answers.is_empty());
        assert_eq!(record.begin(Subject::Mha, &commands, true).answers.len(), 1);
        let names: Vec<_> = record.models.iter().map(|model| model.name.as_str()).collect();
        assert_eq!(names, ["llama", "mha", "qwen2"]);
        let points = record.models[1].points(&record.protocol).expect("complete");
        assert_eq!((points.len(), points[0].label.as_str()), (1, "joint"));
        assert!(record.begin(Subject::Mha, &["another".into()], true).answers.is_empty());
        assert!(record.begin(Subject::Qwen2, &["shrink compare qwen2".into()], false).answers.is_empty());
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_not_by_another_protocol() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("quality.json");
        let mut record = record();
        assert_eq!(Record::load(&path, &record.protocol).expect("nothing yet"), record);
        record.models.push(sample("llama", &[("cascade w7 fisher global", 4.01, [10.5, 30.0])]));
        fs::write(&path, record.json().expect("json")).expect("written");
        assert_eq!(Record::load(&path, &record.protocol).expect("the same"), record);
        let error = Record::load(&path, &Protocol::quick()).expect_err("other windows");
        assert!(error.to_string().contains("another protocol"), "{error}");
    }

    #[test]
    fn points_are_relative_to_the_donor_and_belong_to_the_ratio_asked_for() {
        let measured = sample("llama", &[("cascade w7 fisher global", 4.2, [10.5, 30.0])]);
        let points = measured.points(&Protocol::full()).expect("complete");
        assert_eq!((points[0].method.as_str(), points[0].label.as_str()), ("cascade", "cascade w7"));
        assert_eq!((points[0].ratio, &points[0].relative[..]), (4.0, &[1.05, 1.5][..]));
        assert_eq!(points[0].cache_bytes_a_token, 2.0 * 182.0);
    }

    #[test]
    fn what_the_program_left_out_is_named() {
        let mut measured = sample("llama", &[("joint mse uniform", 2.0, [1.0, 1.0])]);
        measured.answers[0].compared["plans"][0]["perplexity"] = Value::Null;
        let error = measured.points(&Protocol::full()).expect_err("no perplexity");
        assert!(error.to_string().contains("perplexity"), "{error}");
    }
}
