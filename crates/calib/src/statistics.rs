//! What a conversion knows of a donor: second moments of its keys and values, and how much their errors matter.
//!
//! The moments are those of `W_k h` and `W_v h` themselves, biases left out, for the inputs `h` that k_proj and v_proj
//! really receive; where a norm stands behind k_proj, those of the normed keys. Not centred: attention sinks make the mean anything but small, and centring measures far worse.
//! Every method and every metric starts from them, so one sweep serves any number of plans.

mod kept;
mod shared;

pub use kept::{Holds, KeptArray};
pub(crate) use shared::SharedStatistics;

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::{Device, Tensor};
use mla_core::{Attention, Block, DecoderConfig, LayerSlot, Matrix, Part, Slot, WeightSource};
use rayon::prelude::*;

use crate::error::Error;
use crate::gradient::{Fisher, FisherOptions, fisher};
use crate::linalg::{Mat64, add_cross, add_gram};
use crate::metric::{Metric, Objective, key_scores, value_outputs};
use crate::plan::{Deepseek, Method};
use crate::scratch::{Scratch, Stored, StoredMatrix};
use crate::sweep::{Keep, Observer, Windows, host, sweep, widen};
use shared::Weighed;

/// What the plans to come will ask for.
#[derive(Clone, Debug, PartialEq)]
pub struct Needs {
    /// How many earlier layers a layer's moments are crossed with.
    pub window: usize,
    /// Moments of queries, for [`Objective::Attention`].
    pub queries: bool,
    /// The Fisher information, for [`Objective::Fisher`].
    pub fisher: Option<FisherOptions>,
    /// Weight of a window's first token in the moments, as a share of the weight of all others together.
    ///
    /// The first token is an attention sink (Xiao et al. 2024): most heads look at it most of the time, so an error of
    /// its K and V harms every later token. Yet it is one token of a window's hundreds in a mean. Weighing it buys it a
    /// dimension or two of each latent, which is all it takes, since sinks look alike in every text.
    pub sink: f64,
    /// Shared keys, of which each asks for a Fisher pass of its own behind that of the donor.
    pub shared: Vec<Deepseek>,
}

/// Statistics of a donor, kept in a [`Scratch`].
#[derive(Debug)]
pub struct Statistics {
    config: DecoderConfig,
    tokens: usize,
    /// How many earlier layers a layer's moments are crossed with.
    window: usize,
    scratch: Scratch,
    layers: Vec<LayerStatistics>,
    shared: Vec<(Deepseek, SharedStatistics)>,
}

#[derive(Debug)]
struct LayerStatistics {
    /// `E[y_i y_jᵀ]` by j, for `y = [W_k h; W_v h]`.
    moments: BTreeMap<usize, StoredMatrix>,
    /// What each window's first token adds to the layer's own moment, as rows `[windows, 2 · d_kv]`.
    firsts: Stored<f64>,
    /// The mean key.
    keys: Weighed,
    /// `Σ_{h∈g} E[q_h q_hᵀ]`, one kv head after the other.
    queries: Option<Stored<f64>>,
    fisher: Option<Fisher>,
}

