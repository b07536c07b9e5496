//! Statistics are those of what k_proj and v_proj really receive, and the same wherever and whenever they are kept.

use burn::tensor::Tensor;
use calib::linalg::Mat64;
use calib::metric::{key_scores, value_outputs};
use calib::{Metric, Needs, Objective, SINK, Scratch, Statistics, stacked};
use mla_core::{Attention, LayerSlot, Matrix, Part, Slot, WeightSource};
use proptest::prelude::*;

use crate::bench::{
    Bench, LENGTH, WINDOWS, bits, cascade, device, gap, host, inputs, load, plan, sampled, scratch, weights,
};
use crate::models::{Sizes, Style, of, sizes};

fn gather(sizes: &Sizes, scratch: &Scratch, seed: u64) -> Statistics {
    let needs =
        Needs { window: 2, queries: true, fisher: Some(sampled(seed)), sink: SINK, shared: Vec::new() };
    Statistics::of_text(&sizes.model(), &sizes.text(WINDOWS, LENGTH, 1), &needs, &device(), scratch, &mut ())
        .expect("statistics")
}

/// Everything that statistics hold, bit by bit.
fn all_bits(statistics: &Statistics, sizes: &Sizes) -> Vec<u64> {
    let mut all = Vec::new();
    for layer in 0..sizes.n_layers {
        for j in layer.saturating_sub(2)..=layer {
            all.extend(statistics.moment(layer, j).expect("a moment").data);
        }
        all.extend(fisher(statistics, layer).into_iter().flat_map(|m| m.data));
        let metrics = statistics.metrics(&sizes.model(), Objective::Attention, layer, &device());
        all.extend(metrics.expect("metrics").iter().filter_map(Metric::matrix).flat_map(|m| m.data));
    }
    all.into_iter().map(f64::to_bits).collect()
}

fn fisher(statistics: &Statistics, layer: usize) -> [Mat64; 2] {
    statistics.fisher(layer).expect("it can be read").expect("it was asked for")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn moments_are_those_of_a_pass_through_the_whole_model(sizes in sizes()) {
        let bench = Bench::new(&sizes);
        let outputs: Vec<Mat64> = inputs(&bench.model, &bench.windows)
            .iter()
            .enumerate()
            .map(|(layer, h)| stacked(&bench.model, layer, &device()).expect("weights").dot(&h.transpose()))
            .collect();
        for i in 0..sizes.n_layers {
            for j in 0..=i {
                let mut weighed = outputs[i].clone();
                let weights = weights(WINDOWS, LENGTH, SINK);
                weighed.data.iter_mut().zip(weights.iter().cycle()).for_each(|(x, weight)| *x *= weight);
                let expected = weighed.dot(&outputs[j].transpose());
                let found = bench.statistics.moment(i, j).expect("a moment");
                let size = expected.data.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
                prop_assert!(gap(&found.data, &expected.data) < 1e-5 * size, "layers {i} and {j}");
            }
        }
        prop_assert_eq!(bench.statistics.tokens(), WINDOWS * LENGTH);
    }

    #[test]
    fn the_attention_metric_is_that_of_the_models_own_queries(sizes in sizes()) {
        let bench = Bench::new(&sizes);
        let config = bench.model.config();
        let decoder = load(&bench.model);
        let (d, group) = (config.d_head, config.n_heads / config.n_kv_heads);
        for (layer, h) in inputs(&bench.model, &bench.windows).iter().enumerate() {
            let Attention::Grouped(attention) = &decoder.blocks[layer].attention else { panic!("a donor") };
            let h = Tensor::<2>::from_data(
                burn::tensor::TensorData::new(h.data.iter().map(|&x| x as f32).collect(), [h.rows, h.cols]),
                &device(),
            );
            let q = host(attention.queries.project(h.unsqueeze::<3>()));
            let tokens = WINDOWS * LENGTH;
            let heads: Vec<Mat64> = (0..config.n_kv_heads)
                .map(|head| {
                    let mut b = Mat64::zeros(d, d);
                    for token in 0..tokens {
                        for query in head * group..(head + 1) * group {
                            let start = (token * config.n_heads + query) * d;
                            let q: Vec<f64> = q[start..start + d].iter().map(|&x| f64::from(x)).collect();
                            for r in 0..d {
                                (0..d).for_each(|c| b.data[r * d + c] += q[r] * q[c] / tokens as f64);
                            }
                        }
                    }
                    b
                })
                .collect();
            let w_o = bench.model.matrix(Slot::Layer(layer, LayerSlot::Output(Part::Weight)), &device());
            let w_o = Mat64::from_matrix(&Matrix::from_tensor(&w_o.expect("a weight")));
            let expected = [key_scores(config, layer, &heads), value_outputs(config, &w_o)];
            let found = bench.statistics.metrics(&bench.model, Objective::Attention, layer, &device());
            for (found, expected) in found.expect("metrics").iter().zip(expected) {
                let found = found.matrix().expect("no identity");
                // The ridge is 1e-4 of the mean diagonal.
                let mean = expected.trace() / expected.rows as f64;
                prop_assert!(gap(&found.data, &expected.data) < 1.2e-4 * mean, "layer {layer}");
            }
        }
    }
}

