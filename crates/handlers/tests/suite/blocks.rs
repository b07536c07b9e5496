//! One block at a time over the layers, as calibration runs a model: what a pass remembers, and parts loaded alone.

use burn::tensor::Device;
use mla_core::attention::Attention;
use mla_core::cache::PassLatents;
use mla_core::decoder::{Norm, frame};
use mla_core::{Block, Decoder, Matrix, Memory, Padding, Patch, WeightSource};

use crate::conversion::{exact_joint, random_factors};
use crate::graphs::{Deep, cascade};
use crate::latent::OURSELVES;
use crate::twin::{Golden, assert_close, gap, host, load, logits, open, twins};

/// Layer 3 of a cascade for given residual streams of the layers below it, block by block as calibration runs them.
fn third_layer<S: WeightSource>(source: &S, streams: [f32; 3]) -> Vec<f32> {
    let (config, device) = (source.config(), Device::default());
    let frame = frame(config, &Padding::none(1), 4, &device);
    let mut memory = Memory::of_pass(config);
    let stream = |shift: f32| {
        let data = (0..4 * config.d_model).map(|i| (0.3 * i as f32 + shift).cos()).collect();
        Matrix::new(4, config.d_model, data).to_tensor(&device).unsqueeze::<3>()
    };
    for (layer, shift) in streams.into_iter().enumerate() {
        let block = Block::load(source, layer, &device).expect("a block");
        drop(block.forward(stream(shift), &frame, layer, &mut memory));
    }
    let block = Block::load(source, 3, &device).expect("a block");
    host(block.forward(stream(0.5), &frame, 3, &mut memory))
}

#[test]
fn a_cascade_layer_reads_its_window_and_nothing_before_it() {
    for name in twins() {
        let model = open(name);
        let deep = Deep::new(&model);
        for (kept, moved) in [(None, [false, true, true]), (Some(1), [false, false, true])] {
            let factors = random_factors(cascade(deep.config(), 2, |layer| Some(layer) == kept), 6);
            let source = factors.over(&deep);
            let plain = third_layer(&source, [0.0; 3]);
            for (layer, moved) in moved.into_iter().enumerate() {
                let mut streams = [0.0; 3];
                streams[layer] = 1.0;
                let gap = gap(&third_layer(&source, streams), &plain);
                assert_eq!(gap > 1e-3, moved, "{name}, layer {layer}, kept {kept:?}: {gap}");
                assert_eq!(gap == 0.0, !moved, "{name}, layer {layer}, kept {kept:?}: {gap}");
            }
        }
    }
}

#[test]
fn a_pass_keeps_a_latent_only_as_long_as_a_layer_reads_it() {
    let model = open("llama");
    let deep = Deep::new(&model);
    let (device, config) = (Device::default(), cascade(deep.config(), 2, |layer| layer == 1));
    let factors = random_factors(config.clone(), 2);
    let decoder = load(&factors.over(&deep));
    let frame = frame(&config, &Padding::none(1), 3, &device);
    let mut memory = Memory::of_pass(&config);
    let mut x = Decoder::embed_from(&deep, &[vec![1, 2, 3]], &device).expect("rows");
    // After each layer; 4 and 5 read no further than 2, and no layer reads the last.
    let kept: [&[usize]; 6] = [&[0], &[0], &[0, 2], &[2, 3], &[2, 3, 4], &[3, 4]];
    for (layer, block) in decoder.blocks.iter().enumerate() {
        for again in 0..2 {
            let out = block.forward(x.clone(), &frame, layer, &mut memory);
            let Memory::Pass(pass) = &memory else { panic!("no cache") };
            assert_eq!(pass.layers(), kept[layer], "after layer {layer}");
            if again == 1 {
                x = out;
            }
        }
    }
    let whole = host(decoder.hidden(&[vec![1, 2, 3]], &Padding::none(1)));
    assert_eq!(host(decoder.final_norm.forward(x)), whole);

    let (donor, mut memory) = (load(&deep), Memory::of_pass(deep.config()));
    let x = Decoder::embed_from(&deep, &[vec![1, 2, 3]], &device).expect("rows");
    drop(donor.blocks[0].forward(x, &frame, 0, &mut memory));
    assert!(matches!(&memory, Memory::Pass(pass) if pass.layers().is_empty()));
}

#[test]
#[should_panic(expected = "the latents of layer 0 were not kept")]
fn a_pass_of_the_donor_keeps_nothing_for_its_cascade() {
    let model = open("llama");
    let factors = random_factors(cascade(model.config(), 2, |_| false), 2);
    let device = Device::default();
    let block = Block::load(&factors.over(&model), 1, &device).expect("a block");
    let frame = frame(model.config(), &Padding::none(1), 2, &device);
    let x = Decoder::embed_from(&model, &[vec![1, 2]], &device).expect("rows");
    drop(block.forward(x, &frame, 1, &mut Memory::Pass(PassLatents::new(model.config()))));
}

#[test]
fn a_block_runs_in_two_halves_as_in_one() {
    for name in twins() {
        let model = open(name);
        let device = Device::default();
        let block = Block::load(&model, 1, &device).expect("a block");
        let frame = frame(model.config(), &Padding::none(1), 3, &device);
        let x = Decoder::embed_from(&model, &[vec![4, 5, 6]], &device).expect("rows");
        let mut memory = Memory::of_pass(model.config());
        let whole = host(block.forward(x.clone(), &frame, 1, &mut memory));
        let Attention::Grouped(attention) = &block.attention else { panic!("a donor") };
        let h = block.attention_input(x.clone());
        let (k, v) = attention.project(h.clone());
        assert_eq!(k.dims(), [1, 3, model.config().d_kv()], "{name}");
        let attended = attention.attend(h, k, v, &frame, 1, &mut memory);
        assert_eq!(host(block.after_attention(x, attended)), whole, "{name}");
    }
}

/// Calibration loads a donor's block once and tries several attentions in it.
#[test]
fn an_attention_and_the_final_norm_load_without_the_rest() {
    for name in twins() {
        let model = open(name);
        let device = Device::default();
        let factors = exact_joint(&model);
        let candidate = Attention::load(&factors.over(&model), 1, &device).expect("an attention");
        let mut decoder = load(&model);
        decoder.blocks[1] = Block { attention: candidate, ..decoder.blocks[1].clone() };
        decoder.final_norm = Norm::load_final(&model, &device).expect("a norm");
        let ids = &Golden::of(name).ids("prefill.ids")[0];
        assert_close(&logits(&decoder, ids), &logits(&load(&model), ids), OURSELVES, name);
    }
}