impl Statistics {
    /// The statistics of real text.
    ///
    /// # Errors
    /// When the source or the temporary file fails, a layer has latents already, or the donor overflows.
    pub fn of_text<S: WeightSource>(
        source: &S,
        windows: &[Vec<u32>],
        needs: &Needs,
        device: &Device,
        scratch: &Scratch,
        observer: &mut dyn Observer,
    ) -> Result<Self, Error> {
        let config = source.config().clone();
        let all = Windows::new(windows);
        if all.tokens() == 0 {
            return Err(Error::EmptyText);
        }
        if let Some(options) = &needs.fisher {
            options.check(windows)?;
        }
        let mut statistics = Self {
            tokens: all.tokens(),
            window: needs.window,
            scratch: scratch.clone(),
            layers: Vec::new(),
            shared: Vec::new(),
            config: config.clone(),
        };
        observer.phase("statistics", config.n_layers());
        // Windows that go through the backward pass too stand first, so that what they leave before each block is kept.
        let (ordered, backward) = match &needs.fisher {
            Some(fisher) => spread_first(windows, fisher.windows),
            None => (windows.to_vec(), 0),
        };
        let all = Windows::cut(&ordered, backward);
        let mut gathered = Gathering::new(&config, needs);
        let found = std::cell::RefCell::new(&mut gathered);
        let boundaries = sweep(
            source,
            all,
            Keep::of(backward),
            device,
            scratch,
            |layer, block, h| found.borrow_mut().add(layer, block, h, scratch),
            |layer| {
                let layer_statistics = found.borrow_mut().finish(layer, all.tokens(), scratch)?;
                statistics.layers.push(layer_statistics);
                observer.step(layer + 1);
                Ok(())
            },
        )?;
        drop(gathered);
        if let Some(options) = &needs.fisher {
            let found = fisher(source, boundaries, options, device, scratch, observer)?;
            for (layer, fisher) in statistics.layers.iter_mut().zip(found) {
                layer.fisher = Some(fisher);
            }
        }
        statistics.add_shared(source, windows, needs, device, observer)?;
        Ok(statistics)
    }

    /// Gathers those of shared keys that are needed and not there yet, for the text that all others are of.
    ///
    /// # Errors
    /// As [`of_text`](Self::of_text).
    pub fn add_shared<S: WeightSource>(
        &mut self,
        source: &S,
        windows: &[Vec<u32>],
        needs: &Needs,
        device: &Device,
        observer: &mut dyn Observer,
    ) -> Result<(), Error> {
        let Some(options) = &needs.fisher else { return Ok(()) };
        for &method in &needs.shared {
            if self.shared.iter().any(|(known, _)| *known == method) {
                continue;
            }
            let text = shared::Text { windows, fisher: options, sink: needs.sink };
            let of = SharedStatistics::gather(source, self, method, text, device, observer)?;
            self.shared.push((method, of));
        }
        Ok(())
    }

    /// The statistics that weights alone give, for inputs of which nothing is known (`C = I`).
    ///
    /// # Errors
    /// When the source or the temporary file fails, or a layer has latents already.
    pub fn of_weights<S: WeightSource>(
        source: &S,
        queries: bool,
        device: &Device,
        scratch: &Scratch,
    ) -> Result<Self, Error> {
        let config = source.config().clone();
        let mut layers = Vec::with_capacity(config.n_layers());
        for layer in 0..config.n_layers() {
            let y = stacked(source, layer, device)?;
            let moment = y.dot(&y.transpose());
            let queries = match queries {
                false => None,
                true => {
                    let w_q = read(source, layer, LayerSlot::Query(Part::Weight), device)?;
                    let group = config.n_heads / config.n_kv_heads * config.d_head;
                    let mut heads = Vec::new();
                    for head in 0..config.n_kv_heads {
                        let mut b = Mat64::zeros(config.d_head, config.d_head);
                        for first in (head * group..(head + 1) * group).step_by(config.d_head) {
                            let q = w_q.row_block(first..first + config.d_head);
                            b.add(&q.dot(&q.transpose()));
                        }
                        heads.extend(b.data);
                    }
                    Some(scratch.keep(heads)?)
                }
            };
            let moments = BTreeMap::from([(layer, scratch.keep_matrix(moment)?)]);
            let firsts = scratch.keep(Vec::new())?;
            layers.push(LayerStatistics { moments, firsts, keys: Weighed::default(), queries, fisher: None });
        }
        Ok(Self { config, tokens: 0, window: 0, scratch: scratch.clone(), layers, shared: Vec::new() })
    }

    /// The donor's graph.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Calibration tokens; 0 without text.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Where arrays are kept.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// `E[y_i y_jᵀ]` for `y = [W_k h; W_v h]` (`[2 · d_kv, 2 · d_kv]`), `j ≤ i` within the window that was asked for.
    ///
    /// # Errors
    /// When the temporary file cannot be read.
    ///
    /// # Panics
    /// If j lies outside the window.
    pub fn moment(&self, i: usize, j: usize) -> Result<Mat64, Error> {
        self.layers[i].moments[&j].load()
    }

