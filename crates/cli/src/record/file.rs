//! `shrink.json` as it is written and read: one type, one reader.

use std::path::Path;

use calib::LayerReport;
use handlers::{ConfigJson, read_companion};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::reported::Reported;

/// The file's name.
pub const RECORD: &str = "shrink.json";

/// Where a model came from and what was done to it. A folder of an older version may lack any of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// The version that wrote the folder.
    pub shrink_version: String,
    /// The model that was converted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub donor: Option<Donor>,
    /// The method's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The method with all its parameters.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub parameters: Value,
    /// What the factors minimise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objective: Option<String>,
    /// How the budget was shared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ranks: Option<String>,
    /// How statistics were gathered.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub statistics: Value,
    /// The ratio or width on the command line.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub asked: Value,
    /// What came of it: the donor's cache over this one's, in numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression_ratio: Option<f64>,
    /// What the cache keeps its numbers as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_dtype: Option<String>,
    /// The donor's cache over this one's, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_ratio: Option<f64>,
    /// What `--dtype` said.
    pub dtype: Option<String>,
    /// The calibration text.
    pub calibration: Value,
    /// Whether sequential correction was kept.
    pub sequential: bool,
    /// Every candidate and what became of it.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub trials: Value,
    /// What was measured on text by which nothing was chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reported: Option<Reported>,
    /// One entry a layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<LayerReport>>,
    /// Settings and steps of a training run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub training: Option<Value>,
    /// What this version does not know, and the list of files.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The model that was converted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Donor {
    /// A hub id and commit, or a path.
    pub name: String,
    /// SHA-256 over its weight files in their order.
    #[serde(default)]
    pub weights_sha256: String,
}

impl Record {
    /// The record of a folder; `None` where it has none.
    ///
    /// # Errors
    /// When it is no record.
    pub fn read(folder: &Path) -> Result<Option<Self>, handlers::Error> {
        let path = folder.join(RECORD);
        match read_companion(folder, RECORD)? {
            None => Ok(None),
            Some(bytes) => {
                let json = ConfigJson::from_bytes(&path, &bytes)?;
                let record = Self::deserialize(Value::Object(json.fields().clone()));
                record.map(Some).map_err(|source| handlers::Error::Json { path, source })
            }
        }
    }

    /// What still holds of a model whose weights were changed: neither what was measured before nor the spectra, by which latents
    /// are cut short.
    #[must_use]
    pub fn of_other_weights(mut self) -> Self {
        (self.trials, self.reported, self.layers) = (Value::Null, None, None);
        self
    }

    /// As others may read it: a path of this machine is the last part of it.
    #[must_use]
    pub fn without_paths(&self) -> Self {
        let mut value = serde_json::to_value(self).expect("a record is plain data");
        bare_paths(&mut value);
        Self::deserialize(value).expect("a record is a record still")
    }

    /// As it is written.
    pub fn bytes(&self) -> Vec<u8> {
        let value = serde_json::to_value(self).expect("a record is plain data");
        format!("{value:#}\n").into_bytes()
    }
}

/// Has every text that begins as an absolute path be its last part; several after one another, each.
fn bare_paths(value: &mut Value) {
    match value {
        Value::String(text) => {
            let bare = |part: &str| match part.starts_with(['/', '~']) || Path::new(part).is_absolute() {
                true => part.rsplit(['/', '\\']).next().unwrap_or("").to_owned(),
                false => part.to_owned(),
            };
            *text = text.split(", ").map(bare).collect::<Vec<_>>().join(", ");
        }
        Value::Array(values) => values.iter_mut().for_each(bare_paths),
        Value::Object(fields) => fields.values_mut().for_each(bare_paths),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
