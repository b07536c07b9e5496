//! What a conversion will take, from the configuration alone: operations, memory, disk.
//!
//! Counts follow the phases of [`convert`](crate::convert()) and the sizes that they hold; the few factors that are not
//! counts (copies that a product or a backward pass makes) were measured, and `cargo xtask bench convert` and `bench big`
//! hold the prediction to what the system saw.

use mla_core::DecoderConfig;
use mla_core::decoder::{LayerConfig, MlpKind, NormKind};
use serde::Serialize;

use crate::convert::Options;
use crate::metric::Objective;
use crate::plan::{Latents, Method, Plan, shared_keys};
use crate::sweep::CHUNK_TOKENS;

/// How much text there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextSize {
    /// Windows to fit to.
    pub windows: usize,
    /// Windows by which plans are chosen.
    pub select: usize,
    /// Windows on which the chosen one is measured.
    pub report: usize,
    /// Tokens of each.
    pub length: usize,
    /// Windows that the donor writes itself.
    pub sampled: usize,
}

/// How fast the machine is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// f32 operations a second of a large product.
    pub flops: f64,
    /// Weights a second that are read and laid out.
    pub weights: f64,
}

/// What a conversion will take.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// Wall time.
    pub seconds: f64,
    /// Largest resident memory.
    pub peak_memory_bytes: u64,
    /// Largest size of the temporary file.
    pub scratch_bytes: u64,
    /// The latent tensors that are written in place of `W_k` and `W_v`, in f32, of the plan that has most.
    pub factor_bytes: u64,
}

/// Memory of the program itself, and what a tokenizer and some text add.
const BASE_BYTES: f64 = 35e6;
const TEXT_BYTES: f64 = 50e6;
/// A token that is written costs as much as this many that are read: few rows meet each weight.
const SAMPLING_COST: f64 = 2.0;
/// f64 operations cost this many f32 operations.
const F64_COST: f64 = 3.0;
/// Copies of a batch's activations that a pass holds at its widest, and a backward pass, a block at a time.
const COPIES: f64 = 1.9;
const COPIES_BACKWARD: f64 = 2.6;
/// What an allocator that keeps freed blocks adds to the widest moment: a share of it, and at most so many bytes.
const FREED_SHARE: f64 = 0.25;
const FREED_BYTES: f64 = 512e6;

