//! Joint latents, cross terms and shared `W_up` at run time: against the donor, against no cache, against formulas.

use burn::tensor::Device;
use mla_core::attention::{Attention, LatentAttention, Projections};
use mla_core::decoder::{AttentionKind, LatentConfig, LatentWidth};
use mla_core::{
    Block, Decoder, DecoderConfig, LayerSlot, Matrix, Padding, Part, Patch, Slot, WeightMap, WeightSource,
};

use crate::conversion::{exact, exact_joint, exact_shared, needed, random_factors, with_latents};
use crate::graphs::{Deep, cascade, graphs, groups, joint, reading};
use crate::latent::{OURSELVES, formula, full};
use crate::twin::{
    Golden, assert_close, biased, cached_logits, gap, host, left_padded, load, logits, open, token_by_token,
    twins,
};

/// [`OURSELVES`] for factors that were drawn: keys and values are then several times as large as a donor's.
const OF_RANDOM: f32 = 5e-4;

/// Runs a check on every kind of converted graph over six layers of every twin.
fn every_graph(check: impl Fn(&str, &Decoder, &[Vec<u32>])) {
    for (seed, name) in twins().into_iter().enumerate() {
        let model = open(name);
        let deep = Deep::new(&model);
        let ids = Golden::of(name).ids("prefill.ids");
        for (kind, config) in graphs(deep.config()) {
            let factors = random_factors(config, seed as u64);
            check(&format!("{name}, {kind}"), &load(&factors.over(&deep)), &ids);
        }
    }
}

/// The exact conversion with cross terms over everything before, filled by `fill`.
fn exact_with_cross_terms(name: &str, fill: impl Fn(Slot, [usize; 2]) -> Matrix) -> (WeightMap, WeightMap) {
    let model = open(name);
    let plain = exact(&model);
    let mut map = WeightMap::new(reading(plain.config().clone(), usize::MAX));
    for (slot, shape) in needed(map.config()) {
        let matrix = plain.get(slot).cloned().unwrap_or_else(|| fill(slot, shape));
        map.insert(slot, matrix);
    }
    (plain, map)
}

fn zeros([rows, cols]: [usize; 2]) -> Matrix {
    Matrix::new(rows, cols, vec![0.0; rows * cols])
}

/// `[I 0]`.
fn first_columns([rows, cols]: [usize; 2]) -> Matrix {
    Matrix::new(rows, cols, (0..rows * cols).map(|i| f32::from(u8::from(i / cols == i % cols))).collect())
}

#[test]
fn joint_latents_of_full_width_are_the_donor() {
    for name in twins() {
        let (model, golden) = (open(name), Golden::of(name));
        let ids = &golden.ids("prefill.ids")[0];
        let ours = logits(&load(&exact_joint(&model).over(&model)), ids);
        assert_close(&ours, &logits(&load(&model), ids), OURSELVES, name);
        assert_close(&ours, &golden.floats("prefill.logits"), 2e-4, &format!("{name}, transformers"));
    }
}

#[test]
fn a_shared_key_of_all_that_turns_is_the_donor() {
    for name in twins() {
        let (model, golden) = (open(name), Golden::of(name));
        let factors = exact_shared(&model);
        let turns = (0..model.config().n_layers()).filter(|&layer| model.config().rope(layer).is_some());
        for layer in turns {
            assert!(
                Patch::config(&factors).latent(layer).is_some_and(|latent| latent.d_rope() > 0),
                "{name}"
            );
        }
        let ids = &golden.ids("prefill.ids")[0];
        let ours = logits(&load(&factors.over(&model)), ids);
        assert_close(&ours, &logits(&load(&model), ids), OURSELVES, name);
    }
}