#[test]
fn a_temporary_file_changes_no_bit() {
    for style in [Style::Rotary, Style::Learned] {
        let sizes = of(style, 4, 3);
        let (memory, file) = (scratch(), Scratch::new(0, std::env::temp_dir()));
        let [kept, spilled] = [&memory, &file].map(|scratch| gather(&sizes, scratch, 1));
        assert!(memory.file_bytes() == 0 && file.file_bytes() > 0);
        assert_eq!(all_bits(&kept, &sizes), all_bits(&spilled, &sizes));
        let plan = plan(cascade(2), Objective::Fisher, calib::Ranks::Global, 2.0);
        let [kept, spilled] = [kept, spilled]
            .map(|s| calib::fit(&sizes.model(), &s, plan, &device(), &mut ()).expect("factors"));
        assert_eq!(bits(&kept.factors), bits(&spilled.factors));
        assert_eq!(kept.layers, spilled.layers);
    }
}

#[test]
fn a_seed_gives_the_same_bits_again_and_another_seed_another_metric() {
    let sizes = of(Style::Rotary, 3, 4);
    let [first, again, other] = [1, 1, 2].map(|seed| gather(&sizes, &scratch(), seed));
    assert_eq!(all_bits(&first, &sizes), all_bits(&again, &sizes));
    for layer in 0..3 {
        let moments = [&first, &other].map(|s| s.moment(layer, layer).expect("a moment"));
        assert_eq!(moments[0], moments[1], "no draw has a part in the moments");
        for (a, b) in fisher(&first, layer).iter().zip(&fisher(&other, layer)) {
            assert!(gap(&a.data, &b.data) > 1e-3 * a.trace() / a.rows as f64, "layer {layer}");
        }
    }
}

#[test]
fn weights_alone_are_inputs_of_which_nothing_is_known() {
    let sizes = of(Style::Rotary, 3, 4);
    let model = sizes.model();
    let statistics = Statistics::of_weights(&model, true, &device(), &scratch()).expect("statistics");
    assert_eq!(statistics.tokens(), 0);
    for layer in 0..3 {
        let w = stacked(&model, layer, &device()).expect("weights");
        assert_eq!(statistics.moment(layer, layer).expect("a moment"), w.dot(&w.transpose()));
        assert!(statistics.fisher(layer).expect("nothing to read").is_none());
        let metrics = statistics.metrics(&model, Objective::Attention, layer, &device()).expect("metrics");
        assert!(metrics.iter().all(|metric| metric.matrix().is_some_and(|m| m.trace() > 0.0)));
    }
}
