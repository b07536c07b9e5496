//! Statistics as named arrays, to be kept between conversions and taken up again.
//!
//! What was gathered depends on the donor, the text and how it was gathered, not on a ratio or a method, so another conversion of
//! the same donor and text starts from it. The numbers are kept as they are, in f64: what is fitted to them is the same to
//! the bit. Files are the caller's business.

use std::collections::BTreeMap;

use mla_core::DecoderConfig;
use mla_core::decoder::SharedKeyConfig;
use serde::{Deserialize, Serialize};

use super::shared::{KeptKey, SharedLayer, SharedStatistics, Weighed, series};
use super::{LayerStatistics, Needs, Statistics};
use crate::error::Error;
use crate::gradient::Fisher;
use crate::linalg::Mat64;
use crate::plan::Deepseek;
use crate::scratch::{Scratch, Stored, StoredMatrix};

/// What statistics hold, beside their arrays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Holds {
    /// Tokens of the text.
    pub tokens: usize,
    /// How many earlier layers a layer's moments are crossed with.
    pub window: usize,
    /// Whether moments of queries are among them.
    pub queries: bool,
    /// Whether the Fisher information is.
    pub fisher: bool,
    /// Shared keys with statistics of their own.
    pub shared: Vec<Deepseek>,
}

impl Holds {
    /// Whether everything but shared keys is there that is needed.
    pub fn covers(&self, needs: &Needs) -> bool {
        self.window >= needs.window
            && (self.queries || !needs.queries)
            && (self.fisher || needs.fisher.is_none())
    }
}

/// One array: a name, and the matrix behind it.
#[derive(Debug)]
pub struct KeptArray<'a> {
    /// What it is.
    pub name: String,
    /// Rows and columns.
    pub shape: [usize; 2],
    data: Source<'a>,
}

#[derive(Debug)]
enum Source<'a> {
    Stored(&'a Stored<f64>),
    Numbers(Vec<f64>),
}

impl KeptArray<'_> {
    /// The numbers, row by row.
    ///
    /// # Errors
    /// When the temporary file cannot be read.
    pub fn load(&self) -> Result<Vec<f64>, Error> {
        match &self.data {
            Source::Stored(stored) => Ok(stored.read()?.into_owned()),
            Source::Numbers(numbers) => Ok(numbers.clone()),
        }
    }
}

impl Statistics {
    /// What is there beside arrays.
    pub fn holds(&self) -> Holds {
        let last = self.layers.len().saturating_sub(1);
        Holds {
            tokens: self.tokens,
            window: self.window,
            queries: self.layers[last].queries.is_some(),
            fisher: self.layers[last].fisher.is_some(),
            shared: self.shared.iter().map(|(method, _)| *method).collect(),
        }
    }

    /// Every array.
    pub fn arrays(&self) -> Vec<KeptArray<'_>> {
        let mut all = Vec::new();
        let d_kv = self.config.d_kv();
        for (layer, statistics) in self.layers.iter().enumerate() {
            for (j, moment) in &statistics.moments {
                all.push(matrix(format!("{layer}.moment.{j}"), moment));
            }
            all.push(rows(format!("{layer}.firsts"), &statistics.firsts, 2 * d_kv));
            all.push(numbers(format!("{layer}.keys"), statistics.keys.sum.clone()));
            all.push(numbers(format!("{layer}.weight"), vec![statistics.keys.weight]));
            if let Some(queries) = &statistics.queries {
                all.push(rows(format!("{layer}.queries"), queries, self.config.d_head));
            }
            if let Some(fisher) = &statistics.fisher {
                all.extend(of_fisher(&format!("{layer}"), fisher));
            }
        }
        for (place, (_, shared)) in self.shared.iter().enumerate() {
            let theta = shared.rope.iter().map(|rope| rope.theta).collect();
            all.push(numbers(format!("shared.{place}.theta"), theta));
            for (layer, of) in shared.layers.iter().enumerate() {
                let name = format!("shared.{place}.{layer}");
                all.push(matrix(format!("{name}.moment"), &of.moment));
                all.push(rows(format!("{name}.firsts"), &of.firsts, 2 * d_kv));
                all.extend(of_fisher(&name, &of.fisher));
                let Some(key) = &of.key else { continue };
                let pairs = key.config.pairs.iter().map(|&pair| pair as f64).collect();
                all.push(numbers(format!("{name}.pairs"), pairs));
                all.push(numbers(format!("{name}.key"), vec![key.config.rope as f64, key.lost, key.noise]));
                for (part, stored) in [("down", &key.down), ("up", &key.up), ("rest", &key.rest)] {
                    all.push(matrix(format!("{name}.{part}"), stored));
                }
            }
        }
        all
    }

    /// Statistics of a donor from arrays that were kept; `read` gives one by its name, and `None` of which there is none.
    ///
    /// `None` where something is missing or has another shape.
    ///
    /// # Errors
    /// When `read` fails, or the temporary file.
    pub fn from_arrays(
        config: &DecoderConfig,
        holds: &Holds,
        read: &mut dyn FnMut(&str) -> Result<Option<Mat64>, Error>,
        scratch: &Scratch,
    ) -> Result<Option<Self>, Error> {
        let mut arrays = Arrays { read, scratch };
        let (d_kv, n_layers) = (config.d_kv(), config.n_layers());
        let mut layers = Vec::with_capacity(n_layers);
        for layer in 0..n_layers {
            let mut moments = BTreeMap::new();
            for j in layer.saturating_sub(holds.window)..=layer {
                let Some(moment) = arrays.matrix(&format!("{layer}.moment.{j}"), 2 * d_kv)? else {
                    return Ok(None);
                };
                moments.insert(j, moment);
            }
            let firsts = arrays.rows(&format!("{layer}.firsts"), 2 * d_kv)?;
            let (keys, weight) =
                (arrays.get(&format!("{layer}.keys"))?, arrays.get(&format!("{layer}.weight"))?);
            let (Some(firsts), Some(keys), Some(weight)) = (firsts, keys, weight) else { return Ok(None) };
            let (true, [weight]) = (keys.data.len() == d_kv, &weight.data[..]) else { return Ok(None) };
            let queries = match holds.queries {
                true => arrays.rows(&format!("{layer}.queries"), config.d_head)?,
                false => None,
            };
            let fisher = match holds.fisher {
                true => arrays.fisher(&format!("{layer}"), d_kv)?,
                false => None,
            };
            if holds.queries != queries.is_some() || holds.fisher != fisher.is_some() {
                return Ok(None);
            }
            let keys = Weighed { sum: keys.data, weight: *weight };
            layers.push(LayerStatistics { moments, firsts, keys, queries, fisher });
        }
        let mut shared = Vec::new();
        for (place, method) in holds.shared.iter().enumerate() {
            let Some(of) = arrays.shared(place, *method, config)? else { return Ok(None) };
            shared.push((*method, of));
        }
        let (tokens, window, scratch, config) = (holds.tokens, holds.window, scratch.clone(), config.clone());
        Ok(Some(Self { config, tokens, window, scratch, layers, shared }))
    }
}