#[test]
fn a_joint_layer_adds_the_biases_of_k_and_v() {
    for name in biased() {
        let model = open(name);
        let ids = &Golden::of(name).ids("prefill.ids")[0];
        let donor = logits(&load(&model), ids);
        let biases: [fn(Part) -> LayerSlot; 2] = [LayerSlot::Key, LayerSlot::Value];
        for slot in biases {
            let mut factors = exact_joint(&model);
            for layer in 0..model.config().n_layers() {
                factors.insert_layer(layer, slot(Part::Bias), zeros([1, model.config().d_kv()]));
            }
            let without = logits(&load(&factors.over(&model)), ids);
            // Learned positions: a key's bias adds the same score everywhere, and the softmax removes it.
            if (name, slot(Part::Bias)) != ("gpt2", LayerSlot::Key(Part::Bias)) {
                assert!(gap(&without, &donor) > 1e-2, "{name}, {:?}", slot(Part::Bias));
            }
        }
    }
}

#[test]
fn cross_terms_of_zeros_change_nothing() {
    for name in twins() {
        let model = open(name);
        let ids = &Golden::of(name).ids("prefill.ids")[0];
        let (_, factors) = exact_with_cross_terms(name, |_, shape| zeros(shape));
        assert!(
            factors
                .get(Slot::Layer(1, LayerSlot::CrossKey))
                .is_some_and(|cross| cross.cols == 3 * cross.rows)
        );
        let ours = logits(&load(&factors.over(&model)), ids);
        assert_close(&ours, &logits(&load(&model), ids), OURSELVES, name);
    }
}

/// Keys live in the latent for values and the other way round: only the cross terms bring them back.
#[test]
fn a_layer_reads_the_other_half_of_its_own_latent_first() {
    for name in twins() {
        let model = open(name);
        // The latent for values cannot hold keys that are normed first.
        if model.config().layers.iter().any(|layer| layer.qk_norm.is_some()) {
            continue;
        }
        let ids = &Golden::of(name).ids("prefill.ids")[0];
        let (plain, mut factors) = exact_with_cross_terms(name, |_, shape| first_columns(shape));
        let d_kv = model.config().d_kv();
        for layer in 0..model.config().n_layers() {
            let get = |slot| plain.get(Slot::Layer(layer, slot)).expect("a factor").clone();
            factors.insert_layer(layer, LayerSlot::DownKey, get(LayerSlot::DownValue));
            factors.insert_layer(layer, LayerSlot::DownValue, get(LayerSlot::DownKey));
            factors.insert_layer(layer, LayerSlot::UpKey, zeros([d_kv; 2]));
            factors.insert_layer(layer, LayerSlot::UpValue, zeros([d_kv; 2]));
        }
        let ours = logits(&load(&factors.over(&model)), ids);
        assert_close(&ours, &logits(&load(&model), ids), OURSELVES, name);
    }
}

/// `W x`, in f64.
fn times(w: &Matrix, x: &[f64]) -> Vec<f64> {
    assert_eq!(w.cols, x.len(), "as many columns as numbers");
    w.data.chunks_exact(w.cols).map(|row| row.iter().zip(x).map(|(a, b)| f64::from(*a) * b).sum()).collect()
}

fn latent_attention(block: &Block) -> &LatentAttention {
    match &block.attention {
        Attention::Latent(attention) => attention,
        Attention::Grouped(_) => panic!("a latent layer"),
    }
}

