//! The statistics behind a shared key: those of the keys that are left and of values, in the model that has it.
//!
//! Keys that are not rotated any more are scored otherwise than the donor's are, so what an error in them costs is asked of the
//! model that scores them so: the donor with the shared key and a latent of full width, which rounds nothing.

use burn::tensor::{Device, Tensor};
use mla_core::decoder::{AttentionKind, KeyForm, LatentConfig, LatentWidth, PositionKind, SharedKeyConfig};
use mla_core::positions::{RopeConfig, RopeScaling};
use mla_core::{Attention, DecoderConfig, LayerSlot, Part, Patch, Slot, WeightSource};

use super::{Statistics, read, spread, stacked, weigh_first};
use crate::error::Error;
use crate::factors::Factors;
use crate::gradient::{Fisher, FisherOptions, fisher};
use crate::linalg::{Mat64, add_cross};
use crate::metric::Metric;
use crate::plan::{Deepseek, KeyLayout};
use crate::ranks::{Unit, pooled};
use crate::scratch::{Scratch, Stored, StoredMatrix};
use crate::shared::{Chosen, Components, SharedKey, Turning};
use crate::sweep::{Keep, Observer, Windows, host, sweep, widen};

/// Steps between the donor's pairs that a series of frequencies may take, of which the best is found.
const STRIDES: [f64; 9] = [0.25, 1.0 / 3.0, 0.5, 2.0 / 3.0, 0.75, 1.0, 1.25, 1.5, 2.0];

/// The text that is gathered from, and how.
#[derive(Clone, Copy)]
pub(super) struct Text<'a> {
    pub(super) windows: &'a [Vec<u32>],
    pub(super) fisher: &'a FisherOptions,
    pub(super) sink: f64,
}

/// What is known of a model with shared keys.
#[derive(Debug)]
pub(crate) struct SharedStatistics {
    /// A rotary embedding that the donor has not got.
    pub(super) rope: Option<RopeConfig>,
    pub(super) layers: Vec<SharedLayer>,
}

#[derive(Debug)]
pub(super) struct SharedLayer {
    /// `None` for a layer that rotates nothing.
    pub(super) key: Option<KeptKey>,
    /// `E[y yᵀ]` for `y = [K̃; V]`.
    pub(super) moment: StoredMatrix,
    /// What each window's first token adds to it, as rows `[windows, 2 · d_kv]`.
    pub(super) firsts: Stored<f64>,
    pub(super) fisher: Fisher,
}

#[derive(Debug)]
pub(super) struct KeptKey {
    pub(super) config: SharedKeyConfig,
    pub(super) down: StoredMatrix,
    pub(super) up: StoredMatrix,
    pub(super) rest: StoredMatrix,
    pub(super) lost: f64,
    pub(super) noise: f64,
}

impl KeptKey {
    fn keep(config: SharedKeyConfig, key: SharedKey, scratch: &Scratch) -> Result<Self, Error> {
        let SharedKey { down, up, rest, lost, noise } = key;
        let [down, up, rest] =
            [scratch.keep_matrix(down)?, scratch.keep_matrix(up)?, scratch.keep_matrix(rest)?];
        Ok(Self { config, down, up, rest, lost, noise })
    }
}

