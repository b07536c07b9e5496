//! What a plan predicts to lose is what it loses, and methods stand to each other as theory says.

use calib::{Cascade, Method, Objective, Ranks};
use proptest::prelude::*;

use crate::bench::{Bench, OBJECTIVES, bits, cascade, methods, plan, xkv};
use crate::models::{Sizes, sizes};

/// Rounding of factors to f32 and of the donor's own arithmetic, as a share of all there is to lose.
const ROUNDING: f64 = 1e-5;

fn objectives() -> impl Strategy<Value = Objective> {
    (0usize..OBJECTIVES.len()).prop_map(|i| OBJECTIVES[i])
}

fn ratios() -> impl Strategy<Value = f64> {
    1.1f64..3.5
}

/// The plan's loss where it fits the model.
fn discarded(bench: &Bench, method: Method, objective: Objective, ranks: Ranks, ratio: f64) -> f64 {
    bench.fitted(plan(method, objective, ranks, ratio)).discarded()
}

fn each_ranks() -> [Ranks; 2] {
    [Ranks::Uniform, Ranks::Global]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_loss_foretold_is_the_loss_of_the_factors(sizes in sizes(), objective in objectives(), ratio in ratios()) {
        let bench = Bench::new(&sizes);
        for method in methods(sizes.n_layers) {
            for ranks in each_ranks() {
                let plan = plan(method, objective, ranks, ratio);
                if plan.check(bench.model.config()).is_err() {
                    continue;
                }
                let fitted = bench.fitted(plan);
                let found = bench.losses(&fitted.factors, objective);
                let name = format!("{method:?} {}", ranks.name());
                let lost: f64 = found.iter().flatten().sum();
                let slack = ROUNDING * bench.whole(objective);
                prop_assert!(lost <= fitted.discarded() + slack, "{name}: {lost} of {}", fitted.discarded());
                for (layer, (report, [k, v])) in fitted.layers.iter().zip(found).enumerate() {
                    let [whole_k, whole_v] = bench.total(objective, layer);
                    let parts = match (&report.joint, &report.key, &report.value) {
                        (Some(joint), None, None) => vec![(joint, k + v, whole_k + whole_v)],
                        (None, Some(key), Some(value)) => vec![(key, k, whole_k), (value, v, whole_v)],
                        (None, None, None) => vec![],
                        other => panic!("{name}: {other:?}"),
                    };
                    for (report, found, whole) in parts {
                        let gap = (found - report.discarded).abs();
                        prop_assert!(gap <= slack, "{name} layer {layer}: {found} {}", report.discarded);
                        // The spectrum of a group is the group's, not the layer's; a cascade's decoder reads more than
                        // the spectrum knows of.
                        if !matches!(method, Method::Xkv(_) | Method::Cascade(_)) {
                            let tail: f64 = report.spectrum[in_spectrum(method, report.d_latent)..].iter().sum();
                            prop_assert!((tail - report.discarded).abs() <= 1e-12 * whole, "{name} layer {layer}");
                        }
                        let kept = (1.0 - report.discarded / whole).clamp(0.0, 1.0);
                        prop_assert!((kept - report.energy_kept).abs() < 1e-9, "{name} layer {layer}: {kept}");
                    }
                }
            }
        }
    }

    #[test]
    fn joint_never_foretells_more_than_separate(sizes in sizes(), objective in objectives(), ratio in ratios()) {
        let bench = Bench::new(&sizes);
        for ranks in each_ranks() {
            let [joint, separate] = [Method::Joint, Method::Separate]
                .map(|method| discarded(&bench, method, objective, ranks, ratio));
            prop_assert!(joint <= separate + 1e-9 * bench.whole(objective), "{joint} {separate} {}", ranks.name());
        }
    }

    #[test]
    fn sharing_a_basis_never_foretells_less(
        sizes in sizes(), objective in objectives(), ratio in ratios(), group in 2usize..5,
    ) {
        let bench = Bench::new(&sizes);
        let group = group.min(sizes.n_layers);
        let [shared, own] = [xkv(group), Method::Separate]
            .map(|method| discarded(&bench, method, objective, Ranks::Uniform, ratio));
        prop_assert!(shared >= own - 1e-9 * bench.whole(objective), "{shared} {own}");
        let alone = |method| bits(&bench.fitted(plan(method, objective, Ranks::Global, ratio)).factors);
        prop_assert_eq!(alone(xkv(1)), alone(Method::Separate));
    }

    #[test]
    fn a_window_never_foretells_more_than_none(sizes in sizes(), objective in objectives(), ratio in ratios()) {
        let bench = Bench::new(&sizes);
        // What the decoder's ridge costs, where the latents lose nothing.
        let slack = 1e-6 * bench.whole(objective);
        for ranks in each_ranks() {
            let alone = discarded(&bench, Method::Separate, objective, ranks, ratio);
            for window in 1..sizes.n_layers {
                let found = discarded(&bench, cascade(window), objective, ranks, ratio);
                prop_assert!(found <= alone + slack, "{ranks:?}: window {window} {found}, none {alone}");
            }
            let same = |method| bits(&bench.fitted(plan(method, objective, ranks, ratio)).factors);
            prop_assert_eq!(same(cascade(0)), same(Method::Separate));
        }
    }

    #[test]
    fn refinement_never_loses_more(sizes in sizes(), objective in objectives(), ratio in ratios()) {
        let bench = Bench::new(&sizes);
        let slack = ROUNDING * bench.whole(objective);
        let rounds = |rounds| Method::Cascade(Cascade { rounds, ..Cascade::of_window(sizes.n_layers - 1) });
        for ranks in each_ranks() {
            let losses = [0, 1, 4].map(|n| lost(&bench, rounds(n), objective, ranks, ratio));
            prop_assert!(losses[1] <= losses[0] + slack && losses[2] <= losses[1] + slack, "{losses:?}");
            let joint = lost(&bench, Method::Joint, objective, Ranks::Uniform, ratio);
            if ranks == Ranks::Uniform {
                prop_assert!(losses[0] <= joint + slack, "what is read can only help: {losses:?} {joint}");
            }
        }
    }

    #[test]
    fn more_latent_numbers_never_foretell_more(sizes in sizes(), objective in objectives(), ratio in ratios()) {
        let bench = Bench::new(&sizes);
        for method in [Method::Separate, Method::Joint, xkv(2)] {
            for ranks in each_ranks() {
                let [wide, narrow] = [1.0f64.max(0.7 * ratio), ratio]
                    .map(|ratio| discarded(&bench, method, objective, ranks, ratio));
                prop_assert!(wide <= narrow + 1e-9 * bench.whole(objective), "{method:?} {wide} {narrow}");
            }
        }
    }
}

