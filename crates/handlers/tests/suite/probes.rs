//! Gradients at K and V, as calibration takes them: zero leaves added to what a donor's layer projects.

use burn::tensor::{Device, Tensor};
use mla_core::attention::Attention;
use mla_core::decoder::{Norm, frame};
use mla_core::{Block, Decoder, Memory, Padding, WeightSource};

use crate::twin::{assert_close, host, open, twins};

const IDS: [u32; 5] = [4, 2, 7, 1, 3];

/// A scalar that depends on every logit-to-be, with probes added to K and V of layer 1.
fn loss<S: WeightSource>(source: &S, probes: &[Tensor<3>; 2], device: &Device) -> Tensor<1> {
    let config = source.config();
    let frame = frame(config, &Padding::none(1), IDS.len(), device);
    let mut memory = Memory::of_pass(config);
    let mut x = Decoder::embed_from(source, &[IDS.to_vec()], device).expect("rows");
    for layer in 0..config.n_layers() {
        let block = Block::load(source, layer, device).expect("a block");
        let h = block.attention_input(x.clone());
        let Attention::Grouped(attention) = &block.attention else { panic!("a donor") };
        let (mut k, mut v) = attention.project(h.clone());
        if layer == 1 {
            (k, v) = (k + probes[0].clone(), v + probes[1].clone());
        }
        let attended = attention.attend(h, k, v, &frame, layer, &mut memory);
        x = block.after_attention(x, attended);
    }
    let x = Norm::load_final(source, device).expect("a norm").forward(x);
    let weights: Vec<f32> = (0..IDS.len() * config.d_model).map(|i| (i as f32 * 0.9).sin()).collect();
    let weights = Tensor::<1>::from_data(weights.as_slice(), device).reshape([1, IDS.len(), config.d_model]);
    (x * weights).sum()
}

#[test]
fn gradients_at_keys_and_values_equal_finite_differences() {
    for name in twins() {
        let model = open(name);
        let (plain, autodiff) = (Device::flex(), Device::flex().autodiff());
        let shape = [1, IDS.len(), model.config().d_kv()];
        let zeros = |device: &Device| Tensor::<3>::zeros(shape, device);
        let leaves = [zeros(&autodiff).require_grad(), zeros(&autodiff).require_grad()];
        let grads = loss(&model, &leaves, &autodiff).backward();
        for (which, leaf) in leaves.iter().enumerate() {
            let found = host(leaf.grad(&grads).expect("a gradient"));
            // Along one direction a tensor: a hundredth of a wave, more of one that a flat loss would not hear.
            let steepness = found.iter().map(|g| g * g).sum::<f32>().sqrt();
            let amplitude = 0.01 * (0.6 / steepness).max(1.0);
            let direction: Vec<f32> = (0..found.len()).map(|i| (i as f32 * 1.7).cos() * amplitude).collect();
            let shifted = |sign: f32| {
                let step: Vec<f32> = direction.iter().map(|d| sign * d).collect();
                let step = Tensor::<1>::from_data(step.as_slice(), &plain).reshape(shape);
                let mut probes = [zeros(&plain), zeros(&plain)];
                probes[which] = step;
                host(loss(&model, &probes, &plain))[0]
            };
            let expected = (shifted(1.0) - shifted(-1.0)) / 2.0;
            let slope: f32 = found.iter().zip(&direction).map(|(g, d)| g * d).sum();
            let size = steepness * amplitude;
            // Far above the rounding of two sums in f32, which is what the bound allows.
            assert!(size > 5e-3, "{name}, {which}: the probe is heard");
            assert_close(&[slope], &[expected], 5e-5, &format!("{name}, {which}"));
        }
    }
}