impl SharedStatistics {
    /// Chooses the shared keys of a donor whose statistics are known, and gathers those of the model that has them.
    ///
    /// # Errors
    /// When the source or the temporary file fails, or the statistics are degenerate.
    pub(super) fn gather<S: WeightSource>(
        source: &S,
        donor: &Statistics,
        method: Deepseek,
        text: Text<'_>,
        device: &Device,
        observer: &mut dyn Observer,
    ) -> Result<Self, Error> {
        let Text { windows, fisher: options, sink } = text;
        let (scratch, n_layers) = (donor.scratch(), donor.config().n_layers());
        let some = spread(windows, options.windows);
        let windows = Windows::new(&some);
        let (rope, keys) = choose(source, donor, method, windows.longest(), device)?;
        let whole = whole(source, donor.config(), rope.as_ref(), &keys, scratch, device)?;
        let model = whole.over(source);
        observer.phase("forward with the shared key", n_layers);
        let mut moments = Vec::with_capacity(n_layers);
        let gathered = std::cell::RefCell::new(Sums::new(donor.config().d_kv()));
        let boundaries = sweep(
            &model,
            windows,
            Keep::Boundaries,
            device,
            scratch,
            |_, block, h| {
                let Attention::Latent(attention) = &block.attention else { return Ok(()) };
                let x = mla_core::attention::latent_input(attention.keys.as_ref(), h);
                // Of full width, the latent is [K̃; V] itself.
                gathered.borrow_mut().add(weigh_first(attention.projections.down(x), sink));
                Ok(())
            },
            |layer| {
                let sums = gathered.replace(Sums::new(donor.config().d_kv()));
                moments.push(sums.mean(layer, windows.tokens(), scratch)?);
                observer.step(layer + 1);
                Ok(())
            },
        )?;
        let found = fisher(&model, boundaries, options, device, scratch, observer)?;
        let layer = |((key, (moment, firsts)), fisher)| SharedLayer { key, moment, firsts, fisher };
        Ok(Self { rope, layers: keys.into_iter().zip(moments).zip(found).map(layer).collect() })
    }

    /// The graph with shared keys and latents of these widths.
    pub(crate) fn graph(&self, donor: &DecoderConfig, width: impl Fn(usize) -> usize) -> DecoderConfig {
        graph(donor, self.rope.as_ref(), self.layers.iter().map(|layer| layer.key.as_ref()), width)
    }

    /// Numbers a token of a layer's shared key.
    pub(crate) fn d_rope(&self, layer: usize) -> usize {
        self.layers[layer].key.as_ref().map_or(0, |key| key.config.d_rope())
    }

    /// The loss of the rotations that a layer gives up.
    pub(crate) fn lost(&self, layer: usize) -> f64 {
        self.layers[layer].key.as_ref().map_or(0.0, |key| key.lost)
    }

    /// The loss of errors in a layer's shared key that vary as much as the key does.
    pub(crate) fn noise(&self, layer: usize) -> f64 {
        self.layers[layer].key.as_ref().map_or(0.0, |key| key.noise)
    }

    /// Adds all of a layer but its latent.
    ///
    /// # Errors
    /// When the source or the temporary file fails.
    pub(crate) fn insert<S: WeightSource>(
        &self,
        factors: &mut Factors,
        source: &S,
        layer: usize,
        device: &Device,
    ) -> Result<(), Error> {
        match &self.layers[layer].key {
            None => Ok(()),
            Some(key) => insert(factors, source, layer, key, device),
        }
    }

    /// `E[y yᵀ]` for `y = [K̃; V]`.
    pub(crate) fn moment(&self, layer: usize) -> Result<Mat64, Error> {
        self.layers[layer].moment.load()
    }

    /// What each window's first token adds to it.
    pub(crate) fn firsts(&self, layer: usize) -> &Stored<f64> {
        &self.layers[layer].firsts
    }

    /// The metrics of the keys that are not rotated and of values.
    pub(crate) fn metrics(&self, layer: usize) -> Result<[Metric; 2], Error> {
        let fisher = &self.layers[layer].fisher;
        Ok([Metric::new(&fisher.key.load()?)?, Metric::new(&fisher.value.load()?)?])
    }

    /// What makes `[K̃; V]` of that which a layer's latents are made of.
    pub(crate) fn stacked<S: WeightSource>(
        &self,
        source: &S,
        layer: usize,
        device: &Device,
    ) -> Result<Mat64, Error> {
        let whole = stacked(source, layer, device)?;
        match &self.layers[layer].key {
            None => Ok(whole),
            Some(key) => Ok(rest_of(&key.rest.load()?, whole)),
        }
    }
}

