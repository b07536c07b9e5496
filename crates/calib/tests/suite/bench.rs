//! A model with its statistics, and what methods predict computed by definition.

use burn::tensor::{Device, Tensor};
use calib::linalg::Mat64;
use calib::{
    Cascade, Error, Factors, FisherOptions, Fitted, Labels, Latents, Method, Needs, Objective, Plan, Ranks,
    SINK, Scratch, Statistics, Width, Xkv, fit, stacked,
};
use mla_core::decoder::{LatentWidth, frame};
use mla_core::{
    Attention, CacheDtype, Decoder, LayerSlot, Memory, Padding, Patch, Slot, WeightMap, WeightSource,
};

use crate::models::Sizes;

/// Tokens a window.
pub const LENGTH: usize = 8;
/// Windows that are fitted to.
pub const WINDOWS: usize = 24;
/// Every objective.
pub const OBJECTIVES: [Objective; 3] = [Objective::Mse, Objective::Attention, Objective::Fisher];

pub fn device() -> Device {
    Device::default()
}

pub fn scratch() -> Scratch {
    Scratch::new(1 << 30, std::env::temp_dir())
}

/// One draw of labels on every window.
pub fn sampled(seed: u64) -> FisherOptions {
    let labels = Labels::Sampled { seed };
    FisherOptions { labels, draws: 1, windows: WINDOWS, first_position: false }
}

/// The weight of each token in a mean over windows: the first of a window counts as a share of all others.
pub fn weights(windows: usize, length: usize, sink: f64) -> Vec<f64> {
    let weight =
        |token: usize| if token.is_multiple_of(length) { 1.0 + sink * (length - 1) as f64 } else { 1.0 };
    (0..windows * length).map(|token| weight(token) / (windows * length) as f64).collect()
}

pub fn plan(method: Method, objective: Objective, ranks: Ranks, ratio: f64) -> Plan {
    Plan { method, objective, ranks, width: Width::Ratio(ratio), cache: CacheDtype::F32 }
}

/// A cascade whose latents of K and V are apart and serve their own layer alone, in the order of the layers: what theory
/// speaks of.
pub fn cascade(window: usize) -> Method {
    Method::Cascade(Cascade { latents: Latents::Apart, rounds: 0, ..Cascade::of_window(window) })
}

/// A cascade as it is by default: one latent for K and V, refined for all that read it.
pub fn refined(window: usize) -> Method {
    Method::Cascade(Cascade::of_window(window))
}

pub fn xkv(group_size: usize) -> Method {
    Method::Xkv(Xkv { group_size, skip_early_layers: 0, keep_early_layers_original: false })
}

/// Every method as it can be had for `n_layers` layers.
pub fn methods(n_layers: usize) -> Vec<Method> {
    let early = |keep_early_layers_original| {
        Method::Xkv(Xkv { group_size: 2, skip_early_layers: 1, keep_early_layers_original })
    };
    vec![
        Method::Separate,
        Method::Joint,
        Method::DecoupledRope { d_rope: 2 },
        xkv(2),
        xkv(n_layers),
        early(false),
        early(true),
        cascade(1),
        cascade(n_layers - 1),
        Method::Cascade(Cascade { group: Some(2), ..Cascade::of_window(n_layers - 1) }),
        refined(n_layers - 1),
    ]
}

/// All that any plan needs but a shared key.
pub fn needs(sizes: &Sizes) -> Needs {
    let fisher = Some(sampled(sizes.seed));
    Needs { window: sizes.n_layers, queries: true, fisher, sink: SINK, shared: Vec::new() }
}

/// A model and all that any plan needs to know of it.
pub struct Bench {
    pub model: WeightMap,
    pub windows: Vec<Vec<u32>>,
    pub statistics: Statistics,
}

impl Bench {
    pub fn new(sizes: &Sizes) -> Self {
        let (model, windows) = (sizes.model(), sizes.text(WINDOWS, LENGTH, 1));
        let statistics = Statistics::of_text(&model, &windows, &needs(sizes), &device(), &scratch(), &mut ());
        Self { statistics: statistics.expect("statistics"), model, windows }
    }

    pub fn fit(&self, plan: Plan) -> Result<Fitted, Error> {
        fit(&self.model, &self.statistics, plan, &device(), &mut ())
    }

    /// A plan that is known to fit.
    #[track_caller]
    pub fn fitted(&self, plan: Plan) -> Fitted {
        self.fit(plan).unwrap_or_else(|e| panic!("{}: {e}", plan.name()))
    }