/// ALGORITHMS §5 written out for one token, with the latents of layers 2 and 3 (one of them joint) read by layer 4.
#[test]
fn keys_and_values_are_rebuilt_as_the_formula_says() {
    for name in biased() {
        let model = open(name);
        let deep = Deep::new(&model);
        let device = Device::default();
        let factors = random_factors(cascade(deep.config(), 2, |_| false), 4);
        let get = |layer, slot| factors.get(Slot::Layer(layer, slot)).expect("a factor");
        let h: Vec<Vec<f64>> = (2..5)
            .map(|l| (0..model.config().d_model).map(|i| ((7 * i + l) as f64).sin()).collect())
            .collect();
        let c_2 =
            [times(get(2, LayerSlot::DownKey), &h[0]), times(get(2, LayerSlot::DownValue), &h[0])].concat();
        let c_3 = times(get(3, LayerSlot::DownJoint), &h[1]);
        let (c_k, c_v) =
            (times(get(4, LayerSlot::DownKey), &h[2]), times(get(4, LayerSlot::DownValue), &h[2]));
        let z_k = [c_v.clone(), c_2.clone(), c_3.clone()].concat();
        let z_v = [c_k.clone(), c_2.clone(), c_3.clone()].concat();
        let bias = |slot: fn(Part) -> LayerSlot| {
            host(deep.vector(Slot::Layer(4, slot(Part::Bias)), &device).expect("a bias"))
        };
        let sum = |own: Vec<f64>, cross: Vec<f64>, bias: Vec<f32>| -> Vec<f32> {
            own.iter().zip(cross).zip(bias).map(|((own, cross), bias)| (own + cross) as f32 + bias).collect()
        };
        let k = sum(
            times(get(4, LayerSlot::UpKey), &c_k),
            times(get(4, LayerSlot::CrossKey), &z_k),
            bias(LayerSlot::Key),
        );
        let v = sum(
            times(get(4, LayerSlot::UpValue), &c_v),
            times(get(4, LayerSlot::CrossValue), &z_v),
            bias(LayerSlot::Value),
        );
        let tensor = |x: &[f64]| {
            let x: Vec<f32> = x.iter().map(|&x| x as f32).collect();
            Matrix::new(1, x.len(), x).to_tensor(&device).unsqueeze::<3>()
        };
        let block = Block::load(&factors.over(&deep), 4, &device).expect("a block");
        let attention = latent_attention(&block);
        assert_eq!(attention.cross.as_ref().map(|cross| cross.reads.clone()), Some(vec![2, 3]));
        let latents = attention.projections.down(tensor(&h[2]));
        assert_close(
            &host(latents.clone()),
            &[c_k, c_v].concat().iter().map(|&c| c as f32).collect::<Vec<_>>(),
            1e-4,
            name,
        );
        let ours = attention.rebuild(latents, &[tensor(&c_2), tensor(&c_3)]);
        assert_close(&host(ours.keys), &k, 1e-4, &format!("{name}, keys"));
        assert_close(&host(ours.values), &v, 1e-4, &format!("{name}, values"));
    }
}

#[test]
fn every_kind_of_latent_comes_from_the_cache_as_from_the_pass() {
    every_graph(|what, decoder, ids| {
        let whole = logits(decoder, &ids[0]);
        let columns = ids[0].len();
        for passes in
            [vec![columns], vec![5, 5, 5, 5, 4], token_by_token(columns, 1), token_by_token(columns, 10)]
        {
            let cached = cached_logits(decoder, ids, Padding::none(1), &passes);
            assert_close(&cached[0], &whole, OF_RANDOM, &format!("{what}, passes {passes:?}"));
        }
    });
}

#[test]
fn every_kind_of_latent_gives_padded_rows_what_each_gives_alone() {
    every_graph(|what, decoder, ids| {
        let vocab = decoder.config().vocab_size;
        let prompts: Vec<Vec<u32>> = [16, 9, 1].map(|n| ids[0][..n].to_vec()).to_vec();
        let (batch, padding) = left_padded(&prompts, 3);
        let columns = batch[0].len();
        let whole = host(decoder.forward(&batch, &padding));
        let cached = cached_logits(decoder, &batch, padding.clone(), &token_by_token(columns, 5));
        for (row, prompt) in prompts.iter().enumerate() {
            let alone = logits(decoder, prompt);
            let real = padding.columns()[row] * vocab..columns * vocab;
            let ours = &whole[row * columns * vocab..][real.clone()];
            assert_close(ours, &alone, OF_RANDOM, &format!("{what}, row {row}"));
            assert_close(
                &cached[row][real],
                &alone,
                OF_RANDOM,
                &format!("{what}, row {row} through the cache"),
            );
        }
    });
}

#[test]
fn every_kind_of_latent_takes_the_bytes_of_its_widths() {
    every_graph(|what, decoder, _| {
        for (batch, capacity) in [(1, 1), (3, 20)] {
            let bytes = full(decoder, batch, capacity);
            assert_eq!(bytes, formula(decoder.config(), batch, capacity), "{what}");
            assert_eq!(bytes, decoder.config().cache_bytes(capacity) * batch, "{what}");
        }
    });
}

