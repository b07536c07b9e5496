//! A latent as wide as what it replaces changes nothing, biases included, whatever the method.

use calib::{Method, Ranks};
use mla_core::{LayerSlot, Matrix, Part, Patch, Slot, WeightSource};
use proptest::prelude::*;

use crate::bench::{Bench, OBJECTIVES, gap, logits, methods, plan};
use crate::models::{Sizes, Style, of, sizes};

/// The largest change of a logit in any method under any objective, and where.
fn worst(sizes: &Sizes) -> (f64, String) {
    let bench = Bench::new(sizes);
    let text = sizes.text(3, 12, 2);
    let donor = logits(&bench.model, &text);
    let mut worst = (0.0, String::new());
    for method in methods(sizes.n_layers) {
        for (objective, ranks) in OBJECTIVES.map(|objective| (objective, Ranks::Global)) {
            let plan = plan(method, objective, ranks, 1.0);
            let fitted = bench.fitted(plan);
            assert_eq!(fitted.factors.config().compression_ratio(), 1.0, "{}", plan.name());
            let ours = logits(&fitted.factors.over(&bench.model), &text);
            let gap = gap(&ours, &donor);
            if gap > worst.0 {
                worst = (gap, format!("{method:?} {objective}"));
            }
        }
    }
    worst
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn full_rank_is_the_donor_in_every_method(sizes in sizes()) {
        let (gap, what) = worst(&sizes);
        prop_assert!(gap < 1e-4, "{what}: {gap:e}");
    }
}

/// The check above would see a lost bias.
#[test]
fn a_bias_that_is_lost_is_heard() {
    for style in [Style::Rotary, Style::Learned] {
        let sizes = of(style, 2, 5);
        let bench = Bench::new(&sizes);
        let text = sizes.text(3, 12, 2);
        let donor = logits(&bench.model, &text);
        let mut without = bench.model.clone();
        let d_kv = WeightSource::config(&without).d_kv();
        without.insert(Slot::Layer(0, LayerSlot::Value(Part::Bias)), Matrix::new(1, d_kv, vec![0.0; d_kv]));
        assert!(gap(&logits(&without, &text), &donor) > 1e-2);
        let plan = plan(Method::Separate, OBJECTIVES[0], Ranks::Uniform, 1.0);
        let over = bench.fitted(plan).factors;
        assert!(gap(&logits(&over.over(&without), &text), &donor) > 1e-2);
    }
}