    /// What a method's latents stand for.
    ///
    /// # Panics
    /// If the statistics were collected without the method's shared key.
    pub(crate) fn targets(&self, method: &Method) -> Targets<'_> {
        let shared = match method {
            Method::Deepseek(deepseek) => {
                let known = self.shared.iter().find(|(known, _)| known == deepseek);
                Some(&known.expect("the shared key was asked for").1)
            }
            _ => None,
        };
        Targets { donor: self, shared }
    }

    /// The metrics of a layer's keys and values.
    ///
    /// # Errors
    /// When the source or the temporary file fails.
    ///
    /// # Panics
    /// If the statistics were collected without what the objective needs.
    pub fn metrics<S: WeightSource>(
        &self,
        source: &S,
        objective: Objective,
        layer: usize,
        device: &Device,
    ) -> Result<[Metric; 2], Error> {
        let statistics = &self.layers[layer];
        match objective {
            Objective::Mse => Ok([Metric::Identity, Metric::Identity]),
            Objective::Attention => {
                let data = statistics.queries.as_ref().expect("moments of queries were asked for").read()?;
                let d = self.config.d_head;
                let heads: Vec<Mat64> = data
                    .chunks_exact(d * d)
                    .map(|head| Mat64 { rows: d, cols: d, data: head.to_vec() })
                    .collect();
                let w_o = read(source, layer, LayerSlot::Output(Part::Weight), device)?;
                Ok([
                    Metric::new(&key_scores(&self.config, layer, &heads))?,
                    Metric::new(&value_outputs(&self.config, &w_o))?,
                ])
            }
            Objective::Fisher => {
                let fisher = statistics.fisher.as_ref().expect("the Fisher information was asked for");
                Ok([Metric::new(&fisher.key.load()?)?, Metric::new(&fisher.value.load()?)?])
            }
        }
    }

    /// `E[g gᵀ]` of a layer's keys and values, if it was asked for.
    ///
    /// # Errors
    /// When the temporary file cannot be read.
    pub fn fisher(&self, layer: usize) -> Result<Option<[Mat64; 2]>, Error> {
        let Some(fisher) = &self.layers[layer].fisher else { return Ok(None) };
        Ok(Some([fisher.key.load()?, fisher.value.load()?]))
    }
}

/// What latents stand for: the donor's keys and values, or values and those keys that a shared key leaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Targets<'a> {
    donor: &'a Statistics,
    pub(crate) shared: Option<&'a SharedStatistics>,
}

impl<'a> Targets<'a> {
    /// Those of the donor itself.
    pub(crate) fn of_donor(donor: &'a Statistics) -> Self {
        Self { donor, shared: None }
    }

    /// `E[y yᵀ]` of a layer for `y = [K; V]`.
    ///
    /// # Errors
    /// When the temporary file cannot be read.
    pub(crate) fn moment(&self, layer: usize) -> Result<Mat64, Error> {
        match self.shared {
            None => self.donor.moment(layer, layer),
            Some(shared) => shared.moment(layer),
        }
    }

    /// `E[y yᵀ]` over all tokens but each window's first, which is an attention sink.
    ///
    /// # Errors
    /// When the temporary file cannot be read.
    pub(crate) fn typical_moment(&self, layer: usize) -> Result<Mat64, Error> {
        let mut moment = self.moment(layer)?;
        let firsts = match self.shared {
            None => self.donor.layers[layer].firsts.read()?,
            Some(shared) => shared.firsts(layer).read()?,
        };
        let mut sum = Mat64::zeros(moment.rows, moment.cols);
        add_cross(&mut sum, &firsts, &firsts);
        moment.subtract(&sum);
        Ok(moment)
    }

    /// The metrics of a layer's keys and values.
    ///
    /// # Errors
    /// As [`Statistics::metrics`].
    pub(crate) fn metrics<S: WeightSource>(
        &self,
        source: &S,
        objective: Objective,
        layer: usize,
        device: &Device,
    ) -> Result<[Metric; 2], Error> {
        match self.shared {
            None => self.donor.metrics(source, objective, layer, device),
            Some(shared) => shared.metrics(layer),
        }
    }

