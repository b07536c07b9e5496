//! Candidates are measured for what they are, the best is taken, and what cannot be had is refused by name.

use calib::linalg::Mat64;
use calib::{
    AS_GOOD, Cascade, Error, Factors, Method, Needs, Objective, Options, Ranks, Statistics, Text, Width, Xkv,
    cache_ratio, convert, fit, judge,
};
use mla_core::decoder::{AttentionKind, LatentConfig, LatentWidth};
use mla_core::{LayerSlot, Patch, WeightMap, WeightSource};
use proptest::prelude::*;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use crate::bench::{
    Bench, LENGTH, WINDOWS, cascade, device, host, load, logits, methods, plan, scratch, xkv,
};
use crate::models::{Sizes, Style, VOCAB, of, sizes};

/// Latents of a width that have nothing to do with the donor; the first layer keeps its attention.
fn random(sizes: &Sizes, width: usize) -> Factors {
    let mut config = sizes.config();
    let split = LatentWidth::Split { d_latent_k: width, d_latent_v: width };
    for layer in 1..sizes.n_layers {
        config.layers[layer].attention = AttentionKind::Latent(LatentConfig::alone(layer, split));
    }
    let (d_kv, d_model) = (config.d_kv(), config.d_model);
    let mut factors = Factors::new(config, &scratch());
    let mut rng = ChaCha8Rng::seed_from_u64(sizes.seed);
    for layer in 1..sizes.n_layers {
        for (slot, rows, cols) in [
            (LayerSlot::DownKey, width, d_model),
            (LayerSlot::UpKey, d_kv, width),
            (LayerSlot::DownValue, width, d_model),
            (LayerSlot::UpValue, d_kv, width),
        ] {
            let data = (0..rows * cols).map(|_| f64::from(rng.random::<f32>()) - 0.5).collect();
            factors.insert(layer, slot, &Mat64 { rows, cols, data }).expect("memory");
        }
    }
    factors
}

