//! `config.json` with typed access and errors that name the field.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::Error;
use crate::lfs;

/// A configuration file and where it came from.
#[derive(Clone, Debug)]
pub struct ConfigJson {
    path: PathBuf,
    fields: Map<String, Value>,
}

impl ConfigJson {
    /// Reads a JSON object.
    ///
    /// # Errors
    /// When the file cannot be read, is a Git LFS pointer, or no JSON object.
    pub fn read(path: &Path) -> Result<Self, Error> {
        Self::from_bytes(path, &std::fs::read(path).map_err(Error::io("read", path))?)
    }

    /// A JSON object that was read already; `path` is used in errors.
    ///
    /// # Errors
    /// When it is a Git LFS pointer, or no JSON object.
    pub fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self, Error> {
        if lfs::is_pointer(bytes) {
            return Err(Error::LfsPointer { path: path.into() });
        }
        let value: Value =
            serde_json::from_slice(bytes).map_err(|source| Error::Json { path: path.into(), source })?;
        match value {
            Value::Object(fields) => Ok(Self { path: path.into(), fields }),
            other => Err(Self { path: path.into(), fields: Map::new() }.bad("", "an object", &other)),
        }
    }

    /// Wraps an object that is already in memory; `path` is used in errors.
    pub fn from_fields(path: impl Into<PathBuf>, fields: Map<String, Value>) -> Self {
        Self { path: path.into(), fields }
    }

    /// Where the object came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All fields, in the order of the file.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// A field; JSON `null` counts as absent.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    /// A nested object.
    ///
    /// # Errors
    /// When the field is something else.
    pub fn object(&self, field: &str) -> Result<Option<ConfigJson>, Error> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(Self::from_fields(&self.path, fields.clone()))),
            Some(other) => Err(self.bad(field, "an object", other)),
        }
    }

    /// A positive integer.
    ///
    /// # Errors
    /// When the field is missing, zero, absurdly large or no integer.
    pub fn size(&self, field: &str) -> Result<usize, Error> {
        self.size_or_none(field)?.ok_or_else(|| self.missing(field))
    }

    /// A positive integer, if the field is there.
    ///
    /// # Errors
    /// When it is zero, absurdly large or no integer.
    pub fn size_or_none(&self, field: &str) -> Result<Option<usize>, Error> {
        // No decoder has a dimension beyond 2^31; larger numbers would only overflow a product of sizes.
        let parse = |value: &Value| match value.as_u64() {
            Some(n) if (1..1 << 31).contains(&n) => Ok(n as usize),
            _ => Err(self.bad(field, "a positive integer", value)),
        };
        self.get(field).map(parse).transpose()
    }

    /// A positive integer; `default` where the field is absent, and nothing where it is `null`, which a family may tell apart.
    ///
    /// # Errors
    /// When it is zero, absurdly large or no integer.
    pub fn size_or(&self, field: &str, default: Option<usize>) -> Result<Option<usize>, Error> {
        match self.fields.contains_key(field) {
            true => self.size_or_none(field),
            false => Ok(default),
        }
    }

    /// A list of numbers, if the field is there.
    ///
    /// # Errors
    /// When it is something else.
    pub fn numbers(&self, field: &str) -> Result<Option<Vec<f64>>, Error> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let numbers =
            value.as_array().and_then(|list| list.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>());
        match numbers {
            Some(numbers) if numbers.iter().all(|x| x.is_finite()) => Ok(Some(numbers)),
            _ => Err(self.bad(field, "a list of numbers", value)),
        }
    }

    /// A list of strings, if the field is there.
    ///
    /// # Errors
    /// When it is something else.
    pub fn texts(&self, field: &str) -> Result<Option<Vec<&str>>, Error> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let texts = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        texts.map(Some).ok_or_else(|| self.bad(field, "a list of strings", value))
    }

    /// A positive integer of at most `max`.
    ///
    /// # Errors
    /// When the field is missing, zero, larger, or no integer.
    pub fn count(&self, field: &str, max: usize) -> Result<usize, Error> {
        match self.size(field)? {
            n if n <= max => Ok(n),
            n => Err(self.bad(field, format!("at most {max}"), &n.into())),
        }
    }

    /// A finite number above zero, or `default`.
    ///
    /// # Errors
    /// When the field is something else.
    pub fn positive_or(&self, field: &str, default: f64) -> Result<f64, Error> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => match value.as_f64() {
                Some(x) if x.is_finite() && x > 0.0 => Ok(x),
                _ => Err(self.bad(field, "a positive number", value)),
            },
        }
    }

    /// A finite number above zero.
    ///
    /// # Errors
    /// When the field is missing or something else.
    pub fn positive(&self, field: &str) -> Result<f64, Error> {
        self.get(field).ok_or_else(|| self.missing(field))?;
        self.positive_or(field, 1.0)
    }

    /// A boolean, or `default`.
    ///
    /// # Errors
    /// When the field is something else.
    pub fn flag_or(&self, field: &str, default: bool) -> Result<bool, Error> {
        match self.get(field) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.bad(field, "true or false", other)),
        }
    }

    /// A string, or `default`.
    ///
    /// # Errors
    /// When the field is something else.
    pub fn text_or<'a>(&'a self, field: &str, default: &'a str) -> Result<&'a str, Error> {
        match self.get(field) {
            None => Ok(default),
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(self.bad(field, "a string", other)),
        }
    }

    /// The error of a missing field.
    pub fn missing(&self, field: &str) -> Error {
        Error::MissingField { path: self.path.clone(), field: field.into() }
    }

    /// The error of a field with a value it may not have.
    pub fn bad(&self, field: &str, expected: impl Into<String>, found: &Value) -> Error {
        let mut found = found.to_string();
        if found.len() > 60 {
            found = found.chars().take(57).collect::<String>() + "...";
        }
        Error::BadField { path: self.path.clone(), field: field.into(), expected: expected.into(), found }
    }
}
