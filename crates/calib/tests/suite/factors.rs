//! What a method writes: widths that spend the budget, orthonormal `W_up`, kept dimensions, and reads within bounds.

use calib::{Cascade, Latents, Method, Objective, Ranks};
use mla_core::decoder::LatentWidth;
use mla_core::{LayerSlot, Patch, Slot};
use proptest::prelude::*;

use crate::bench::{Bench, OBJECTIVES, device, factor, gap, inputs, load, logits, methods, plan};
use crate::models::{Style, of, sizes};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_up_projection_is_orthonormal_and_the_budget_is_spent(
        sizes in sizes(), objective in 0usize..3, ratio in 1.0f64..3.5,
    ) {
        let bench = Bench::new(&sizes);
        let config = bench.model.config();
        for method in methods(sizes.n_layers) {
            for ranks in [Ranks::Uniform, Ranks::Global] {
                let plan = plan(method, OBJECTIVES[objective], ranks, ratio);
                if plan.check(config).is_err() {
                    continue;
                }
                let fitted = bench.fitted(plan);
                let converted = fitted.factors.config();
                for slot in fitted.factors.slots() {
                    if let Slot::Layer(layer, kind @ (LayerSlot::UpKey | LayerSlot::UpValue | LayerSlot::UpJoint)) = slot {
                        let residual = factor(&fitted.factors, layer, kind).orthonormality_residual();
                        prop_assert!(residual <= 1e-6, "{method:?} {slot}: {residual:e}");
                    }
                }
                let latent = (0..sizes.n_layers).filter(|&layer| converted.latent(layer).is_some());
                let spent: usize = latent.clone().map(|layer| converted.cached_numbers(layer)).sum();
                let budget = plan.budget(config, latent.count()).expect("a ratio in range");
                match (method, ranks) {
                    // A group's dimension costs one number a layer, so a few may be left.
                    (Method::Xkv(xkv), Ranks::Global) =>
                        prop_assert!(spent <= budget && budget - spent < 2 * xkv.group_size, "{spent} of {budget}"),
                    (_, Ranks::Global) => prop_assert_eq!(spent, budget, "{:?}", method),
                    (_, Ranks::Uniform) => {
                        let widths: Vec<LatentWidth> =
                            (0..sizes.n_layers).filter_map(|layer| Some(converted.latent(layer)?.width)).collect();
                        prop_assert!(widths.iter().all(|width| *width == widths[0]), "{widths:?}");
                        prop_assert!(spent <= budget, "{spent} of {budget}");
                    }
                }
                // What was written can be run.
                let ours = logits(&fitted.factors.over(&bench.model), &sizes.text(1, 5, 3));
                prop_assert!(ours.iter().all(|x| x.is_finite()), "{method:?}");
            }
        }
    }

    #[test]
    fn a_layer_reads_within_its_window_and_its_stage(
        sizes in sizes(), window in 1usize..4, group in 1usize..5, staged: bool, apart: bool, ratio in 1.5f64..3.0,
    ) {
        let n_layers = sizes.n_layers;
        let (window, group) = (window.min(n_layers - 1), staged.then_some(group.min(n_layers)));
        let latents = if apart { Latents::Apart } else { Latents::Together };
        let method = Method::Cascade(Cascade { group, latents, ..Cascade::of_window(window) });
        let bench = Bench::new(&sizes);
        let fitted = bench.fitted(plan(method, Objective::Fisher, Ranks::Global, ratio));
        let config = fitted.factors.config();
        for layer in 0..n_layers {
            let stage = |layer: usize| group.map_or(0, |group| layer / group);
            let expected: Vec<usize> =
                (0..layer).filter(|&j| layer - j <= window && stage(j) == stage(layer)).collect();
            prop_assert_eq!(config.reads(layer), expected.clone());
            let earlier: usize = expected.iter().map(|&j| config.cached_numbers(j)).sum();
            let others = match config.latent(layer).expect("a latent layer").width {
                LatentWidth::Split { d_latent_k, d_latent_v } => [d_latent_v, d_latent_k],
                LatentWidth::Joint { .. } => [0, 0],
            };
            for (slot, other) in [LayerSlot::CrossKey, LayerSlot::CrossValue].into_iter().zip(others) {
                let shape = fitted.factors.shape(Slot::Layer(layer, slot));
                let columns = other + earlier;
                prop_assert_eq!(shape, (columns > 0).then_some([config.d_kv(), columns]));
            }
        }
    }

    #[test]
    fn kept_dimensions_are_whole_pairs_and_exact(sizes in sizes(), pairs in 1usize..4, objective in 0usize..3) {
        let bench = Bench::new(&sizes);
        let config = bench.model.config();
        let (d_kv, half) = (config.d_kv(), config.d_head / 2);
        let d_rope = 2 * pairs;
        // One number is left to factorise.
        let ratio = d_kv as f64 / (d_rope + 1) as f64;
        prop_assume!(ratio >= 1.0);
        let fitted =
            bench.fitted(plan(Method::DecoupledRope { d_rope }, OBJECTIVES[objective], Ranks::Uniform, ratio));
        let inputs = inputs(&bench.model, &bench.windows);
        for (layer, h) in inputs.iter().enumerate() {
            let w = calib::stacked(&bench.model, layer, &device()).expect("weights");
            for (part, (up, down)) in
                [(LayerSlot::UpKey, LayerSlot::DownKey), (LayerSlot::UpValue, LayerSlot::DownValue)].into_iter().enumerate()
            {
                let up = factor(&fitted.factors, layer, up);
                prop_assert_eq!(up.cols, d_rope + 1);
                let kept: Vec<usize> = (0..d_kv).filter(|&row| (0..up.cols).any(|c| up.at(row, c) == 1.0)).collect();
                prop_assert_eq!(kept.len(), d_rope, "one of each kept dimension");
                if part == 0 && sizes.style == Style::Rotary {
                    for &row in &kept {
                        let partner = if row % (2 * half) < half { row + half } else { row - half };
                        prop_assert!(kept.contains(&partner), "{kept:?}, d_head {}", 2 * half);
                    }
                }
                let exact = w.row_block(part * d_kv..(part + 1) * d_kv).dot(&h.transpose());
                let ours = up.dot(&factor(&fitted.factors, layer, down).dot(&h.transpose()));
                let rows = |m: &calib::linalg::Mat64| m.select_rows(&kept).data;
                prop_assert!(gap(&rows(&ours), &rows(&exact)) < 1e-9, "the kept rows are W's own");
            }
        }
    }
}

#[test]
fn any_number_of_kept_dimensions_loads() {
    for (style, step) in [(Style::Rotary, 2), (Style::Learned, 1)] {
        let sizes = of(style, 2, 9);
        let bench = Bench::new(&sizes);
        let d_kv = bench.model.config().d_kv();
        for d_rope in (step..d_kv).step_by(step) {
            for ranks in [Ranks::Uniform, Ranks::Global] {
                let plan = plan(Method::DecoupledRope { d_rope }, Objective::Mse, ranks, 1.0);
                let fitted = bench.fitted(plan);
                let decoder = load(&fitted.factors.over(&bench.model));
                assert_eq!(decoder.config().compression_ratio(), 1.0, "{d_rope}");
            }
        }
    }
}