fn matrix<'a>(name: String, stored: &'a StoredMatrix) -> KeptArray<'a> {
    KeptArray { name, shape: [stored.rows, stored.cols], data: Source::Stored(&stored.data) }
}

fn rows<'a>(name: String, stored: &'a Stored<f64>, cols: usize) -> KeptArray<'a> {
    KeptArray { name, shape: [stored.len() / cols, cols], data: Source::Stored(stored) }
}

fn numbers<'a>(name: String, numbers: Vec<f64>) -> KeptArray<'a> {
    KeptArray { name, shape: [1, numbers.len()], data: Source::Numbers(numbers) }
}

fn of_fisher<'a>(name: &str, fisher: &'a Fisher) -> [KeptArray<'a>; 2] {
    [matrix(format!("{name}.fisher.key"), &fisher.key), matrix(format!("{name}.fisher.value"), &fisher.value)]
}

/// Kept arrays on their way back.
struct Arrays<'a> {
    read: &'a mut dyn FnMut(&str) -> Result<Option<Mat64>, Error>,
    scratch: &'a Scratch,
}

impl Arrays<'_> {
    fn get(&mut self, name: &str) -> Result<Option<Mat64>, Error> {
        (self.read)(name)
    }

    /// A square matrix.
    fn matrix(&mut self, name: &str, size: usize) -> Result<Option<StoredMatrix>, Error> {
        let found = self.get(name)?.filter(|found| (found.rows, found.cols) == (size, size));
        found.map(|found| self.scratch.keep_matrix(found)).transpose()
    }

    fn rows(&mut self, name: &str, cols: usize) -> Result<Option<Stored<f64>>, Error> {
        let found = self.get(name)?.filter(|found| found.cols == cols);
        found.map(|found| self.scratch.keep(found.data)).transpose()
    }

    fn fisher(&mut self, name: &str, d_kv: usize) -> Result<Option<Fisher>, Error> {
        let key = self.matrix(&format!("{name}.fisher.key"), d_kv)?;
        let value = self.matrix(&format!("{name}.fisher.value"), d_kv)?;
        Ok(key.zip(value).map(|(key, value)| Fisher { key, value }))
    }

    fn shared(
        &mut self,
        place: usize,
        method: Deepseek,
        config: &DecoderConfig,
    ) -> Result<Option<SharedStatistics>, Error> {
        let d_kv = config.d_kv();
        let Some(theta) = self.get(&format!("shared.{place}.theta"))? else { return Ok(None) };
        let mut layers = Vec::with_capacity(config.n_layers());
        for layer in 0..config.n_layers() {
            let name = format!("shared.{place}.{layer}");
            let moment = self.matrix(&format!("{name}.moment"), 2 * d_kv)?;
            let firsts = self.rows(&format!("{name}.firsts"), 2 * d_kv)?;
            let fisher = self.fisher(&name, d_kv)?;
            let key = self.key(&name)?;
            let (Some(moment), Some(firsts), Some(fisher)) = (moment, firsts, fisher) else {
                return Ok(None);
            };
            if key.is_some() != config.rope(layer).is_some() {
                return Ok(None);
            }
            layers.push(SharedLayer { key, moment, firsts, fisher });
        }
        let rope = theta.data.first().map(|&theta| series(theta, method.d_rope));
        Ok(Some(SharedStatistics { rope, layers }))
    }

    fn key(&mut self, name: &str) -> Result<Option<KeptKey>, Error> {
        let (pairs, scalars) = (self.get(&format!("{name}.pairs"))?, self.get(&format!("{name}.key"))?);
        let (Some(pairs), Some(scalars)) = (pairs, scalars) else { return Ok(None) };
        let [rope, lost, noise] = scalars.data[..] else { return Ok(None) };
        let mut parts = Vec::with_capacity(3);
        for part in ["down", "up", "rest"] {
            let Some(found) = self.get(&format!("{name}.{part}"))? else { return Ok(None) };
            parts.push(self.scratch.keep_matrix(found)?);
        }
        let Ok([down, up, rest]) = <[StoredMatrix; 3]>::try_from(parts) else { return Ok(None) };
        let pairs = pairs.data.iter().map(|&pair| pair as usize).collect();
        let config = SharedKeyConfig { rope: rope as usize, pairs };
        Ok(Some(KeptKey { config, down, up, rest, lost, noise }))
    }
}
