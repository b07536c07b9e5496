//! Conversions made by hand: what a method would find, without a method.

use burn::tensor::Device;
use handlers::{MlaSection, Model};
use mla_core::decoder::{AttentionKind, KeyForm, LatentConfig, LatentWidth, LayerConfig, SharedKeyConfig};
use mla_core::{DecoderConfig, LayerSlot, Matrix, Part, Slot, WeightMap, WeightSource};

/// Latents as wide as K and V in the layers that `latent` picks: `W_down = W`, or of normed keys I, and `W_up = I`, which is
/// the donor exactly.
pub fn exact_where(model: &Model, latent: impl Fn(usize) -> bool) -> WeightMap {
    let d_kv = model.config().d_kv();
    let width = LatentWidth::Split { d_latent_k: d_kv, d_latent_v: d_kv };
    let mut map = WeightMap::new(with_latents(model.config(), |layer| latent(layer).then_some(width)));
    for layer in (0..model.config().n_layers()).filter(|&layer| latent(layer)) {
        for (slot, down, up) in [
            (LayerSlot::Key(Part::Weight), LayerSlot::DownKey, LayerSlot::UpKey),
            (LayerSlot::Value(Part::Weight), LayerSlot::DownValue, LayerSlot::UpValue),
        ] {
            // A normed key is compressed as it is.
            let normed = model.config().layers[layer].qk_norm.is_some() && down == LayerSlot::DownKey;
            let exact = if normed { identity(d_kv) } else { weight(model, Slot::Layer(layer, slot)) };
            map.insert_layer(layer, down, exact);
            map.insert_layer(layer, up, identity(d_kv));
        }
    }
    map
}

/// [`exact_where`] in every layer.
pub fn exact(model: &Model) -> WeightMap {
    exact_where(model, |_| true)
}

/// One latent of keys and values as wide as both, in every layer: `W_down = [W_k; W_v]`, `W_up = I`.
pub fn exact_joint(model: &Model) -> WeightMap {
    let d_kv = model.config().d_kv();
    let width = |_| Some(LatentWidth::Joint { d_latent: 2 * d_kv });
    let mut map = WeightMap::new(with_latents(model.config(), width));
    for layer in 0..model.config().n_layers() {
        let [k, v] = [LayerSlot::Key(Part::Weight), LayerSlot::Value(Part::Weight)]
            .map(|slot| weight(model, Slot::Layer(layer, slot)));
        let down = match model.config().layers[layer].qk_norm {
            None => Matrix::new(2 * d_kv, k.cols, [k.data, v.data].concat()),
            Some(_) => beside_normed_keys(&v),
        };
        map.insert_layer(layer, LayerSlot::DownJoint, down);
        map.insert_layer(layer, LayerSlot::UpJoint, identity(2 * d_kv));
    }
    map
}

/// [`exact_joint`] beside a shared key that holds every dimension that turns: the heads' pairs one after the other, `W_ur` the
/// permutation that brings them back, and in the latent the keys that do not turn.
pub fn exact_shared(model: &Model) -> WeightMap {
    let mut map = exact_joint(model);
    let mut config = map.config().clone();
    let donor = model.config();
    let (d_kv, d_head) = (donor.d_kv(), donor.d_head);
    for layer in 0..donor.n_layers() {
        let Some(rope) = donor.rope(layer) else { continue };
        let half = rope.d_rotary / 2;
        let AttentionKind::Latent(latent) = &mut config.layers[layer].attention else { continue };
        let pairs: Vec<usize> = (0..donor.n_kv_heads).flat_map(|_| 0..half).collect();
        let d_rope = 2 * pairs.len();
        // The dimension of K that a number of the shared key is.
        let dimension = |number: usize| {
            let (pair, second) = (number % pairs.len(), number / pairs.len());
            pair / half * d_head + pair % half + second * half
        };
        let turns: Vec<bool> =
            (0..d_kv).map(|place| (0..d_rope).any(|number| dimension(number) == place)).collect();
        let (rope, shared) = (donor.layers[layer].rope.expect("it turns"), pairs.clone());
        latent.keys = KeyForm::Shared(SharedKeyConfig { rope, pairs: shared });
        let slot = |slot| Slot::Layer(layer, slot);
        let rows_of = |matrix: &Matrix| {
            let row = |number: usize| matrix.data[dimension(number) * matrix.cols..][..matrix.cols].to_vec();
            Matrix::new(d_rope, matrix.cols, (0..d_rope).flat_map(row).collect())
        };
        let normed = donor.layers[layer].qk_norm.is_some();
        let keys = if normed { identity(d_kv) } else { weight(model, slot(LayerSlot::Key(Part::Weight))) };
        map.insert(slot(LayerSlot::DownShared(Part::Weight)), rows_of(&keys));
        map.insert(slot(LayerSlot::UpShared), rows_of(&identity(d_kv)).transpose());
        if donor.biases.qkv && !normed {
            let bias = model.vector(slot(LayerSlot::Key(Part::Bias)), &Device::default()).expect("a bias");
            let bias: Vec<f32> = bias.into_data().iter().collect();
            let turned = (0..d_rope).map(|number| bias[dimension(number)]).collect();
            let left = bias.iter().zip(&turns).map(|(&x, &turns)| if turns { 0.0 } else { x }).collect();
            map.insert(slot(LayerSlot::DownShared(Part::Bias)), Matrix::new(1, d_rope, turned));
            map.insert(slot(LayerSlot::Key(Part::Bias)), Matrix::new(1, d_kv, left));
        }
        let mut down = map.get(slot(LayerSlot::DownJoint)).expect("a joint latent").clone();
        for (row, _) in turns.iter().enumerate().filter(|(_, turns)| **turns) {
            down.data[row * down.cols..(row + 1) * down.cols].fill(0.0);
        }
        map.insert(slot(LayerSlot::DownJoint), down);
    }
    with_config(map, config)
}

