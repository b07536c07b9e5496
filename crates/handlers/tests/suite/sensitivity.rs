//! The goldens would catch a mistake: each one moves a logit by far more than `goldens.rs` allows.

use burn::tensor::Device;
use handlers::{Error, Model};
use mla_core::attention::ScoreConfig;
use mla_core::decoder::PositionKind;
use mla_core::positions::RopeScaling;
use mla_core::{DecoderConfig, LayerSlot, Matrix, Part, Patch, Slot, WeightMap, WeightSource};

use crate::scratch::Scratch;
use crate::twin::{Golden, biased, gap, load, logits, open, twins};

/// How far the prefill's logits are from transformers' when a twin is read through a patch.
fn deviation(name: &str, patch: impl FnOnce(&Model, &mut DecoderConfig) -> Vec<(Slot, Matrix)>) -> f32 {
    let (model, golden) = (open(name), Golden::of(name));
    let mut config = model.config().clone();
    let tensors = patch(&model, &mut config);
    let mut map = WeightMap::new(config);
    for (slot, matrix) in tensors {
        map.insert(slot, matrix);
    }
    let decoder = load(&map.over(&model));
    gap(&logits(&decoder, &golden.ids("prefill.ids")[0]), &golden.floats("prefill.logits"))
}

fn assert_caught(deviation: f32, what: &str) {
    assert!(deviation > 1e-2, "{what}: the goldens move by {deviation:e} only");
}

fn every_layer(config: &DecoderConfig, slot: LayerSlot) -> Vec<Slot> {
    (0..config.n_layers()).map(|layer| Slot::Layer(layer, slot)).collect()
}

/// `W` with the rows of each head reordered so that neighbours become halves.
fn neighbours_to_halves(w: &Matrix, d_head: usize) -> Matrix {
    let half = d_head / 2;
    let from = |row: usize| {
        let (head, place) = (row / d_head, row % d_head);
        head * d_head + 2 * (place % half) + place / half
    };
    let data = (0..w.rows).flat_map(|row| w.data[from(row) * w.cols..][..w.cols].to_vec()).collect();
    Matrix::new(w.rows, w.cols, data)
}

fn read(model: &Model, slot: Slot) -> Matrix {
    let device = Device::flex();
    match slot {
        Slot::Layer(
            _,
            LayerSlot::Query(Part::Bias) | LayerSlot::Key(Part::Bias) | LayerSlot::Value(Part::Bias),
        ) => Matrix::from_tensor(&model.vector(slot, &device).expect("a vector").unsqueeze_dim::<2>(1)),
        _ => Matrix::from_tensor(&model.matrix(slot, &device).expect("a matrix")),
    }
}

#[test]
fn an_unpatched_twin_does_not_deviate() {
    for name in twins() {
        let gap = deviation(name, |_, _| Vec::new());
        assert!(gap < 2e-4, "{name}: {gap}");
    }
}

#[test]
fn rotating_neighbours_in_place_of_halves_is_caught() {
    for name in twins().into_iter().filter(|&name| name != "gpt2") {
        // A norm over each head has a gain a dimension, which would have to be reordered too, and a part of a head that turns
        // is not a head.
        let config = open(name).config().clone();
        let whole = |layer| config.rope(layer).is_none_or(|rope| rope.d_rotary == config.d_head);
        if config.layers.iter().any(|layer| layer.qk_norm.is_some()) || !(0..config.n_layers()).all(whole) {
            continue;
        }
        let wrong = deviation(name, |model, config| {
            let mut slots = Vec::new();
            for part in [Part::Weight, Part::Bias].into_iter().take(1 + usize::from(config.biases.qkv)) {
                slots.extend(every_layer(config, LayerSlot::Query(part)));
                slots.extend(every_layer(config, LayerSlot::Key(part)));
            }
            let reorder = |slot| (slot, neighbours_to_halves(&read(model, slot), config.d_head));
            slots.into_iter().map(reorder).collect()
        });
        assert_caught(wrong, name);
    }
}

