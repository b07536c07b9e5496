//! A decoder of random weights, made in code: what the tests of this module measure.

use burn::tensor::{Device, Tensor, TensorData};
use mla_core::decoder::{
    Activation, AttentionKind, Biases, BlockKind, HeadKind, LatentConfig, LatentWidth, LayerConfig,
    MlpConfig, MlpKind, NormKind, PositionKind, Scales,
};
use mla_core::positions::RopeConfig;
use mla_core::{CacheDtype, Decoder, DecoderConfig, LayerSlot, Part, Slot, SourceError, WeightSource};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

/// The context of every toy, in tokens.
pub(super) const CONTEXT: usize = 160;
/// Tokens that a toy knows.
pub(super) const VOCABULARY: usize = 50;

const D_MODEL: usize = 32;
const D_HEAD: usize = 8;
const N_HEADS: usize = 4;
const D_KV: usize = 16;
const D_FF: usize = 48;

/// What a toy caches.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kept {
    /// Keys and values.
    Dense,
    /// Latents of as many numbers as a group of a quantised cache has.
    Latents(CacheDtype),
}

struct Toy {
    config: DecoderConfig,
    seed: u64,
}

/// A LLaMA of two layers and random weights; a window of eight tokens in the first layer.
pub(super) fn toy(kept: Kept, seed: u64) -> Decoder {
    let (dtype, attention): (_, &dyn Fn(usize) -> AttentionKind) = match kept {
        Kept::Dense => (CacheDtype::F32, &|_| AttentionKind::Grouped),
        Kept::Latents(dtype) => (dtype, &|layer| {
            let width = LatentWidth::Split { d_latent_k: 8, d_latent_v: 8 };
            AttentionKind::Latent(LatentConfig::alone(layer, width))
        }),
    };
    let mlp = MlpConfig { kind: MlpKind::Gated(Activation::Silu), d_ff: D_FF };
    let layer = |layer: usize| LayerConfig {
        window: (layer == 0).then_some(8),
        attention: attention(layer),
        ..LayerConfig::plain(D_HEAD, Some(0), mlp)
    };
    let config = DecoderConfig {
        d_model: D_MODEL,
        n_heads: N_HEADS,
        n_kv_heads: D_KV / D_HEAD,
        d_head: D_HEAD,
        vocab_size: VOCABULARY,
        max_positions: CONTEXT,
        norm: NormKind::Rms,
        norm_eps: 1e-5,
        block: BlockKind::PreNorm,
        position: PositionKind::Rope(vec![RopeConfig::plain(100.0, D_HEAD)]),
        biases: Biases { qkv: false, output: false, mlp: false },
        scales: Scales::default(),
        head: HeadKind::Own,
        cache_dtype: dtype,
        layers: vec![layer(0), layer(1)],
    };
    Decoder::load(&Toy { config, seed }, &Device::default()).expect("every slot has weights")
}

/// Random tokens of a toy's vocabulary.
pub(super) fn text(tokens: usize, seed: u64) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..tokens).map(|_| rng.random_range(0..VOCABULARY as u32)).collect()
}

impl Toy {
    fn shape(slot: Slot) -> [usize; 2] {
        match slot {
            Slot::TokenEmbedding | Slot::Head => [VOCABULARY, D_MODEL],
            Slot::Layer(_, LayerSlot::Query(Part::Weight)) => [N_HEADS * D_HEAD, D_MODEL],
            Slot::Layer(_, LayerSlot::Key(_) | LayerSlot::Value(_)) => [D_KV, D_MODEL],
            Slot::Layer(_, LayerSlot::DownKey | LayerSlot::DownValue) => [8, D_MODEL],
            Slot::Layer(_, LayerSlot::UpKey | LayerSlot::UpValue) => [D_KV, 8],
            Slot::Layer(_, LayerSlot::Output(_)) => [D_MODEL, N_HEADS * D_HEAD],
            Slot::Layer(_, LayerSlot::Gate(_) | LayerSlot::Up(_)) => [D_FF, D_MODEL],
            Slot::Layer(_, LayerSlot::Down(_)) => [D_MODEL, D_FF],
            other => unreachable!("a toy has no {other}"),
        }
    }
}

impl WeightSource for Toy {
    fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Uniform, of variance two over the width that is read; the same for the same slot and seed.
    fn matrix(&self, slot: Slot, device: &Device) -> Result<Tensor<2>, SourceError> {
        let [rows, cols] = Self::shape(slot);
        let name =
            slot.to_string().bytes().fold(self.seed, |hash, byte| hash * 31 % 1_000_003 + u64::from(byte));
        let mut rng = ChaCha8Rng::seed_from_u64(name);
        let bound = (6.0 / cols as f32).sqrt();
        let data: Vec<f32> = (0..rows * cols).map(|_| (2.0 * rng.random::<f32>() - 1.0) * bound).collect();
        Ok(Tensor::from_data(TensorData::new(data, [rows, cols]), device))
    }

    /// The gain of a norm.
    fn vector(&self, _slot: Slot, device: &Device) -> Result<Tensor<1>, SourceError> {
        Ok(Tensor::ones([D_MODEL], device))
    }

    fn rows(&self, slot: Slot, rows: &[u32], device: &Device) -> Result<Tensor<2>, SourceError> {
        let rows: Vec<i64> = rows.iter().map(|&row| i64::from(row)).collect();
        let rows = Tensor::from_data(TensorData::new(rows.clone(), [rows.len()]), device);
        Ok(self.matrix(slot, device)?.select(0, rows))
    }
}