fn with_config(map: WeightMap, config: DecoderConfig) -> WeightMap {
    let mut with = WeightMap::new(config);
    let donor_slots = (0..map.config().n_layers()).flat_map(|layer| {
        [
            LayerSlot::DownJoint,
            LayerSlot::UpJoint,
            LayerSlot::UpShared,
            LayerSlot::DownShared(Part::Weight),
            LayerSlot::DownShared(Part::Bias),
            LayerSlot::Key(Part::Bias),
        ]
        .map(|slot| Slot::Layer(layer, slot))
    });
    for slot in donor_slots {
        if let Some(matrix) = map.get(slot) {
            with.insert(slot, matrix.clone());
        }
    }
    with
}

/// Latents of some width that have nothing to do with the donor.
pub fn random(model: &Model, d_latent_k: usize, d_latent_v: usize, seed: u64) -> WeightMap {
    let width = LatentWidth::Split { d_latent_k, d_latent_v };
    random_factors(with_latents(model.config(), |_| Some(width)), seed)
}

/// Factors of a converted graph that have nothing to do with the donor.
pub fn random_factors(config: DecoderConfig, seed: u64) -> WeightMap {
    let mut state = seed;
    let mut draw = || {
        let (next, number) = split_mix(state);
        state = next;
        // 24 bits of the draw, from -0.5 to 0.5.
        (number >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let needed = needed(&config);
    let mut map = WeightMap::new(config);
    for (slot, [rows, cols]) in needed {
        map.insert(slot, Matrix::new(rows, cols, (0..rows * cols).map(|_| draw()).collect()));
    }
    map
}

/// The factors a converted graph needs, `[d_out, d_in]`, written out from the glossary and not from the writer's table.
pub fn needed(config: &DecoderConfig) -> Vec<(Slot, [usize; 2])> {
    let (d_model, d_kv) = (config.d_model, config.d_kv());
    let mut needed = Vec::new();
    for layer in 0..config.n_layers() {
        let AttentionKind::Latent(latent) = &config.layers[layer].attention else { continue };
        let mut add = |slot, shape| needed.push((Slot::Layer(layer, slot), shape));
        let leads = latent.up_of == layer;
        let normed = config.layers[layer].qk_norm.is_some();
        let (read_k, read_both) = if normed { (d_kv, d_kv + d_model) } else { (d_model, d_model) };
        let own = match latent.width {
            LatentWidth::Split { d_latent_k, d_latent_v } => {
                add(LayerSlot::DownKey, [d_latent_k, read_k]);
                if leads {
                    add(LayerSlot::UpKey, [d_kv, d_latent_k]);
                }
                add(LayerSlot::DownValue, [d_latent_v, d_model]);
                if leads {
                    add(LayerSlot::UpValue, [d_kv, d_latent_v]);
                }
                [d_latent_v, d_latent_k]
            }
            LatentWidth::Joint { d_latent } => {
                add(LayerSlot::DownJoint, [d_latent, read_both]);
                if leads {
                    add(LayerSlot::UpJoint, [2 * d_kv, d_latent]);
                }
                [0, 0]
            }
        };
        if let Some(shared) = latent.shared_key() {
            let d_rope = shared.d_rope();
            add(LayerSlot::DownShared(Part::Weight), [d_rope, read_k]);
            add(LayerSlot::UpShared, [d_kv, d_rope]);
            if config.biases.qkv && !normed {
                add(LayerSlot::DownShared(Part::Bias), [1, d_rope]);
                add(LayerSlot::Key(Part::Bias), [1, d_kv]);
            }
        }
        let Some(first) = latent.reads_from else { continue };
        let width = |earlier: &LayerConfig| match &earlier.attention {
            AttentionKind::Grouped => 0,
            AttentionKind::Latent(latent) => latent.width.total(),
        };
        let earlier: usize = config.layers[first..layer].iter().map(width).sum();
        let columns = own.map(|own| own + earlier);
        if columns != [0, 0] {
            add(LayerSlot::CrossKey, [d_kv, columns[0]]);
            add(LayerSlot::CrossValue, [d_kv, columns[1]]);
        }
    }
    needed
}

/// A graph whose layers cache latents of the given widths, each on its own.
pub fn with_latents(config: &DecoderConfig, width: impl Fn(usize) -> Option<LatentWidth>) -> DecoderConfig {
    let mut config = config.clone();
    for (layer, place) in config.layers.iter_mut().enumerate() {
        if let Some(width) = width(layer) {
            place.attention = AttentionKind::Latent(LatentConfig::alone(layer, width));
        }
    }
    config
}

/// The section that describes a conversion.
pub fn section(factors: &WeightMap) -> MlaSection {
    MlaSection::from_config("by hand", "mse", factors.config(), false)
}

fn weight(model: &Model, slot: Slot) -> Matrix {
    Matrix::from_tensor(&model.matrix(slot, &Device::default()).expect("a projection"))
}

/// `[I, 0; 0, W_v]`, which makes `[k̂; v]` of `[k̂; h]`.
fn beside_normed_keys(w_v: &Matrix) -> Matrix {
    let (d_kv, d_model) = (w_v.rows, w_v.cols);
    let entry = |row: usize, column: usize| match (row < d_kv, column < d_kv) {
        (true, true) => f32::from(u8::from(row == column)),
        (false, false) => w_v.data[(row - d_kv) * d_model + column - d_kv],
        _ => 0.0,
    };
    let columns = d_kv + d_model;
    let data = (0..2 * d_kv).flat_map(|row| (0..columns).map(move |column| entry(row, column))).collect();
    Matrix::new(2 * d_kv, columns, data)
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
