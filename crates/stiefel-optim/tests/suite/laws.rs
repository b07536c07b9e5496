//! The laws of a manifold, for all manifolds, metrics, retractions and shapes.

use burn::tensor::{DType, Tensor};
use proptest::prelude::*;
use stiefel_optim::{Carried, Euclidean, Manifold, Metric, Retraction, Stiefel};

use crate::points::{gap, norm, random, scalar};

const METRICS: [Metric; 2] = [Metric::Euclidean, Metric::Canonical];
const RETRACTIONS: [Retraction; 3] = [Retraction::Polar, Retraction::Qr, Retraction::Cayley];

/// Every manifold of matrices of `n × p`, `n ≥ p`, with the shape of a batch of two of its points.
fn manifolds(n: usize, p: usize) -> Vec<(Stiefel, [usize; 3])> {
    let mut all = Vec::new();
    for metric in METRICS {
        for retraction in RETRACTIONS {
            for (frame, shape) in [(Stiefel::columns(), [2, n, p]), (Stiefel::rows(), [2, p, n])] {
                all.push((frame.with_metric(metric).with_retraction(retraction), shape));
            }
        }
    }
    all
}

/// A point, two tangent vectors at it and a gradient of the space around.
struct Place {
    x: Tensor<3>,
    u: Tensor<3>,
    v: Tensor<3>,
    g: Tensor<3>,
}

fn place(manifold: &impl Manifold, shape: [usize; 3], seed: u64) -> Place {
    let x = manifold.project(random(shape, seed));
    let tangent = |seed| manifold.to_tangent(&x, random(shape, seed));
    Place { u: tangent(seed + 1), v: tangent(seed + 2), g: random(shape, seed + 3), x }
}

fn projections(manifold: &impl Manifold, shape: [usize; 3], seed: u64) {
    let Place { x, u, v, g } = place(manifold, shape, seed);
    assert!(manifold.residual(&x) < 1e-12);
    assert!(gap(manifold.project(x.clone()), x.clone()) < 1e-12, "a point is its own projection");
    assert!(gap(manifold.to_tangent(&x, u.clone()), u.clone()) < 1e-12, "a tangent is its own projection");
    // What an orthogonal projection takes away is orthogonal to all it leaves.
    let normal = g.clone() - manifold.to_tangent(&x, g);
    assert!(scalar((normal.clone() * u).sum()).abs() < 1e-11 && scalar((normal * v).sum()).abs() < 1e-11);
    // The nearest point is nearer than another.
    let far = random(shape, seed + 4);
    let nearest = manifold.project(far.clone());
    assert!(norm(nearest - far.clone()) <= norm(x - far) + 1e-12);
}

fn metrics(manifold: &impl Manifold, shape: [usize; 3], seed: u64) {
    let Place { x, u, v, g } = place(manifold, shape, seed);
    let inner = |a: &Tensor<3>, b: &Tensor<3>| manifold.inner(&x, a.clone(), b.clone());
    assert!(gap(inner(&u, &v), inner(&v, &u)) < 1e-11);
    assert!(gap(inner(&(u.clone() * 2.0 + v.clone()), &v), inner(&u, &v) * 2.0 + inner(&v, &v)) < 1e-10);
    assert!(scalar(inner(&u, &u).min()) >= 0.0);
    let r = manifold.gradient(&x, g.clone());
    assert!(gap(manifold.to_tangent(&x, r.clone()), r.clone()) < 1e-12, "a gradient is tangent");
    // A gradient stands for the differential: along every tangent the loss changes as it says.
    let [paired, differential] = [inner(&r, &u).sum(), (g * u).sum()].map(scalar);
    assert!((paired - differential).abs() < 1e-10 * (1.0 + differential.abs()), "{paired} {differential}");
}

fn steps(manifold: &impl Manifold, shape: [usize; 3], seed: u64) {
    let Place { x, u, v, .. } = place(manifold, shape, seed);
    let length = norm(u.clone());
    assert!(gap(manifold.retract(&x, u.clone() * 0.0), x.clone()) < 1e-12, "no step leads nowhere");
    for t in [1e-3, 1e-2, 1.0, 10.0].map(|t| t / length.max(1e-9)) {
        let y = manifold.retract(&x, u.clone() * t);
        assert!(manifold.residual(&y) < 1e-11, "step {t}: {:e}", manifold.residual(&y));
        let off = norm(y.clone() - x.clone() - u.clone() * t);
        assert!(off <= 2.0 * (t * length).powi(2) + 1e-12, "step {t}: {off:e} off the tangent");
        let carried = manifold.transport(&y, v.clone());
        assert!(gap(manifold.to_tangent(&y, carried.clone()), carried) < 1e-11, "what is carried is tangent");
    }
}