/// The mean `KL(p ‖ q)` a row, from whole rows of logits.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let log_z = |row: &[f32]| row.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
    let row = |(p, q): (&[f32], &[f32])| {
        let (z_p, z_q) = (log_z(p), log_z(q));
        p.iter()
            .zip(q)
            .map(|(&p, &q)| {
                let log_p = f64::from(p) - z_p;
                log_p.exp() * (log_p - (f64::from(q) - z_q))
            })
            .sum::<f64>()
    };
    let rows = p.chunks_exact(VOCAB).zip(q.chunks_exact(VOCAB));
    rows.map(row).sum::<f64>() / (p.len() / VOCAB) as f64
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_verdict_is_the_divergence_of_whole_logits(sizes in sizes(), windows in 1usize..5, length in 1usize..9) {
        let (model, text) = (sizes.model(), sizes.text(windows, length, 6));
        let candidates = [random(&sizes, 1), random(&sizes, 3)];
        let verdicts = judge(&model, &candidates.each_ref(), &text, &device(), &scratch(), &mut ()).expect("verdicts");
        let donor = logits(&model, &text);
        for (factors, verdict) in candidates.iter().zip(verdicts) {
            let expected = divergence(&donor, &logits(&factors.over(&model), &text));
            prop_assert!(expected > 1e-3, "{expected}");
            prop_assert!((verdict.kl - expected).abs() < 1e-4 * expected, "{} {expected}", verdict.kl);
            prop_assert!(verdict.errors[0].is_none() && verdict.errors[1..].iter().all(Option::is_some));
        }
    }

    #[test]
    fn the_donor_itself_diverges_by_nothing(sizes in sizes()) {
        let bench = Bench::new(&sizes);
        let text = sizes.text(3, 7, 6);
        let exact = plan(Method::Separate, Objective::Mse, Ranks::Uniform, 1.0);
        let fitted = bench.fitted(exact);
        let verdicts = judge(&bench.model, &[&fitted.factors], &text, &device(), &scratch(), &mut ());
        let verdicts = verdicts.expect("a verdict");
        prop_assert!(verdicts[0].kl.abs() < 1e-6, "{}", verdicts[0].kl);
        for error in verdicts[0].errors.iter() {
            let error = error.expect("every layer is latent");
            prop_assert!(error.key.is_some_and(|key| key < 1e-9) && error.value < 1e-9, "{error:?}");
        }
    }

    #[test]
    fn of_those_as_good_as_the_best_the_cheapest_is_taken(sizes in sizes(), ratio in 1.2f64..3.0) {
        let model = sizes.model();
        let (fitted, held_back) = (sizes.text(WINDOWS, LENGTH, 1), sizes.text(4, LENGTH, 9));
        let plans: Vec<_> = methods(sizes.n_layers)
            .into_iter()
            .filter(|method| !matches!(method, Method::Xkv(Xkv { keep_early_layers_original: true, .. })))
            .flat_map(|method| {
                [Ranks::Uniform, Ranks::Global].map(|ranks| plan(method, Objective::Fisher, ranks, ratio))
            })
            .filter(|plan| plan.check(model.config()).is_ok())
            .collect();
        let text = Some(Text { fit: &fitted, select: &held_back, report: &[] });
        let found = convert(&model, &plans, text, &Options::default(), &device(), &scratch(), &mut ());
        let found = found.expect("a conversion");
        prop_assert_eq!(found.trials.len(), plans.len());
        prop_assert_eq!((found.tokens, found.selection_tokens), (WINDOWS * LENGTH, 4 * LENGTH));
        let kl = |i: usize| found.trials[i].kl.expect("it was measured");
        let least = (0..plans.len()).map(kl).fold(f64::INFINITY, f64::min);
        prop_assert!(kl(found.chosen) <= least + AS_GOOD);
        let good = || (0..plans.len()).filter(|&i| kl(i) <= least + AS_GOOD);
        let cost = |i: usize| found.trials[i].decode_cost as f64;
        let cheapest = good().map(cost).fold(f64::INFINITY, f64::min);
        prop_assert!(cost(found.chosen) <= 1.05 * cheapest);
        prop_assert!(good().filter(|&i| cost(i) <= 1.05 * cheapest).all(|i| kl(found.chosen) <= kl(i)));
        prop_assert_eq!(found.plan, plans[found.chosen]);
        // What is handed over is what was measured.
        let expected = divergence(&logits(&model, &held_back), &logits(&found.factors.over(&model), &held_back));
        prop_assert!((kl(found.chosen) - expected).abs() < 1e-4 * expected.max(1e-3), "{expected}");
        prop_assert!(found.layers.iter().all(|layer| layer.measured.is_some()));
    }
}

#[test]
fn without_held_back_text_the_first_plan_is_taken_unmeasured() {
    let sizes = of(Style::Rotary, 3, 2);
    let fitted = sizes.text(WINDOWS, LENGTH, 1);
    let plans = [Method::Joint, Method::Separate].map(|m| plan(m, Objective::Mse, Ranks::Uniform, 2.0));
    for text in [None, Some(Text { fit: &fitted, select: &[], report: &[] })] {
        let found =
            convert(&sizes.model(), &plans, text, &Options::default(), &device(), &scratch(), &mut ());
        let found = found.expect("a conversion");
        assert_eq!((found.plan, found.trials.len(), found.selection_tokens), (plans[0], 1, 0));
        assert!(found.trials[0].kl.is_none() && found.layers.iter().all(|layer| layer.measured.is_none()));
    }
}