/// `[W_k; W_v]` with what is left of the keys in place of the keys.
fn rest_of(rest: &Mat64, mut stacked: Mat64) -> Mat64 {
    let keys = rest.dot(&stacked.row_block(0..rest.rows));
    stacked.place(0, 0, &keys);
    stacked
}

/// Which components of each layer's keys are shared, and by what rotary embedding they turn, if not the donor's.
fn choose<S: WeightSource>(
    source: &S,
    donor: &Statistics,
    method: Deepseek,
    length: usize,
    device: &Device,
) -> Result<(Option<RopeConfig>, Vec<Option<KeptKey>>), Error> {
    let config = donor.config();
    let (d_kv, count) = (config.d_kv(), method.d_rope / 2);
    let mut layers = Vec::with_capacity(config.n_layers());
    for layer in 0..config.n_layers() {
        layers.push(match config.rope(layer) {
            None => None,
            Some(rope) => {
                let turning = Turning::new(rope, config.d_head, length);
                let moment = donor.key_moment(source, layer, device)?;
                let fisher =
                    donor.layers[layer].fisher.as_ref().expect("the Fisher information was asked for");
                let components = Components::new(&moment, &fisher.key.load()?, &turning)?;
                Some((turning, components))
            }
        });
    }
    let scratch = donor.scratch();
    let keep = |layer: usize, rope: usize, pairs: Vec<usize>, chosen: &[Chosen]| {
        let (turning, components) = layers[layer].as_ref().expect("a layer that rotates");
        let key = components.split(chosen, turning, d_kv);
        KeptKey::keep(SharedKeyConfig { rope, pairs }, key, scratch)
    };
    match method.layout {
        KeyLayout::Free => {
            let counts = counts(&layers, count);
            let mut keys = Vec::with_capacity(layers.len());
            for (layer, known) in layers.iter().enumerate() {
                let Some((turning, components)) = known else {
                    keys.push(None);
                    continue;
                };
                let chosen = components.costliest(counts[layer], turning);
                let rope = config.layers[layer].rope.expect("a layer that rotates");
                keys.push(Some(keep(layer, rope, chosen.iter().map(|one| one.pair).collect(), &chosen)?));
            }
            Ok((None, keys))
        }
        KeyLayout::Deepseek => {
            let rope = config.rope(0).expect("the plan was checked");
            let series = |stride: f64| {
                series(rope.theta.powf(stride * method.d_rope as f64 / rope.d_rotary as f64), method.d_rope)
            };
            let assign = |series: &RopeConfig| -> Vec<Vec<Chosen>> {
                let frequencies = series.frequencies(length);
                let of = |(turning, components): &(Turning, Components)| {
                    components.assigned(&frequencies, turning)
                };
                layers.iter().flatten().map(of).collect()
            };
            let loss = |assigned: &[Vec<Chosen>]| -> f64 {
                let pairs = layers.iter().flatten().zip(assigned);
                pairs.map(|((turning, components), chosen)| components.lost(chosen, turning)).sum()
            };
            let tried = STRIDES.map(|stride| {
                let series = series(stride);
                let assigned = assign(&series);
                (loss(&assigned), series, assigned)
            });
            let best = tried.into_iter().min_by(|a, b| a.0.total_cmp(&b.0));
            let (_, series, assigned) = best.expect("there are strides");
            let place = config.ropes().len();
            let key = |(layer, chosen): (usize, &Vec<Chosen>)| {
                keep(layer, place, (0..chosen.len()).collect(), chosen).map(Some)
            };
            let keys = assigned.iter().enumerate().map(key).collect::<Result<_, Error>>()?;
            Ok((Some(series), keys))
        }
    }
}

/// The rotary embedding of a shared key that turns by one series of frequencies.
pub(super) fn series(theta: f64, d_rope: usize) -> RopeConfig {
    RopeConfig { scaling: RopeScaling::None, ..RopeConfig::plain(theta, d_rope) }
}