/// Predicts a conversion by `plans` (every one of them is fitted, and measured where text is held back).
pub fn predict(
    config: &DecoderConfig,
    plans: &[Plan],
    text: Option<TextSize>,
    options: &Options,
    scratch_memory: u64,
    speed: Speed,
) -> Prediction {
    let counts = Counts::new(config);
    let Some(text) = text else {
        let flops = counts.layers
            * counts.d_kv
            * counts.d_kv
            * (4.0 * counts.d_model + 40.0 * counts.d_kv)
            * F64_COST;
        let memory = 8.0 * 6.0 * counts.d_kv * counts.d_model + 8.0 * 12.0 * counts.d_kv * counts.d_kv;
        let fit = Phase { memory, kept: counts.fitted(plans) };
        return counts.total(Work { flops, loads: 0.0 }, &[fit], speed, scratch_memory, plans);
    };
    let tokens = (text.windows * text.length) as f64;
    let fisher = plans.iter().any(|plan| plan.objective == Objective::Fisher);
    let fisher_windows = if fisher { options.fisher_windows.min(text.windows) } else { 0 };
    let fisher_tokens = (fisher_windows * text.length) as f64;
    let draws = options.fisher_draws as f64;
    let (select, report) = ((text.select * text.length) as f64, (text.report * text.length) as f64);
    let batch = ((CHUNK_TOKENS / text.length.max(1)).clamp(1, text.windows.max(1)) * text.length) as f64;
    let window = plans.iter().map(|plan| plan.method.window() + 1).max().unwrap_or(1) as f64;

    let forward = 2.0 * counts.active * counts.layers;
    let moments = 2.0 * (2.0 * counts.d_kv).powi(2) * window * counts.layers * F64_COST;
    let head = 2.0 * counts.d_model * counts.vocabulary;
    let backward = fisher_tokens * draws * (3.0 * forward + 3.0 * head);
    let judged = (select * (1.0 + plans.len() as f64) + 2.0 * report) * (forward + head);
    let fits: f64 = plans.iter().map(|plan| counts.fit(plan)).sum();
    // A shared key has statistics of its own, in the model that has it.
    let shared = shared_keys(plans).len() as f64;
    let own = 2.0 * (2.0 * counts.d_kv).powi(2) * counts.layers * F64_COST;
    let once_more = shared * (fisher_tokens * (forward + own) + backward);
    let sampled = (text.sampled * text.length) as f64;
    let written = SAMPLING_COST * sampled * (forward + head);
    let flops = written + tokens * (forward + moments) + backward + once_more + judged + fits;
    let passes = 1.0
        + 2.0 * shared
        + f64::from(u8::from(fisher))
        + f64::from(u8::from(select > 0.0))
        + f64::from(u8::from(report > 0.0));
    let loads = passes * counts.layers * counts.block;

    let wide = 4.0 * counts.activations(batch, text.length as f64);
    // A matrix is laid out anew while it is loaded, and is there twice for that moment.
    let pass = |wide: f64| 4.0 * counts.block + (4.0 * counts.largest).max(wide);
    let sums = 8.0 * 4.0 * counts.d_kv * (batch + 4.0 * counts.d_kv);
    let slice = 4.0 * 8192.0 * (3.0 * counts.d_model + 4.0 * 1024.0);

    let stream = 4.0 * counts.d_model * (tokens + 2.0 * fisher_tokens * draws);
    let boundaries = 4.0 * counts.d_model * fisher_tokens * (counts.layers + 1.0);
    let outputs = 4.0 * 2.0 * counts.d_kv * tokens * window;
    let second = 8.0 * (2.0 * counts.d_kv).powi(2) * (window + 2.0 * shared) * counts.layers;
    let judged_streams = 4.0 * counts.d_model * (select * (1.0 + plans.len() as f64)).max(2.0 * report);

    let copies = if fisher { COPIES_BACKWARD } else { COPIES };
    let sweep = Phase {
        memory: TEXT_BYTES + pass(copies * wide + sums).max(slice),
        kept: stream + boundaries + outputs + second,
    };
    let solve = plans.iter().map(|plan| counts.solve_bytes(plan)).fold(0.0, f64::max);
    let spectra = counts.layers * 0.5 * counts.kept_spectra();
    let fit = Phase { memory: TEXT_BYTES + solve, kept: second + spectra + counts.fitted(plans) };
    let judge = Phase {
        memory: TEXT_BYTES + pass(COPIES * wide).max(slice),
        kept: counts.fitted(plans) + judged_streams,
    };
    // The whole model is in memory while it writes.
    let sample =
        Phase { memory: if text.sampled > 0 { TEXT_BYTES + 4.0 * counts.model } else { 0.0 }, kept: 0.0 };
    counts.total(Work { flops, loads }, &[sample, sweep, fit, judge], speed, scratch_memory, plans)
}

/// Sizes of a model, as numbers to calculate with.
struct Counts {
    layers: f64,
    d_model: f64,
    d_kv: f64,
    d_ff: f64,
    heads: f64,
    vocabulary: f64,
    /// Weights of a block.
    block: f64,
    /// Weights of a block that a token meets.
    active: f64,
    /// Weights of the block's largest matrix.
    largest: f64,
    /// Weights of the whole model.
    model: f64,
}

impl Counts {
    fn new(config: &DecoderConfig) -> Self {
        let d_model = config.d_model as f64;
        let (d_kv, width) = (config.d_kv() as f64, (config.n_heads * config.d_head) as f64);
        let attention = d_model * (2.0 * width + 2.0 * d_kv);
        // Of the layer that has most: what is predicted has to fit where all others do.
        let weights = |layer: &LayerConfig| {
            let one = d_model * layer.mlp.d_ff as f64;
            match layer.mlp.kind {
                MlpKind::Plain(_) => (2.0 * one, 2.0 * one),
                MlpKind::Gated(_) => (3.0 * one, 3.0 * one),
                MlpKind::Experts { n_experts, top_k, .. } => {
                    (3.0 * one * n_experts as f64, 3.0 * one * top_k as f64)
                }
            }
        };
        let most =
            |of: fn((f64, f64)) -> f64| config.layers.iter().map(|l| of(weights(l))).fold(0.0, f64::max);
        let (mlp, active) = (most(|(all, _)| all), most(|(_, active)| active));
        let d_ff = config.layers.iter().map(|layer| layer.mlp.d_ff).max().unwrap_or(0) as f64;
        let norms = if config.norm == NormKind::Layer { 4.0 } else { 2.0 } * d_model;
        let vocabulary = config.vocab_size as f64;
        let layers = config.n_layers() as f64;
        Self {
            layers,
            d_model,
            d_kv,
            d_ff,
            heads: config.n_heads as f64,
            vocabulary,
            block: attention + mlp + norms,
            active: attention + active,
            largest: (d_model * d_ff).max(d_model * width),
            model: layers * (attention + mlp) + 2.0 * vocabulary * d_model,
        }
    }