    /// What makes `[K; V]` of that which a layer's latents are made of.
    ///
    /// # Errors
    /// As [`stacked`].
    pub(crate) fn stacked<S: WeightSource>(
        &self,
        source: &S,
        layer: usize,
        device: &Device,
    ) -> Result<Mat64, Error> {
        match self.shared {
            None => stacked(source, layer, device),
            Some(shared) => shared.stacked(source, layer, device),
        }
    }
}

/// What makes `[K; V]` of that which a layer's latents are made of: `[W_k; W_v]` for its input `h`, and for `[k̂; h]`, where
/// keys are normed, the identity and `W_v` on the diagonal.
///
/// # Shapes
/// - `[2 · d_kv, d_latent_input]`
///
/// # Errors
/// When the source fails.
pub fn stacked<S: WeightSource>(source: &S, layer: usize, device: &Device) -> Result<Mat64, Error> {
    let value = read(source, layer, LayerSlot::Value(Part::Weight), device)?;
    if source.config().layers[layer].qk_norm.is_some() {
        return Ok(Mat64::diagonal_blocks(&Mat64::identity(value.rows), &value));
    }
    let key = read(source, layer, LayerSlot::Key(Part::Weight), device)?;
    Ok(Mat64::stack(&[&key, &value]))
}

fn read<S: WeightSource>(source: &S, layer: usize, slot: LayerSlot, device: &Device) -> Result<Mat64, Error> {
    Ok(Mat64::from_matrix(&Matrix::from_tensor(&source.matrix(Slot::Layer(layer, slot), device)?)))
}

/// `count` of the windows, spread evenly.
pub(crate) fn spread(windows: &[Vec<u32>], count: usize) -> Vec<Vec<u32>> {
    let count = count.clamp(1, windows.len());
    (0..count).map(|i| windows[i * windows.len() / count].clone()).collect()
}

/// The windows with `count` of them, spread evenly, in front; and how many those are.
fn spread_first(windows: &[Vec<u32>], count: usize) -> (Vec<Vec<u32>>, usize) {
    let count = count.clamp(1, windows.len());
    let chosen: BTreeSet<usize> = (0..count).map(|i| i * windows.len() / count).collect();
    let others = (0..windows.len()).filter(|place| !chosen.contains(place));
    (chosen.iter().copied().chain(others).map(|place| windows[place].clone()).collect(), count)
}

/// The sums of one layer, and what the layers after it will be crossed with.
struct Gathering {
    window: usize,
    d_kv: usize,
    heads: Heads,
    /// `[W_k h; W_v h]` of the layers in the window, a batch an entry: `[tokens, 2 · d_kv]`.
    outputs: BTreeMap<usize, Vec<Stored<f32>>>,
    /// Of the layer at hand, each window's first row.
    firsts: Vec<f64>,
    keys: Weighed,
    queries: Option<Vec<Mat64>>,
    sink: f64,
}

#[derive(Clone, Copy)]
struct Heads {
    n_heads: usize,
    n_kv_heads: usize,
    d_head: usize,
}

impl Gathering {
    fn new(config: &DecoderConfig, needs: &Needs) -> Self {
        let heads = Heads { n_heads: config.n_heads, n_kv_heads: config.n_kv_heads, d_head: config.d_head };
        let queries = needs.queries.then(|| heads.zeros());
        Self {
            window: needs.window,
            d_kv: config.d_kv(),
            heads,
            outputs: BTreeMap::new(),
            firsts: Vec::new(),
            keys: Weighed { sum: vec![0.0; config.d_kv()], weight: 0.0 },
            queries,
            sink: needs.sink,
        }
    }

