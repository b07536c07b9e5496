//! Small random decoders, and text for them.

use mla_core::decoder::{
    Activation, Biases, BlockKind, HeadKind, LayerConfig, MlpConfig, MlpKind, NormKind, PositionKind, Scales,
};
use mla_core::positions::RopeConfig;
use mla_core::{CacheDtype, DecoderConfig, LayerSlot, Matrix, Part, Slot, WeightMap};
use proptest::prelude::*;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

/// Tokens that a model knows.
pub const VOCAB: usize = 24;

/// The two ways in which the known families are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// As Qwen2: RoPE, grouped heads, RMSNorm, a gated MLP, biases at q, k and v; every other layer sees 3 tokens.
    Rotary,
    /// As GPT-2: learned positions, LayerNorm, a plain MLP, biases everywhere, the embedding as head.
    Learned,
}

/// The sizes of a model.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub style: Style,
    pub n_layers: usize,
    pub n_kv_heads: usize,
    /// Query heads a kv head.
    pub group: usize,
    /// Half the width of a head.
    pub half_head: usize,
    pub d_model: usize,
    pub seed: u64,
}

/// Models of both styles: narrow and wide, `2 · d_kv` below and above d_model.
pub fn sizes() -> impl Strategy<Value = Sizes> {
    let style = prop_oneof![Just(Style::Rotary), Just(Style::Learned)];
    (style, 2usize..5, 1usize..3, 1usize..3, 2usize..4, 6usize..18, 0u64..1000).prop_map(
        |(style, n_layers, n_kv_heads, group, half_head, d_model, seed)| {
            let group = if style == Style::Learned { 1 } else { group };
            Sizes { style, n_layers, n_kv_heads, group, half_head, d_model, seed }
        },
    )
}

/// One model of a style, for what needs no more.
pub fn of(style: Style, n_layers: usize, seed: u64) -> Sizes {
    let group = if style == Style::Learned { 1 } else { 2 };
    Sizes { style, n_layers, n_kv_heads: 2, group, half_head: 2, d_model: 12, seed }
}

impl Sizes {
    pub fn config(&self) -> DecoderConfig {
        let rotary = self.style == Style::Rotary;
        let d_head = 2 * self.half_head;
        let rope = RopeConfig::plain(100.0, d_head);
        let kind = match rotary {
            true => MlpKind::Gated(Activation::Silu),
            false => MlpKind::Plain(Activation::GeluTanh),
        };
        let mlp = MlpConfig { kind, d_ff: self.d_model + 3 };
        let layer = |layer: usize| LayerConfig {
            window: (rotary && layer % 2 == 1).then_some(3),
            ..LayerConfig::plain(d_head, rotary.then_some(0), mlp)
        };
        DecoderConfig {
            d_model: self.d_model,
            n_heads: self.n_kv_heads * self.group,
            n_kv_heads: self.n_kv_heads,
            d_head,
            vocab_size: VOCAB,
            max_positions: 64,
            norm: if rotary { NormKind::Rms } else { NormKind::Layer },
            norm_eps: 1e-5,
            block: BlockKind::PreNorm,
            position: if rotary { PositionKind::Rope(vec![rope]) } else { PositionKind::Learned },
            scales: Scales::default(),
            biases: Biases { qkv: true, output: !rotary, mlp: !rotary },
            head: if rotary { HeadKind::Own } else { HeadKind::Tied },
            cache_dtype: CacheDtype::F32,
            layers: (0..self.n_layers).map(layer).collect(),
        }
    }

    /// Weights large enough that attention is far from uniform and every bias and norm matters.
    pub fn model(&self) -> WeightMap {
        let config = self.config();
        let mut fill =
            Fill { rng: ChaCha8Rng::seed_from_u64(self.seed), map: WeightMap::new(config.clone()) };
        let (d_model, d_kv, d_ff) = (config.d_model, config.d_kv(), config.layers[0].mlp.d_ff);
        let d_heads = config.n_heads * config.d_head;
        let rotary = self.style == Style::Rotary;
        fill.noise(Slot::TokenEmbedding, [VOCAB, d_model], 1.0);
        fill.norm(Slot::FinalNorm, d_model, !rotary);
        match rotary {
            true => fill.noise(Slot::Head, [VOCAB, d_model], 0.5),
            false => fill.noise(Slot::PositionEmbedding, [config.max_positions, d_model], 0.5),
        }
        for layer in 0..config.n_layers() {
            let at = |slot| Slot::Layer(layer, slot);
            fill.norm(|part| at(LayerSlot::InputNorm(part)), d_model, !rotary);
            fill.norm(|part| at(LayerSlot::MlpNorm(part)), d_model, !rotary);
            fill.affine(|part| at(LayerSlot::Query(part)), [d_heads, d_model], true);
            fill.affine(|part| at(LayerSlot::Key(part)), [d_kv, d_model], true);
            fill.affine(|part| at(LayerSlot::Value(part)), [d_kv, d_model], true);
            fill.affine(|part| at(LayerSlot::Output(part)), [d_model, d_heads], !rotary);
            fill.affine(|part| at(LayerSlot::Up(part)), [d_ff, d_model], !rotary);
            fill.affine(|part| at(LayerSlot::Down(part)), [d_model, d_ff], !rotary);
            if rotary {
                fill.affine(|part| at(LayerSlot::Gate(part)), [d_ff, d_model], false);
            }
        }
        fill.map
    }

    /// `count` windows of `length` random tokens.
    pub fn text(&self, count: usize, length: usize, seed: u64) -> Vec<Vec<u32>> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ seed.rotate_left(32));
        (0..count).map(|_| (0..length).map(|_| rng.random_range(0..VOCAB as u32)).collect()).collect()
    }
}

struct Fill {
    rng: ChaCha8Rng,
    map: WeightMap,
}

impl Fill {
    /// Uniform noise of a standard deviation.
    fn noise(&mut self, slot: Slot, [rows, cols]: [usize; 2], deviation: f32) {
        let width = 12f32.sqrt() * deviation;
        let data = (0..rows * cols).map(|_| width * (self.rng.random::<f32>() - 0.5)).collect();
        self.map.insert(slot, Matrix::new(rows, cols, data));
    }

    fn affine(&mut self, slot: impl Fn(Part) -> Slot, shape: [usize; 2], bias: bool) {
        self.noise(slot(Part::Weight), shape, 0.35);
        if bias {
            self.noise(slot(Part::Bias), [1, shape[0]], 0.3);
        }
    }

    fn norm(&mut self, slot: impl Fn(Part) -> Slot, width: usize, bias: bool) {
        let gain = (0..width).map(|_| 0.7 + 0.6 * self.rng.random::<f32>()).collect();
        self.map.insert(slot(Part::Weight), Matrix::new(1, width, gain));
        if bias {
            self.noise(slot(Part::Bias), [1, width], 0.3);
        }
    }
}