fn shortcuts(manifold: &impl Manifold, shape: [usize; 3], seed: u64) {
    let Place { x, u, v, g } = place(manifold, shape, seed);
    // The momentum comes from another point.
    for step in [None, Some(1e-9), Some(0.1)] {
        let momentum = step.map(|t| manifold.to_tangent(&manifold.retract(&x, u.clone() * t), v.clone()));
        let step = step.unwrap_or(0.0) * norm(u.clone());
        let carried = momentum.clone().map(|vector| Carried { vector, step });
        let found = manifold.accumulate(&x, carried, g.clone(), [0.9, 0.3]);
        let r = manifold.gradient(&x, g.clone());
        let carried = momentum.clone().map_or(r.clone() * 0.0, |m| manifold.transport(&x, m) * 0.9);
        assert!(gap(found.vector.clone(), carried + r.clone() * 0.3) < 1e-12);
        assert!(gap(found.square, manifold.inner(&x, r.clone(), r)) < 1e-10);
        if let Some(normal) = found.normal {
            let whole = g.clone() * 0.3 + momentum.map_or(g.clone() * 0.0, |m| m * 0.9);
            let removed = whole - found.vector;
            assert!(gap(normal.sum(), (removed.clone() * removed).sum()) < 1e-10);
        }
    }
    // With no room to drift every step is the whole retraction.
    let (exact, drift) = manifold.advance(&x, u.clone(), f64::INFINITY, 0.0);
    assert!(drift < 1e-12 && gap(exact, manifold.retract(&x, u.clone())) < 1e-12);
    // With some, a point is off by no more than it says, and set right when the room is used up.
    let step = u.clone() * (1e-3 / norm(u).max(1e-9));
    let (mut y, mut drift) = (x, 0.0);
    for _ in 0..8 {
        let along = manifold.to_tangent(&y, step.clone());
        drift += norm(along.clone()).powi(2);
        (y, drift) = manifold.advance(&y, along, drift, 3.5e-6);
        assert!(drift <= 3.5e-6 && manifold.residual(&y) <= drift + 1e-9, "{:e}", manifold.residual(&y));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn projections_are_orthogonal_and_the_nearest(p in 1usize..7, more in 0usize..6, seed in 0u64..1000) {
        projections(&Euclidean, [2, p + more, p], seed);
        manifolds(p + more, p).iter().for_each(|(manifold, shape)| projections(manifold, *shape, seed));
    }

    #[test]
    fn gradients_stand_for_differentials_in_their_metric(p in 1usize..7, more in 0usize..6, seed in 0u64..1000) {
        manifolds(p + more, p).iter().for_each(|(manifold, shape)| metrics(manifold, *shape, seed));
        metrics(&Euclidean, [2, p + more, p], seed);
    }

    #[test]
    fn steps_stay_on_the_manifold_and_start_along_their_tangent(p in 1usize..7, more in 0usize..6, seed in 0u64..1000) {
        steps(&Euclidean, [2, p + more, p], seed);
        manifolds(p + more, p).iter().for_each(|(manifold, shape)| steps(manifold, *shape, seed));
    }

    #[test]
    fn shortcuts_lead_where_the_long_way_does(p in 1usize..7, more in 0usize..6, seed in 0u64..1000) {
        shortcuts(&Euclidean, [2, p + more, p], seed);
        manifolds(p + more, p).iter().for_each(|(manifold, shape)| shortcuts(manifold, *shape, seed));
    }
}

/// `R(tu) = x + tu − t²/2 · x uᵀu + O(t³)` is what a geodesic of the Euclidean metric does.
#[test]
fn the_polar_retraction_is_of_second_order() {
    let manifold = Stiefel::columns();
    let Place { x, u, .. } = place(&manifold, [1, 8, 3], 7);
    let bend = x.clone().matmul(u.clone().swap_dims(1, 2).matmul(u.clone())) * 0.5;
    let off = |t: f64| {
        norm(manifold.retract(&x, u.clone() * t) - x.clone() - u.clone() * t + bend.clone() * (t * t))
    };
    let (far, near) = (off(2e-3), off(1e-3));
    assert!(near > 0.0 && (far / near - 8.0).abs() < 0.5, "{far:e} {near:e}");
}

/// In f32 too, at the sizes of a model's matrices.
#[test]
fn residuals_in_f32_are_rounding() {
    for retraction in RETRACTIONS {
        let manifold = Stiefel::columns().with_retraction(retraction);
        let x = manifold.project(random([1, 192, 48], 3)).cast(DType::F32);
        let x = manifold.project(x);
        let u = manifold.to_tangent(&x, random([1, 192, 48], 4).cast(DType::F32) * 0.01);
        let y = manifold.retract(&x, u);
        assert_eq!(y.dtype(), DType::F32);
        assert!(manifold.residual(&y) < 2e-6, "{retraction:?}: {:e}", manifold.residual(&y));
    }
}

#[test]
#[should_panic(expected = "4 vectors of 3 numbers cannot be orthonormal")]
fn more_vectors_than_numbers_are_refused() {
    Stiefel::columns().random([3, 4], &crate::points::device());
}