/// K and V that a converted layer rebuilds, measured where the layers before it are converted too.
#[test]
fn measured_errors_are_those_of_the_model_as_it_runs() {
    let sizes = of(Style::Learned, 2, 3);
    let (model, text) = (sizes.model(), sizes.text(2, 6, 6));
    let factors = random(&sizes, 2);
    let verdict = &judge(&model, &[&factors], &text, &device(), &scratch(), &mut ()).expect("a verdict")[0];
    let [donor, ours] = [load(&model), load(&factors.over(&model))];
    // Layer 0 keeps its attention, so both see the same input in layer 1.
    let h = crate::bench::inputs(&model, &text).remove(1);
    let data =
        burn::tensor::TensorData::new(h.data.iter().map(|&x| x as f32).collect(), [2, 6, sizes.d_model]);
    let h = burn::tensor::Tensor::<3>::from_data(data, &device());
    let (mla_core::Attention::Grouped(grouped), mla_core::Attention::Latent(latent)) =
        (&donor.blocks[1].attention, &ours.blocks[1].attention)
    else {
        panic!("a donor and its conversion");
    };
    let (k, v) = grouped.project(h.clone());
    let ours = latent.rebuild(latent.projections.down(h), &[]);
    let relative = |truth, ours| {
        let (truth, ours) = (host::<3>(truth), host::<3>(ours));
        let square = |x: f32| f64::from(x) * f64::from(x);
        let error: f64 = truth.iter().zip(&ours).map(|(a, b)| square(a - b)).sum();
        error / truth.iter().map(|&x| square(x)).sum::<f64>()
    };
    let measured = verdict.errors[1].expect("layer 1 is latent");
    for (found, expected) in
        [(measured.key, relative(k, ours.keys)), (Some(measured.value), relative(v, ours.values))]
    {
        let found = found.expect("keys that are rotated head by head");
        assert!(expected > 0.01 && (found - expected).abs() < 1e-4 * expected, "{found} {expected}");
    }
}

#[test]
fn fewer_tokens_than_latent_numbers_are_refused() {
    let sizes = of(Style::Rotary, 2, 2);
    let model = sizes.model();
    let gather = |windows: usize| {
        let needs = Needs { window: 0, queries: false, fisher: None, sink: 0.0, shared: Vec::new() };
        Statistics::of_text(&model, &sizes.text(windows, 3, 1), &needs, &device(), &scratch(), &mut ())
            .expect("statistics")
    };
    // d_kv is 8: half of it are 4 numbers, of joint 8.
    for (method, windows, refused) in [
        (Method::Separate, 1, true),
        (Method::Separate, 2, false),
        (Method::Joint, 2, true),
        (Method::Joint, 3, false),
    ] {
        let plan = plan(method, Objective::Mse, Ranks::Uniform, 2.0);
        let found = fit(&model, &gather(windows), plan, &device(), &mut ());
        match (refused, found) {
            (true, Err(Error::TooFewTokens { tokens, .. })) => assert_eq!(tokens, 3 * windows),
            (false, Ok(_)) => {}
            (_, other) => panic!("{method:?} on {windows} windows: {other:?}"),
        }
    }
}

#[test]
fn what_needs_text_is_refused_without() {
    let sizes = of(Style::Rotary, 3, 2);
    for (method, objective, what) in [
        (Method::Separate, Objective::Fisher, "the objective fisher needs calibration text"),
        (cascade(1), Objective::Mse, "the method cascade needs calibration text"),
    ] {
        let plans = [plan(method, objective, Ranks::Uniform, 2.0)];
        let error =
            convert(&sizes.model(), &plans, None, &Options::default(), &device(), &scratch(), &mut ())
                .expect_err("no text");
        assert_eq!(error.to_string(), what);
        assert!(error.hint().is_some_and(|hint| hint.contains("--calibration")));
    }
}

#[test]
fn parameters_out_of_range_are_refused() {
    let sizes = of(Style::Rotary, 3, 2);
    let config = sizes.config();
    let xkv_of = |group_size, skip_early_layers| {
        Method::Xkv(Xkv { group_size, skip_early_layers, keep_early_layers_original: false })
    };
    let staged =
        |window, group| Method::Cascade(Cascade { group: Some(group), ..Cascade::of_window(window) });
    // Of d_kv = 8, 4 numbers are left: 2 may be kept, and 1 is half a pair.
    for (method, what) in [
        (xkv(0), "the cross-layer group size is 0, expected 1 to 3"),
        (xkv(4), "the cross-layer group size is 4, expected 1 to 3"),
        (xkv_of(2, 3), "the number of early layers to skip is 3, expected 0 to 2"),
        (cascade(3), "the cascade window is 3, expected 0 to 2"),
        (staged(1, 0), "the cascade group is 0, expected 1 to 3"),
        (staged(1, 4), "the cascade group is 4, expected 1 to 3"),
        (Method::DecoupledRope { d_rope: 0 }, "0 dimensions cannot be kept of a latent width of 4"),
        (Method::DecoupledRope { d_rope: 1 }, "1 dimensions cannot be kept of a latent width of 4"),
        (Method::DecoupledRope { d_rope: 4 }, "4 dimensions cannot be kept of a latent width of 4"),
    ] {
        let plan = plan(method, Objective::Mse, Ranks::Uniform, 2.0);
        let error = plan.check(&config).expect_err(what);
        assert_eq!(error.to_string(), what);
        assert!(error.hint().is_some(), "{what}");
    }
    // Without RoPE nothing turns in pairs.
    let learned = of(Style::Learned, 3, 2).config();
    let odd = plan(Method::DecoupledRope { d_rope: 1 }, Objective::Mse, Ranks::Uniform, 2.0);
    assert!(odd.check(&learned).is_ok());
}