    /// Numbers that one block's activations of a batch take, each counted once.
    fn activations(&self, batch: f64, length: f64) -> f64 {
        batch * (6.0 * self.d_model + 3.0 * self.d_ff + 4.0 * self.d_kv + 2.0 * self.heads * length)
    }

    /// Bytes of a layer's eigenvectors, there and back.
    fn kept_spectra(&self) -> f64 {
        8.0 * 4.0 * self.d_kv * self.d_kv
    }

    /// Bytes of a layer's factors under all plans.
    fn factors(&self, plans: &[Plan]) -> f64 {
        plans
            .iter()
            .map(|plan| {
                4.0 * self.width(plan) * (self.d_model + 2.0 * self.d_kv * (plan.method.window() + 1) as f64)
            })
            .sum()
    }

    /// Bytes of all factors of the plan that has most.
    fn written(&self, plans: &[Plan]) -> f64 {
        let one = |plan: &Plan| self.layers * self.factors(std::slice::from_ref(plan));
        plans.iter().map(one).fold(0.0, f64::max)
    }

    /// Latent numbers a layer.
    fn width(&self, plan: &Plan) -> f64 {
        match plan.width {
            crate::plan::Width::Ratio(ratio) => 2.0 * self.d_kv / ratio,
            crate::plan::Width::Fixed(d_latent) => 2.0 * d_latent as f64,
        }
    }

    /// Bytes that the matrices of a fit take.
    fn solve_bytes(&self, plan: &Plan) -> f64 {
        let read = self.width(plan) * (plan.method.window() + 1) as f64;
        let rows = 2.0 * self.d_kv;
        8.0 * (4.0 * read * read + 4.0 * read * rows + 6.0 * rows * rows + 4.0 * self.d_model * rows)
    }

    /// f32 operations of a fit.
    fn fit(&self, plan: &Plan) -> f64 {
        let rows = 2.0 * self.d_kv;
        let eigen = 12.0 * rows.powi(3);
        let layer = match plan.method {
            Method::Cascade(cascade) if cascade.window > 0 => {
                let window = (cascade.window + 1) as f64;
                let read = self.width(plan) * window;
                let walk = eigen + read.powi(3) / 3.0 + 4.0 * read * read * rows + 4.0 * read * rows * rows;
                let rounds = if cascade.latents == Latents::Together { cascade.rounds as f64 } else { 0.0 };
                let refined = 2.0 * window * read * rows * self.width(plan) + 4.0 * rows.powi(3);
                8.0 * walk + rounds * (walk + refined)
            }
            _ => 2.0 * eigen + 4.0 * self.d_model * rows * self.width(plan),
        };
        self.layers * layer * F64_COST
    }

    /// Bytes that are kept of all fits: eigenvectors and factors.
    fn fitted(&self, plans: &[Plan]) -> f64 {
        self.layers * (self.kept_spectra() + self.factors(plans))
    }

    fn total(
        &self,
        work: Work,
        phases: &[Phase],
        speed: Speed,
        scratch_memory: u64,
        plans: &[Plan],
    ) -> Prediction {
        let scratch_memory = scratch_memory as f64;
        // The largest tensor is written whole: an embedding in 16 bit.
        let written = Phase { memory: 2.0 * self.vocabulary * self.d_model, kept: self.fitted(plans) };
        let phases = || phases.iter().chain([&written]);
        let largest = |of: &dyn Fn(&Phase) -> f64| phases().map(of).fold(0.0, f64::max);
        let resident = |phase: &Phase| {
            phase.kept.min(scratch_memory) + phase.memory + (FREED_SHARE * phase.memory).min(FREED_BYTES)
        };
        let seconds = work.flops / speed.flops + (work.loads + self.model) / speed.weights;
        Prediction {
            seconds,
            peak_memory_bytes: (BASE_BYTES + largest(&resident)) as u64,
            scratch_bytes: (largest(&|phase| phase.kept) - scratch_memory).max(0.0) as u64,
            factor_bytes: self.written(plans) as u64,
        }
    }
}

/// What a conversion is made of.
struct Work {
    /// f32 operations.
    flops: f64,
    /// Weights that are read and laid out.
    loads: f64,
}

/// What a part of a conversion holds.
struct Phase {
    /// Bytes in memory at its widest moment, without what is kept.
    memory: f64,
    /// Bytes that are kept between layers, in memory or beyond.
    kept: f64,
}
