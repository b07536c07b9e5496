//! The Fisher information, block by block, against one backward pass through the whole model.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Tensor, TensorData};
use calib::linalg::{Mat64, add_gram};
use calib::{FisherOptions, Labels, Needs, Statistics};
use mla_core::decoder::frame;
use mla_core::{Attention, Decoder, Memory, Padding, WeightMap};
use proptest::prelude::*;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use crate::bench::{device, gap, host, logits, scratch};
use crate::models::{Sizes, Style, VOCAB, of, sizes};

fn fisher(model: &WeightMap, windows: &[Vec<u32>], options: FisherOptions) -> Vec<[Mat64; 2]> {
    let needs = Needs { window: 0, queries: false, fisher: Some(options), sink: 0.6, shared: Vec::new() };
    let found =
        Statistics::of_text(model, windows, &needs, &device(), &scratch(), &mut ()).expect("statistics");
    let layers = 0..WeightMap::config(model).n_layers();
    layers.map(|layer| found.fisher(layer).expect("it can be read").expect("it was asked for")).collect()
}

/// The sum of `g gᵀ` at every k_proj and v_proj by one backward pass through the whole model, with g the gradient of the
/// cross-entropy against some labels, each at a token; the first token of a window counts or does not.
fn reference(
    model: &WeightMap,
    windows: &[Vec<u32>],
    labels: &[(usize, u32)],
    first_position: bool,
) -> Vec<[Mat64; 2]> {
    let device = &device().autodiff();
    let config = WeightMap::config(model);
    let (count, length) = (windows.len(), windows[0].len());
    let decoder = Decoder::load(model, device).expect("the weights load");
    let frame = frame(config, &Padding::none(count), length, device);
    let mut memory = Memory::of_pass(config);
    let mut x = Decoder::embed_from(model, windows, device).expect("embeddings");
    let mut probes = Vec::new();
    for (layer, block) in decoder.blocks.iter().enumerate() {
        let Attention::Grouped(attention) = &block.attention else { panic!("a donor") };
        let probe = || Tensor::<3>::zeros([count, length, config.d_kv()], device).require_grad();
        let (at_key, at_value) = (probe(), probe());
        let h = block.attention_input(x.clone());
        let (k, v) = attention.project(h.clone());
        let (k, v) = (k + at_key.clone(), v + at_value.clone());
        x = block.after_attention(x, attention.attend(h, k, v, &frame, layer, &mut memory));
        probes.push([at_key, at_value]);
    }
    let logits = decoder.logits(decoder.final_norm.forward(x));
    let mut onehot = vec![0.0f32; count * length * VOCAB];
    for &(place, label) in labels {
        onehot[place * VOCAB + label as usize] = 1.0;
    }
    let onehot = Tensor::<3>::from_data(TensorData::new(onehot, [count, length, VOCAB]), device);
    let gradients = (log_softmax(logits, 2) * onehot).sum().neg().backward();
    let gram = |leaf: &Tensor<3>| {
        let g = host(leaf.grad(&gradients).expect("a gradient"));
        let mut g: Vec<f64> = g.into_iter().map(f64::from).collect();
        if !first_position {
            g.chunks_exact_mut(length * config.d_kv()).for_each(|window| window[..config.d_kv()].fill(0.0));
        }
        let mut sum = Mat64::zeros(config.d_kv(), config.d_kv());
        add_gram(&mut sum, &g);
        for r in 0..sum.rows {
            (0..r).for_each(|c| sum.data[c * sum.cols + r] = sum.at(r, c));
        }
        sum
    };
    probes.iter().map(|pair| pair.each_ref().map(gram)).collect()
}

fn given(labels: &[u32], draws: usize, windows: usize) -> FisherOptions {
    FisherOptions { labels: Labels::Given(labels.to_vec()), draws, windows, first_position: true }
}

/// The tokens whose next one is in their window: all of it but the last.
fn scored(windows: usize, length: usize) -> impl Iterator<Item = usize> {
    (0..windows * length).filter(move |token| (token + 1) % length != 0)
}

fn labels(sizes: &Sizes, count: usize) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(sizes.seed + 77);
    (0..count).map(|_| rng.random_range(0..VOCAB as u32)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn given_labels_give_the_gradients_of_the_whole_model(
        sizes in sizes(), windows in 1usize..4, length in 2usize..9, first_position: bool,
    ) {
        let (model, text) = (sizes.model(), sizes.text(windows, length, 4));
        let labels = labels(&sizes, windows * (length - 1));
        let placed: Vec<(usize, u32)> = scored(windows, length).zip(labels.iter().copied()).collect();
        let expected = reference(&model, &text, &placed, first_position);
        let options = FisherOptions { labels: Labels::Given(labels), draws: 1, windows, first_position };
        for (layer, (found, expected)) in fisher(&model, &text, options).iter().zip(&expected).enumerate() {
            for (found, expected) in found.iter().zip(expected) {
                let mut expected = expected.clone();
                expected.scale(1.0 / (windows * length) as f64);
                let size = expected.data.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
                let gap = gap(&found.data, &expected.data);
                // Both sides go through up to four layers in f32, in different orders; where a query sees one key, its
                // gradient is nothing but rounding.
                prop_assert!(gap <= 5e-4 * size + 1e-12, "layer {layer}: {gap:e} of {size:e}");
            }
        }
    }
}