/// How many pairs each layer's shared key has, of `mean` a layer that rotates: those that lose most in all layers together, and
/// in each a quarter of the mean at least, since what looks as if it lost little on calibration text may not elsewhere.
fn counts(layers: &[Option<(Turning, Components)>], mean: usize) -> Vec<usize> {
    let spectra: Vec<Vec<f64>> = layers
        .iter()
        .flatten()
        .map(|(turning, components)| components.worth(turning).into_iter().map(|(lost, _)| lost).collect())
        .collect();
    let units: Vec<Unit<'_>> = spectra.iter().map(|spectrum| Unit { spectrum, cost: 1 }).collect();
    let mut found = pooled(&units, mean * units.len(), mean.div_ceil(4)).into_iter();
    layers.iter().map(|known| known.as_ref().and_then(|_| found.next()).unwrap_or(0)).collect()
}

fn graph<'a>(
    donor: &DecoderConfig,
    rope: Option<&RopeConfig>,
    keys: impl Iterator<Item = Option<&'a KeptKey>>,
    width: impl Fn(usize) -> usize,
) -> DecoderConfig {
    let mut config = donor.clone();
    if let (Some(rope), PositionKind::Rope(ropes)) = (rope, &mut config.position) {
        ropes.push(rope.clone());
    }
    for (layer, (place, key)) in config.layers.iter_mut().zip(keys).enumerate() {
        let keys = key.map_or(KeyForm::Rotated, |key| KeyForm::Shared(key.config.clone()));
        let width = LatentWidth::Joint { d_latent: width(layer) };
        place.attention = AttentionKind::Latent(LatentConfig { keys, ..LatentConfig::alone(layer, width) });
    }
    config
}

/// The donor with shared keys, and latents of full width.
fn whole<S: WeightSource>(
    source: &S,
    donor: &DecoderConfig,
    rope: Option<&RopeConfig>,
    keys: &[Option<KeptKey>],
    scratch: &Scratch,
    device: &Device,
) -> Result<Factors, Error> {
    let width = 2 * donor.d_kv();
    let config = graph(donor, rope, keys.iter().map(Option::as_ref), |_| width);
    let mut factors = Factors::new(config, scratch);
    for (layer, key) in keys.iter().enumerate() {
        let mut down = stacked(source, layer, device)?;
        if let Some(key) = key {
            insert(&mut factors, source, layer, key, device)?;
            down = rest_of(&key.rest.load()?, down);
        }
        factors.insert(layer, LayerSlot::DownJoint, &down)?;
        factors.insert(layer, LayerSlot::UpJoint, &Mat64::identity(width))?;
    }
    Ok(factors)
}

fn insert<S: WeightSource>(
    factors: &mut Factors,
    source: &S,
    layer: usize,
    key: &KeptKey,
    device: &Device,
) -> Result<(), Error> {
    let config = source.config();
    let down = key.down.load()?;
    let weight = |part| LayerSlot::DownShared(part);
    factors.insert(layer, LayerSlot::UpShared, &key.up.load()?)?;
    // Of normed keys the shared key is made as the latent is, and a bias is in them already.
    if config.layers[layer].qk_norm.is_some() {
        return factors.insert(layer, weight(Part::Weight), &down);
    }
    let w_k = read(source, layer, LayerSlot::Key(Part::Weight), device)?;
    factors.insert(layer, weight(Part::Weight), &down.dot(&w_k))?;
    if let Some(bias) = key_bias(source, layer, device)? {
        factors.insert(layer, weight(Part::Bias), &down.dot(&bias).transpose())?;
        factors.insert(layer, LayerSlot::Key(Part::Bias), &key.rest.load()?.dot(&bias).transpose())?;
    }
    Ok(())
}