    fn add(&mut self, layer: usize, block: &Block, h: Tensor<3>, scratch: &Scratch) -> Result<(), Error> {
        let Attention::Grouped(attention) = &block.attention else {
            return Err(Error::AlreadyLatent { layer });
        };
        let (k, v) = attention.latent_targets(h.clone());
        self.keys.add(&k, self.sink);
        let y = weigh_first(Tensor::cat(vec![k, v], 2), self.sink);
        if y.dims()[1] > 1 {
            self.firsts.extend(widen(&host(y.clone().narrow(1, 0, 1))));
        }
        self.outputs.entry(layer).or_default().push(scratch.keep(host(y))?);
        if let Some(sums) = &mut self.queries {
            let q = attention.queries.project(h);
            self.heads.add(sums, q);
        }
        Ok(())
    }

    fn finish(&mut self, layer: usize, tokens: usize, scratch: &Scratch) -> Result<LayerStatistics, Error> {
        // A batch at a time is widened; with it, each core takes a layer of the window.
        let size = 2 * self.d_kv;
        let first = layer.saturating_sub(self.window);
        let mut sums: Vec<Mat64> = (first..=layer).map(|_| Mat64::zeros(size, size)).collect();
        for (batch, ours) in self.outputs[&layer].iter().enumerate() {
            let ours = widen(&ours.read()?);
            sums.par_iter_mut().enumerate().try_for_each(|(place, sum)| match first + place {
                j if j == layer => {
                    add_gram(sum, &ours);
                    Ok(())
                }
                j => {
                    add_cross(sum, &ours, &widen(&self.outputs[&j][batch].read()?));
                    Ok::<_, Error>(())
                }
            })?;
        }
        let mut moments = BTreeMap::new();
        for (place, mut sum) in sums.into_iter().enumerate() {
            if first + place == layer {
                sum.mirror_lower();
            }
            sum.scale(1.0 / tokens as f64);
            if !sum.data.iter().all(|x| x.is_finite()) {
                return Err(Error::NotFinite { layer });
            }
            moments.insert(first + place, scratch.keep_matrix(sum)?);
        }
        self.outputs.retain(|&j, _| j + self.window > layer);
        let queries = match &mut self.queries {
            None => None,
            Some(sums) => {
                let sums = std::mem::replace(sums, self.heads.zeros());
                let mean = sums.into_iter().flat_map(|sum| sum.data).map(|x| x / tokens as f64).collect();
                Some(scratch.keep(mean)?)
            }
        };
        let share = 1.0 / (tokens as f64).sqrt();
        let firsts = std::mem::take(&mut self.firsts).into_iter().map(|x| x * share).collect();
        let empty = Weighed { sum: vec![0.0; self.d_kv], weight: 0.0 };
        let keys = std::mem::replace(&mut self.keys, empty).mean(tokens);
        Ok(LayerStatistics { moments, firsts: scratch.keep(firsts)?, keys, queries, fisher: None })
    }
}

impl Heads {
    fn zeros(self) -> Vec<Mat64> {
        vec![Mat64::zeros(self.d_head, self.d_head); self.n_kv_heads]
    }

    /// Adds `Σ_{h∈g} q_h q_hᵀ` of a batch.
    fn add(self, sums: &mut [Mat64], q: Tensor<3>) {
        let [windows, length, _] = q.dims();
        let group = self.n_heads / self.n_kv_heads;
        let q = q.reshape([windows * length, self.n_heads, self.d_head]);
        for (head, sum) in sums.iter_mut().enumerate() {
            let rows = q.clone().narrow(1, head * group, group);
            let mut lower = Mat64::zeros(self.d_head, self.d_head);
            add_gram(&mut lower, &widen(&host(rows)));
            lower.mirror_lower();
            sum.add(&lower);
        }
    }
}

/// Scales each window's first token, so that products of two scaled ones have the weight that was asked for.
pub(crate) fn weigh_first(y: Tensor<3>, sink: f64) -> Tensor<3> {
    let [_, length, _] = y.dims();
    let weight = 1.0 + sink * (length - 1) as f64;
    let first = y.clone().narrow(1, 0, 1) * weight.sqrt();
    match length {
        1 => first,
        _ => Tensor::cat(vec![first, y.narrow(1, 1, length - 1)], 1),
    }
}