#[test]
fn a_pass_without_draws_text_or_enough_labels_is_refused() {
    let sizes = of(Style::Rotary, 2, 3);
    let (model, labels) = (sizes.model(), labels(&sizes, 6));
    let refused = |text: &[Vec<u32>], options: FisherOptions| {
        let needs = Needs { window: 0, queries: false, fisher: Some(options), sink: 0.6, shared: Vec::new() };
        let error = Statistics::of_text(&model, text, &needs, &device(), &scratch(), &mut ());
        error.expect_err("too little").to_string()
    };
    let text = sizes.text(2, 4, 4);
    for (options, what) in [
        (given(&labels, 0, 2), "the Fisher pass needs 1 draw, and 0 were given"),
        (given(&labels, 1, 0), "the Fisher pass needs 1 window, and 0 were given"),
        (given(&labels[..5], 1, 2), "the Fisher pass needs 6 labels, and 5 were given"),
        (given(&labels, 2, 2), "the Fisher pass needs 12 labels, and 6 were given"),
    ] {
        assert_eq!(refused(&text, options), what);
    }
    let one = refused(&sizes.text(2, 1, 4), given(&[], 1, 2));
    assert_eq!(one, "the Fisher pass needs 2 tokens a window, and 1 were given");
    assert_eq!(refused(&[], given(&[], 1, 2)), "the calibration text is empty");
}

#[test]
fn windows_in_several_batches_are_as_if_in_one() {
    // 80 windows of 32 tokens are two batches; the labels go on where the first batch ends.
    let sizes = of(Style::Rotary, 2, 21);
    let (model, text) = (sizes.model(), sizes.text(80, 32, 4));
    let labels = labels(&sizes, 80 * 31);
    let options = |labels: &[u32], windows| given(labels, 1, windows);
    let whole = fisher(&model, &text, options(&labels, 80));
    let halves = [0, 1].map(|half| {
        fisher(
            &model,
            &text[40 * half..40 * (half + 1)],
            options(&labels[40 * 31 * half..40 * 31 * (half + 1)], 40),
        )
    });
    for layer in 0..2 {
        for part in 0..2 {
            let mut mean = halves[0][layer][part].clone();
            mean.add(&halves[1][layer][part]);
            mean.scale(0.5);
            assert!(gap(&mean.data, &whole[layer][part].data) < 1e-5 * mean.trace());
        }
    }
}

/// Gradients of different positions are uncorrelated under the model's own labels, so the Fisher information is a sum over
/// positions and labels: enough for a few tokens of a small vocabulary to be written out.
#[test]
fn sampled_labels_give_the_fisher_information_in_expectation() {
    for style in [Style::Rotary, Style::Learned] {
        let sizes = of(style, 2, 8);
        let (model, text) = (sizes.model(), sizes.text(1, 4, 5));
        let logits = logits(&model, &text);
        let mut expected: Option<Vec<[Mat64; 2]>> = None;
        for token in scored(1, 4) {
            let row = &logits[token * VOCAB..(token + 1) * VOCAB];
            let z: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
            for (label, &logit) in row.iter().enumerate() {
                let mut part = reference(&model, &text, &[(token, label as u32)], true);
                part.iter_mut().flatten().for_each(|m| m.scale(f64::from(logit).exp() / z / 4.0));
                match &mut expected {
                    None => expected = Some(part),
                    Some(sum) => {
                        sum.iter_mut().flatten().zip(part.iter().flatten()).for_each(|(a, b)| a.add(b))
                    }
                }
            }
        }
        let labels = Labels::Sampled { seed: 2 };
        let found =
            fisher(&model, &text, FisherOptions { labels, draws: 4000, windows: 1, first_position: true });
        let pairs = found.iter().flatten().zip(expected.iter().flatten().flatten());
        for (place, (found, expected)) in pairs.enumerate() {
            let ratio = found.trace() / expected.trace();
            // The mean of a few thousand draws, some of them of rare labels.
            assert!((0.9..1.1).contains(&ratio), "{style:?}, {place}: {ratio}");
            // Not the size alone: the two matrices point the same way.
            let product = |a: &Mat64, b: &Mat64| a.data.iter().zip(&b.data).map(|(x, y)| x * y).sum::<f64>();
            let cosine =
                product(found, expected) / (product(found, found) * product(expected, expected)).sqrt();
            assert!(cosine > 0.98, "{style:?}, {place}: {cosine}");
        }
    }
}

#[test]
fn fewer_windows_are_some_of_the_windows() {
    let sizes = of(Style::Learned, 2, 6);
    let (model, text) = (sizes.model(), sizes.text(12, 6, 5));
    let options = |windows| FisherOptions {
        labels: Labels::Sampled { seed: 3 },
        draws: 1,
        windows,
        first_position: true,
    };
    // Every third of twelve.
    let some: Vec<Vec<u32>> = text.iter().step_by(3).cloned().collect();
    assert_eq!(fisher(&model, &text, options(4)), fisher(&model, &some, options(4)));
    assert_ne!(fisher(&model, &text, options(4)), fisher(&model, &text, options(12)));
    assert_eq!(fisher(&model, &text, options(99)), fisher(&model, &text, options(12)));
}

#[test]
fn more_draws_are_a_mean_of_draws() {
    let sizes = of(Style::Rotary, 2, 6);
    let (model, text) = (sizes.model(), sizes.text(3, 6, 5));
    let labels = labels(&sizes, 2 * 3 * 5);
    let both = fisher(&model, &text, given(&labels, 2, 3));
    let each = [&labels[..15], &labels[15..]].map(|labels| fisher(&model, &text, given(labels, 1, 3)));
    for layer in 0..2 {
        for part in 0..2 {
            let mut mean = each[0][layer][part].clone();
            mean.add(&each[1][layer][part]);
            mean.scale(0.5);
            assert!(gap(&mean.data, &both[layer][part].data) < 1e-6 * mean.trace());
        }
    }
}