    /// `E‖S (K − K̂)‖²` over weighed tokens and the same of V, a layer an entry, by the definition of the latents and of
    /// what reads them.
    pub fn losses(&self, factors: &Factors, objective: Objective) -> Vec<[f64; 2]> {
        let config = factors.config();
        let d_kv = config.d_kv();
        let inputs = inputs(&self.model, &self.windows);
        let get = |layer: usize, slot: LayerSlot| factor(factors, layer, slot);
        let mut latents: Vec<Option<Mat64>> = Vec::new();
        let mut losses = Vec::new();
        for (layer, h) in inputs.iter().enumerate() {
            let Some(latent) = config.latent(layer) else {
                latents.push(None);
                losses.push([0.0; 2]);
                continue;
            };
            let h = h.transpose();
            let up_of = latent.up_of;
            let (own, mut rebuilt, halves) = match latent.width {
                LatentWidth::Joint { .. } => {
                    let c = get(layer, LayerSlot::DownJoint).dot(&h);
                    let both = get(up_of, LayerSlot::UpJoint).dot(&c);
                    let halves = [both.row_block(0..d_kv), both.row_block(d_kv..2 * d_kv)];
                    (c, halves, None)
                }
                LatentWidth::Split { .. } => {
                    let k = get(layer, LayerSlot::DownKey).dot(&h);
                    let v = get(layer, LayerSlot::DownValue).dot(&h);
                    let rebuilt =
                        [get(up_of, LayerSlot::UpKey).dot(&k), get(up_of, LayerSlot::UpValue).dot(&v)];
                    (Mat64::stack(&[&k, &v]), rebuilt, Some([v, k]))
                }
            };
            let cross = config.cross_columns(layer);
            for (part, slot) in [LayerSlot::CrossKey, LayerSlot::CrossValue].into_iter().enumerate() {
                if cross.is_none_or(|columns| columns[part] == 0) {
                    continue;
                }
                let earlier = config.reads(layer);
                let earlier = earlier.iter().map(|&j| latents[j].as_ref().expect("a latent layer"));
                let read: Vec<&Mat64> =
                    halves.as_ref().map(|h| &h[part]).into_iter().chain(earlier).collect();
                rebuilt[part].add(&get(layer, slot).dot(&Mat64::stack(&read)));
            }
            let y = stacked(&self.model, layer, &device()).expect("weights").dot(&h);
            let metrics = self.statistics.metrics(&self.model, objective, layer, &device()).expect("metrics");
            let weights = weights(WINDOWS, LENGTH, SINK);
            let loss = |part: usize| {
                let mut error = y.row_block(part * d_kv..(part + 1) * d_kv);
                error.subtract(&rebuilt[part]);
                let error = metrics[part].whiten(&error);
                error.data.iter().zip(weights.iter().cycle()).map(|(x, weight)| weight * x * x).sum()
            };
            losses.push([loss(0), loss(1)]);
            latents.push(Some(own));
        }
        losses
    }

    /// `E‖S K‖²` and the same of V: what dropping everything would lose.
    pub fn total(&self, objective: Objective, layer: usize) -> [f64; 2] {
        let moment = self.statistics.moment(layer, layer).expect("a moment");
        let metrics = self.statistics.metrics(&self.model, objective, layer, &device()).expect("metrics");
        let d_kv = self.statistics.config().d_kv();
        [0, 1].map(|part| {
            let places = part * d_kv..(part + 1) * d_kv;
            metrics[part].whiten_moment(&moment.block(places.clone(), places)).trace()
        })
    }

    /// [`total`](Self::total) of keys and values of all layers.
    pub fn whole(&self, objective: Objective) -> f64 {
        (0..self.model.config().n_layers()).flat_map(|layer| self.total(objective, layer)).sum()
    }
}

/// A factor that is there.
#[track_caller]
pub fn factor(factors: &Factors, layer: usize, slot: LayerSlot) -> Mat64 {
    let found = factors.get(Slot::Layer(layer, slot)).expect("a factor that can be read");
    Mat64::from_matrix(&found.unwrap_or_else(|| panic!("layer {layer} has {slot:?}")))
}

/// Every factor of a conversion, bit by bit.
pub fn bits(factors: &Factors) -> Vec<(Slot, Vec<u32>)> {
    let slot = |slot: Slot| {
        let matrix = factors.get(slot).expect("a factor that can be read").expect("a factor");
        (slot, matrix.data.iter().map(|x| x.to_bits()).collect())
    };
    factors.slots().map(slot).collect()
}

pub fn load<S: WeightSource>(source: &S) -> Decoder {
    Decoder::load(source, &device()).expect("the weights load")
}

/// What k_proj and v_proj receive in each layer, from a pass through the whole decoder: `[tokens, d_model]`.
pub fn inputs(model: &WeightMap, windows: &[Vec<u32>]) -> Vec<Mat64> {
    let config = WeightMap::config(model);
    let decoder = load(model);
    let padding = Padding::none(windows.len());
    let frame = frame(config, &padding, windows[0].len(), &device());
    let mut memory = Memory::of_pass(config);
    let mut x = Decoder::embed_from(model, windows, &device()).expect("embeddings");
    let mut inputs = Vec::new();
    for (layer, block) in decoder.blocks.iter().enumerate() {
        assert!(matches!(block.attention, Attention::Grouped(_)), "a donor");
        let h = block.attention_input(x.clone());
        let data = host(h).into_iter().map(f64::from).collect();
        inputs.push(Mat64 { rows: windows.len() * windows[0].len(), cols: config.d_model, data });
        x = block.forward(x, &frame, layer, &mut memory);
    }
    inputs
}

/// A device tensor on the host, row-major.
pub fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// Logits of every position of some windows.
pub fn logits<S: WeightSource>(source: &S, windows: &[Vec<u32>]) -> Vec<f32> {
    host(load(source).forward(windows, &Padding::none(windows.len())))
}

/// The largest absolute difference; infinite where one of the two is not a number.
pub fn gap<'a, T: Copy + Into<f64> + 'a>(
    a: impl IntoIterator<Item = &'a T>,
    b: impl IntoIterator<Item = &'a T>,
) -> f64 {
    let (a, b): (Vec<f64>, Vec<f64>) =
        (a.into_iter().map(|&x| x.into()).collect(), b.into_iter().map(|&x| x.into()).collect());
    assert_eq!(a.len(), b.len(), "as many numbers");
    assert!(!a.is_empty(), "something to compare");
    let differences = a.iter().zip(&b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |worst, d| if d.is_nan() { f64::INFINITY } else { worst.max(d) })
}