/// The bias of a layer's keys that no norm has taken up: `[d_kv, 1]`.
fn key_bias<S: WeightSource>(source: &S, layer: usize, device: &Device) -> Result<Option<Mat64>, Error> {
    let config = source.config();
    if !config.biases.qkv || config.layers[layer].qk_norm.is_some() {
        return Ok(None);
    }
    let bias = source.vector(Slot::Layer(layer, LayerSlot::Key(Part::Bias)), device)?;
    Ok(Some(Mat64 { rows: config.d_kv(), cols: 1, data: widen(&host(bias)) }))
}

impl Statistics {
    /// `E[K Kᵀ]` of a layer's keys before the rotation, biases included.
    fn key_moment<S: WeightSource>(&self, source: &S, layer: usize, device: &Device) -> Result<Mat64, Error> {
        let d_kv = self.config.d_kv();
        let mut moment = self.moment(layer, layer)?.block(0..d_kv, 0..d_kv);
        let Some(bias) = key_bias(source, layer, device)? else { return Ok(moment) };
        let Weighed { sum, weight } = &self.layers[layer].keys;
        let mean = Mat64 { rows: d_kv, cols: 1, data: sum.clone() };
        let cross = mean.dot(&bias.transpose());
        moment.add(&cross);
        moment.add(&cross.transpose());
        let mut square = bias.dot(&bias.transpose());
        square.scale(*weight);
        moment.add(&square);
        Ok(moment)
    }
}

/// `E[K]` with the weights of the moments, and the sum of those weights.
#[derive(Clone, Debug, Default)]
pub(super) struct Weighed {
    pub(super) sum: Vec<f64>,
    pub(super) weight: f64,
}

impl Weighed {
    /// Adds keys `[windows, length, d_kv]`, each window's first weighed as in the moments.
    pub(super) fn add(&mut self, k: &Tensor<3>, sink: f64) {
        let [windows, length, d_kv] = k.dims();
        let first = if length == 1 { 1.0 } else { 1.0 + sink * (length - 1) as f64 };
        let rest = if length == 1 { 0 } else { windows * (length - 1) };
        let whole = k.clone().sum_dim(1).sum_dim(0);
        let firsts = k.clone().narrow(1, 0, 1).sum_dim(0) * (first - 1.0);
        let sum = widen(&host((whole + firsts).reshape([d_kv])));
        self.sum.iter_mut().zip(sum).for_each(|(sum, x)| *sum += x);
        self.weight += windows as f64 * first + rest as f64;
    }

    pub(super) fn mean(mut self, tokens: usize) -> Self {
        self.sum.iter_mut().for_each(|x| *x /= tokens as f64);
        self.weight /= tokens as f64;
        self
    }
}

/// Sums over the tokens of a layer.
struct Sums {
    moment: Mat64,
    firsts: Vec<f64>,
}

impl Sums {
    fn new(d_kv: usize) -> Self {
        Self { moment: Mat64::zeros(2 * d_kv, 2 * d_kv), firsts: Vec::new() }
    }

    /// # Shapes
    /// - `y`: `[windows, length, 2 · d_kv]`, first tokens weighed
    fn add(&mut self, y: Tensor<3>) {
        self.firsts.extend(widen(&host(y.clone().narrow(1, 0, 1))));
        let y = widen(&host(y));
        add_cross(&mut self.moment, &y, &y);
    }

    fn mean(
        mut self,
        layer: usize,
        tokens: usize,
        scratch: &Scratch,
    ) -> Result<(StoredMatrix, Stored<f64>), Error> {
        self.moment.scale(1.0 / tokens as f64);
        if !self.moment.data.iter().all(|x| x.is_finite()) {
            return Err(Error::NotFinite { layer });
        }
        let share = 1.0 / (tokens as f64).sqrt();
        self.firsts.iter_mut().for_each(|x| *x *= share);
        Ok((scratch.keep_matrix(self.moment)?, scratch.keep(self.firsts)?))
    }
}