/// How many dimensions of a spectrum are kept: those that `decoupled_rope` keeps as they are have no place in it.
fn in_spectrum(method: Method, d_latent: usize) -> usize {
    match method {
        Method::DecoupledRope { d_rope } => d_latent - d_rope,
        _ => d_latent,
    }
}

/// The loss that a plan's factors really have.
fn lost(bench: &Bench, method: Method, objective: Objective, ranks: Ranks, ratio: f64) -> f64 {
    let fitted = bench.fitted(plan(method, objective, ranks, ratio));
    bench.losses(&fitted.factors, objective).iter().flatten().sum()
}

/// What a global allocation is for: at equal bytes it never foretells more than equal ranks do.
#[test]
fn ranks_where_they_matter_never_foretell_more_than_equal_ranks() {
    for seed in 0..6 {
        let sizes = Sizes { seed, ..crate::models::of(crate::models::Style::Rotary, 3, seed) };
        let bench = Bench::new(&sizes);
        for (method, objective) in [(Method::Separate, Objective::Fisher), (Method::Joint, Objective::Mse)] {
            let [global, uniform] =
                [Ranks::Global, Ranks::Uniform].map(|ranks| discarded(&bench, method, objective, ranks, 2.0));
            assert!(global <= uniform, "{method:?}: {global} {uniform}");
        }
    }
}