#[test]
fn a_budget_below_one_number_each_is_refused() {
    let sizes = of(Style::Rotary, 3, 2);
    let bench = Bench::new(&sizes);
    // 2 · 8 · 3 / 8 = 6 numbers for 6 units are enough, at d_kv / 7.5 they are, beyond the ratio's own range not.
    let plan = |method, ratio| plan(method, Objective::Mse, Ranks::Global, ratio);
    for method in [Method::Separate, Method::Joint, xkv(3), cascade(2)] {
        let fitted = bench.fitted(plan(method, 8.0));
        assert_eq!(Patch::config(&fitted.factors).cached_numbers_total(), 6, "{method:?}");
    }
    // Kept dimensions take the budget of the rest: at 3x there are 16 numbers, 12 of them kept, and 6 units to serve.
    let decoupled = Method::DecoupledRope { d_rope: 2 };
    let narrow = calib::Plan { width: Width::Ratio(2.9), ..plan(decoupled, 2.0) };
    match bench.fit(narrow) {
        Err(Error::RopeWidth { found: 2, d_latent: 2, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_model_that_caches_latents_already_is_refused() {
    let sizes = of(Style::Rotary, 3, 2);
    let plan = plan(Method::Separate, Objective::Mse, Ranks::Uniform, 2.0);
    let config = random(&sizes, 2).config().clone();
    assert!(matches!(plan.check(&config), Err(Error::AlreadyLatent { layer: 1 })));
    let model: WeightMap = sizes.model();
    let over = random(&sizes, 2);
    let over = over.over(&model);
    let needs = Needs { window: 0, queries: false, fisher: None, sink: 0.0, shared: Vec::new() };
    let found = Statistics::of_text(&over, &sizes.text(2, 4, 1), &needs, &device(), &scratch(), &mut ());
    assert!(matches!(found, Err(Error::AlreadyLatent { layer: 1 })), "{found:?}");
    assert!(over.config().latent(1).is_some());
}

#[test]
fn a_layer_with_a_window_counts_as_long_as_its_window_is() {
    // Layer 1 sees 3 tokens of a context of 64.
    let mut config = of(Style::Rotary, 2, 1).config();
    assert_eq!((config.max_positions, config.layers[0].window, config.layers[1].window), (64, None, Some(3)));
    assert_eq!(cache_ratio(&config), 1.0);
    let half = LatentWidth::Joint { d_latent: config.d_kv() };
    let latent = |layer| AttentionKind::Latent(LatentConfig::alone(layer, half));
    config.layers[1].attention = latent(1);
    assert!((cache_ratio(&config) - 67.0 / 65.5).abs() < 1e-12);
    config.layers[1].attention = AttentionKind::Grouped;
    config.layers[0].attention = latent(0);
    assert!((cache_ratio(&config) - 67.0 / 35.0).abs() < 1e-12);
    // A layer whose latents a wider one reads keeps as much as that one sees.
    config.layers.swap(0, 1);
    config.layers[0].attention = latent(0);
    config.layers[1].attention =
        AttentionKind::Latent(LatentConfig { reads_from: Some(0), ..LatentConfig::alone(1, half) });
    assert!((cache_ratio(&config) - 67.0 / 64.0).abs() < 1e-12);
}