#[test]
fn a_dropped_bias_is_caught() {
    for name in biased() {
        let biases: [fn(Part) -> LayerSlot; 3] = [LayerSlot::Query, LayerSlot::Key, LayerSlot::Value];
        for slot in biases {
            let slot = slot(Part::Bias);
            let wrong = deviation(name, |model, config| {
                let zeros =
                    |slot| (slot, Matrix::new(1, read(model, slot).rows, vec![0.0; read(model, slot).rows]));
                every_layer(config, slot).into_iter().map(zeros).collect()
            });
            // Without a rotation a key's bias adds the same score to every position, which the softmax removes.
            if (name, slot) == ("gpt2", LayerSlot::Key(Part::Bias)) {
                assert!(wrong < 2e-4, "{name}, {slot:?}: {wrong}");
            } else {
                assert_caught(wrong, &format!("{name}, {slot:?}"));
            }
        }
    }
}

#[test]
fn an_ignored_window_is_caught() {
    for name in ["mistral", "qwen2-window"] {
        let wrong = deviation(name, |_, config| {
            assert!(config.layers.iter().any(|layer| layer.window == Some(8)));
            config.layers.iter_mut().for_each(|layer| layer.window = None);
            Vec::new()
        });
        assert_caught(wrong, name);
    }
}

#[test]
fn a_window_from_the_first_layer_on_is_caught() {
    let wrong = deviation("qwen2-window", |_, config| {
        config.layers.iter_mut().for_each(|layer| layer.window = Some(8));
        Vec::new()
    });
    assert_caught(wrong, "qwen2-window");
}

#[test]
fn a_window_one_position_too_wide_is_caught() {
    for name in ["mistral", "qwen2-window"] {
        let wrong = deviation(name, |_, config| {
            config.layers.iter_mut().for_each(|layer| layer.window = layer.window.map(|window| window + 1));
            Vec::new()
        });
        assert_caught(wrong, name);
    }
}

#[test]
fn an_ignored_rope_setting_is_caught() {
    for name in twins().into_iter().filter(|&name| name != "gpt2") {
        let with = |edit: fn(&mut mla_core::positions::RopeConfig)| {
            deviation(name, |_, config| {
                let PositionKind::Rope(ropes) = &mut config.position else { panic!("{name} has no rope") };
                ropes.iter_mut().for_each(edit);
                Vec::new()
            })
        };
        assert_caught(with(|rope| rope.theta *= 2.0), &format!("{name}, theta"));
        let config = open(name).config().clone();
        if config.ropes().iter().any(|rope| rope.scaling != RopeScaling::None) {
            assert_caught(with(|rope| rope.scaling = RopeScaling::None), &format!("{name}, scaling"));
        }
    }
}

/// These two have `head_dim` 16 where `d_model / n_heads` is 8.
#[test]
fn heads_of_half_the_width_are_caught() {
    for name in ["llama", "llama-dynamic"] {
        let wrong = deviation(name, |_, config| {
            assert_eq!(config.d_head, 2 * (config.d_model / config.n_heads));
            (config.d_head, config.n_heads, config.n_kv_heads) =
                (config.d_head / 2, 2 * config.n_heads, 2 * config.n_kv_heads);
            let PositionKind::Rope(ropes) = &mut config.position else { panic!("{name} has no rope") };
            ropes.iter_mut().for_each(|rope| rope.d_rotary = config.d_head);
            let scores = ScoreConfig::plain(config.d_head);
            config.layers.iter_mut().for_each(|layer| layer.scores = scores);
            Vec::new()
        });
        assert_caught(wrong, name);
    }
}

/// The peer ignored `head_dim`: its conversion succeeded and the first pass crashed.
#[test]
fn a_head_dim_that_is_ignored_does_not_fit_the_weights() {
    let scratch = Scratch::of("llama");
    scratch.set("head_dim", serde_json::Value::Null);
    match scratch.open() {
        Err(Error::Shape { key, expected, found, .. }) => {
            assert_eq!(key, "model.layers.0.self_attn.q_proj.weight");
            assert_eq!((expected, found), (vec![32, 32], vec![64, 32]));
        }
        other => panic!("{other:?}"),
    }
}
