//! Conversions made by hand: what a method would find, without a method.

use burn::tensor::Device;
use handlers::{LayerRanks, MlaSection, Model};
use mla_core::decoder::AttentionKind;
use mla_core::{LayerSlot, Matrix, Part, Slot, WeightMap, WeightSource};

/// Latents as wide as K and V in the layers that `latent` picks: `W_down = W`, `W_up = I`, which is the donor exactly.
pub fn exact_where(model: &Model, latent: impl Fn(usize) -> bool) -> WeightMap {
    let d_kv = model.config().d_kv();
    let weight = |layer, slot| {
        let tensor = model.matrix(Slot::Layer(layer, slot), &Device::flex()).expect("a projection");
        Matrix::from_tensor(&tensor)
    };
    patched(model, latent, |layer| Factors {
        down_k: weight(layer, LayerSlot::Key(Part::Weight)),
        up_k: identity(d_kv),
        down_v: weight(layer, LayerSlot::Value(Part::Weight)),
        up_v: identity(d_kv),
    })
}

/// [`exact_where`] in every layer.
pub fn exact(model: &Model) -> WeightMap {
    exact_where(model, |_| true)
}

/// Latents of some width that have nothing to do with the donor.
pub fn random(model: &Model, d_latent_k: usize, d_latent_v: usize, seed: u64) -> WeightMap {
    let (d_model, d_kv) = (model.config().d_model, model.config().d_kv());
    let state = std::cell::Cell::new(seed);
    let matrix = |rows: usize, cols: usize| {
        let mut data = Vec::with_capacity(rows * cols);
        data.resize_with(rows * cols, || {
            let (next, number) = split_mix(state.get());
            state.set(next);
            // 24 bits of the draw, from -0.5 to 0.5.
            (number >> 40) as f32 / (1 << 24) as f32 - 0.5
        });
        Matrix::new(rows, cols, data)
    };
    patched(
        model,
        |_| true,
        |_| Factors {
            down_k: matrix(d_latent_k, d_model),
            up_k: matrix(d_kv, d_latent_k),
            down_v: matrix(d_latent_v, d_model),
            up_v: matrix(d_kv, d_latent_v),
        },
    )
}

/// The section that describes a conversion.
pub fn section(factors: &WeightMap) -> MlaSection {
    let ranks = |kind| match kind {
        AttentionKind::Grouped => None,
        AttentionKind::Latent { d_latent_k, d_latent_v } => Some(LayerRanks { d_latent_k, d_latent_v }),
    };
    MlaSection {
        version: MlaSection::VERSION,
        method: "by hand".into(),
        objective: "mse".into(),
        layers: factors.config().layers.iter().map(|layer| ranks(layer.attention)).collect(),
        store_original_weights: false,
    }
}

struct Factors {
    down_k: Matrix,
    up_k: Matrix,
    down_v: Matrix,
    up_v: Matrix,
}

fn patched(model: &Model, latent: impl Fn(usize) -> bool, factors: impl Fn(usize) -> Factors) -> WeightMap {
    let mut config = model.config().clone();
    let found: Vec<_> = (0..config.n_layers()).map(|layer| latent(layer).then(|| factors(layer))).collect();
    for (layer, factors) in config.layers.iter_mut().zip(&found) {
        if let Some(Factors { down_k, down_v, .. }) = factors {
            layer.attention = AttentionKind::Latent { d_latent_k: down_k.rows, d_latent_v: down_v.rows };
        }
    }
    let mut map = WeightMap::new(config);
    for (layer, factors) in found.into_iter().enumerate() {
        let Some(Factors { down_k, up_k, down_v, up_v }) = factors else { continue };
        map.insert_layer(layer, LayerSlot::DownKey, down_k);
        map.insert_layer(layer, LayerSlot::UpKey, up_k);
        map.insert_layer(layer, LayerSlot::DownValue, down_v);
        map.insert_layer(layer, LayerSlot::UpValue, up_v);
    }
    map
}

fn identity(n: usize) -> Matrix {
    Matrix::new(n, n, (0..n * n).map(|i| f32::from(u8::from(i / n == i % n))).collect())
}

/// One step of SplitMix64 (Steele et al. 2014): the next state and a draw.
fn split_mix(state: u64) -> (u64, u64) {
    let next = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (next ^ (next >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (next, z ^ (z >> 31))
}