#[test]
fn a_layer_with_cross_terms_and_nothing_to_read_has_none() {
    let model = open("llama");
    let config = reading(joint(model.config()), 1);
    assert_eq!((config.cross_columns(0), config.cross_columns(1)), (None, Some([9, 9])));
    let decoder = load(&random_factors(config, 1).over(&model));
    assert!(latent_attention(&decoder.blocks[0]).cross.is_none());
    assert!(latent_attention(&decoder.blocks[1]).cross.is_some());
}

#[test]
fn a_shared_up_projection_is_one_parameter_in_memory() {
    let model = open("qwen2");
    let deep = Deep::new(&model);
    let decoder = load(&random_factors(groups(deep.config(), 2), 3).over(&deep));
    let ids = |layer: usize| match &latent_attention(&decoder.blocks[layer]).projections {
        Projections::Split(split) => vec![split.up_k.weight.id, split.up_v.weight.id],
        Projections::Joint(joint) => vec![joint.up.weight.id],
    };
    let own = |layer: usize| match &latent_attention(&decoder.blocks[layer]).projections {
        Projections::Split(split) => split.down_k.weight.id,
        Projections::Joint(joint) => joint.down.weight.id,
    };
    for leader in [0, 2, 4] {
        assert_eq!(ids(leader), ids(leader + 1), "layers {leader} and {}", leader + 1);
        assert_ne!(own(leader), own(leader + 1));
        assert_ne!(ids(leader), ids((leader + 2) % 6));
    }
    // Each layer keeps its own biases.
    let bias = |layer: usize| match &latent_attention(&decoder.blocks[layer]).projections {
        Projections::Split(split) => host(split.up_k.bias.as_ref().expect("a bias").val()),
        Projections::Joint(joint) => host(joint.up.bias.as_ref().expect("a bias").val()),
    };
    assert_ne!(bias(0), bias(1));
}

/// The groups' factors, and the same with `W_up` copied into every layer: the reference of sharing.
#[test]
fn layers_that_share_an_up_projection_are_as_if_each_had_a_copy() {
    for name in twins() {
        let model = open(name);
        let deep = Deep::new(&model);
        let shared = random_factors(groups(deep.config(), 3), 8);
        let width = |layer| shared.config().latent(layer).map(|latent| latent.width);
        let mut copied = WeightMap::new(with_latents(deep.config(), width));
        for (slot, _) in needed(copied.config()) {
            let Slot::Layer(layer, kind) = slot else { panic!("a factor of a layer") };
            let up = matches!(kind, LayerSlot::UpKey | LayerSlot::UpValue | LayerSlot::UpJoint);
            let from = if up { Slot::Layer(layer - layer % 3, kind) } else { slot };
            copied.insert(slot, shared.get(from).expect("a factor").clone());
        }
        let ids = &Golden::of(name).ids("prefill.ids")[0];
        assert_eq!(
            logits(&load(&shared.over(&deep)), ids),
            logits(&load(&copied.over(&deep)), ids),
            "{name}"
        );
    }
}

#[test]
fn a_latent_config_says_what_a_layer_caches_and_reads() {
    let model = open("llama");
    let deep = Deep::new(&model);
    let config: DecoderConfig = cascade(deep.config(), 2, |layer| layer == 1);
    assert_eq!(config.latent(1), None);
    assert_eq!(config.layers[1].attention, AttentionKind::Grouped);
    assert_eq!((config.reads(0), config.reads(2), config.reads(4)), (vec![], vec![0], vec![2, 3]));
    // Layers 0, 2, 3 and 4 cache 11, 11, 7 and 11 numbers.
    assert_eq!(config.cross_columns(1), None);
    assert_eq!(config.cross_columns(2), Some([6 + 11, 5 + 11]));
    assert_eq!(config.cross_columns(3), Some([11, 11]));
    assert_eq!(config.cross_columns(4), Some([4 + 11 + 7, 7 + 11 + 7]));
    let alone = LatentConfig::alone(0, LatentWidth::Split { d_latent_k: 3, d_latent_v: 8 });
    assert_eq!(config.latent(0), Some(&LatentConfig { reads_from: Some(0), ..alone }));
    assert_eq!(Patch::config(&random_factors(config.clone(), 0)), &config);
}
