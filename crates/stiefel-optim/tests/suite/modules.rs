//! The optimisers in a module, beside burn's own.

use burn::module::{Module, Param, ParamGroup};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Tensor};
use stiefel_optim::{
    Euclidean, Manifold, Retraction, RiemannianAdamConfig, RiemannianSgdConfig, SecondMoment, Stiefel,
};

use crate::points::{device, gap, random};

/// `x · down · upᵀ`, with orthonormal columns of `up`.
#[derive(Module, Debug)]
struct Bottleneck {
    down: Param<Tensor<2>>,
    up: Param<Tensor<2>>,
}

fn bottleneck(device: &Device) -> Bottleneck {
    let plain = |shape: [usize; 2], seed| {
        let x = random([1, shape[0], shape[1]], seed).squeeze_dim::<2>(0);
        Tensor::<2>::from_data(x.into_data().convert::<f32>(), device)
    };
    let up = Stiefel::columns().project(plain([8, 3], 1));
    let leaf = |x: Tensor<2>| Param::from_tensor(x.detach().require_grad());
    Bottleneck { down: leaf(plain([6, 3], 2)), up: leaf(up) }
}

fn step(optimizer: &mut ModuleOptimizer, module: Bottleneck, seed: u64) -> Bottleneck {
    let device = module.up.device();
    let input = |shape: [usize; 3], seed| {
        Tensor::<2>::from_data(random(shape, seed).squeeze_dim::<2>(0).into_data().convert::<f32>(), &device)
    };
    let out = input([1, 5, 6], seed).matmul(module.down.val()).matmul(module.up.val().transpose());
    let off = out - input([1, 5, 8], seed + 1);
    let gradients = (off.clone() * off).sum().backward();
    let gradients = GradientsParams::from_grads(gradients, &module);
    optimizer.step(0.01, module, gradients)
}

fn mixed(second_moment: SecondMoment) -> ModuleOptimizer {
    let riemannian = RiemannianAdamConfig::new()
        .with_amsgrad(true)
        .with_second_moment(second_moment)
        .build(Stiefel::columns());
    let up = ParamGroup::from_predicate("up");
    ModuleOptimizer::from(AdamWConfig::new().build()).with_group(up, riemannian, None)
}

fn trained(
    optimizer: &mut ModuleOptimizer,
    mut module: Bottleneck,
    steps: std::ops::Range<u64>,
) -> Bottleneck {
    for seed in steps {
        module = step(optimizer, module, 10 * seed);
    }
    module
}

#[test]
fn one_step_moves_flat_and_orthonormal_parameters() {
    let device = device().autodiff();
    for second_moment in [SecondMoment::Point, SecondMoment::Element] {
        let start = bottleneck(&device);
        let module = trained(&mut mixed(second_moment), start.clone(), 0..20);
        assert!(Stiefel::columns().residual(&module.up.val().inner()) < 5e-6);
        for (now, then) in [(&module.up, &start.up), (&module.down, &start.down)] {
            assert!(gap(now.val().inner(), then.val().inner()) > 0.01, "it has moved");
        }
    }
}

#[test]
fn training_that_was_interrupted_goes_on_to_the_same_bits() {
    let device = device().autodiff();
    let start = bottleneck(&device);
    let whole = trained(&mut mixed(SecondMoment::Point), start.clone(), 0..12);
    let mut first = mixed(SecondMoment::Point);
    let half = trained(&mut first, start, 0..7);
    let record = first.into_bytes().expect("a record");
    let mut second = mixed(SecondMoment::Point).from_bytes(record).expect("the same record");
    let resumed = trained(&mut second, half, 7..12);
    for (found, expected) in [(&resumed.up, &whole.up), (&resumed.down, &whole.down)] {
        assert_eq!(found.val().into_data(), expected.val().into_data());
    }
}

/// Where the gradient is nearly all normal, a point that is off the manifold is driven further off: with a drift that is not
/// watched the residual grows without bound.
#[test]
fn a_drift_is_kept_within_its_bound_where_gradients_push_outwards() {
    use burn::optim::Optimizer;
    fn drifts<O: Optimizer>(optimizer: &O, lr: f64, bound: f64) {
        let manifold = Stiefel::columns();
        let (mut x, mut state) = (manifold.project(random([2, 12, 4], 1)), None);
        let (target, mut most) = (x.clone(), 0.0f64);
        for seed in 0..2000 {
            let noise = random([2, 12, 4], 100 + seed) * 1e-3;
            let outwards = target.clone() * -3.0 + noise;
            (x, state) = optimizer.step(lr, x, outwards, state);
            most = most.max(manifold.residual(&x));
        }
        assert!(most <= bound, "{most:e} of {bound:e}");
        assert!(most > 0.0);
    }
    let manifold = Stiefel::columns();
    for bound in [1e-9, 1e-6] {
        let sgd = RiemannianSgdConfig::new().with_drift_bound(bound).with_momentum(0.9);
        drifts(&sgd.build(manifold), 0.01, bound);
        drifts(&sgd.with_nesterov(true).build(manifold), 0.01, bound);
        let adam = RiemannianAdamConfig::new().with_drift_bound(bound);
        drifts(&adam.build(manifold), 1e-3, bound);
        drifts(&adam.with_second_moment(SecondMoment::Element).build(manifold), 1e-3, bound);
    }
}

#[test]
fn a_thousand_steps_leave_columns_orthonormal() {
    for retraction in [Retraction::Polar, Retraction::Qr, Retraction::Cayley] {
        let manifold = Stiefel::columns().with_retraction(retraction);
        for lr in [1e-4, 1e-2] {
            let optimizer = RiemannianAdamConfig::new().build(manifold);
            let mut x = manifold.project(random([1, 24, 6], 1)).cast(burn::tensor::DType::F32);
            let mut state = None;
            for seed in 0..1000 {
                let gradient = random([1, 24, 6], 100 + seed).cast(burn::tensor::DType::F32);
                (x, state) = burn::optim::Optimizer::step(&optimizer, lr, x, gradient, state);
            }
            assert!(manifold.residual(&x) < 1e-5, "{retraction:?} {lr}: {:e}", manifold.residual(&x));
        }
    }
}

#[test]
fn on_flat_space_they_are_adam_and_gradient_descent() {
    use burn::optim::momentum::MomentumConfig;
    use burn::optim::{AdamConfig, Optimizer, SgdConfig};
    let adam = (AdamConfig::new().with_epsilon(1e-8).build(), RiemannianAdamConfig::new().build(Euclidean));
    let momentum = MomentumConfig::new().with_dampening(0.1).with_nesterov(true);
    let ours = RiemannianSgdConfig::new()
        .with_momentum(0.9)
        .with_dampening(0.1)
        .with_nesterov(true)
        .build(Euclidean);
    let sgd = (SgdConfig::new().with_momentum(Some(momentum)).build(), ours);
    fn follow<A: Optimizer, B: Optimizer>((theirs, ours): &(A, B)) -> f64 {
        let start = random([1, 4, 3], 1);
        let (mut a, mut b) = ((start.clone(), None), (start, None));
        for seed in 0..5 {
            let gradient = random([1, 4, 3], 2 + seed);
            a = theirs.step(0.1, a.0, gradient.clone(), a.1);
            b = ours.step(0.1, b.0, gradient, b.1);
        }
        gap(a.0, b.0)
    }
    // burn keeps 0.999 in f32, so that its 1 − β₂ is off by 1e-5 of itself.
    assert!(follow(&adam) < 1e-5);
    assert!(follow(&sgd) < 1e-6);
}
