//! Steps of geoopt 0.5.1 (goldens/geoopt), on problems with a known gradient.

use burn::optim::Optimizer;
use burn::tensor::{DType, Tensor, TensorData};
use serde_json::Value;
use stiefel_optim::{Metric, Retraction, RiemannianAdamConfig, RiemannianSgdConfig, SecondMoment, Stiefel};

use crate::points::{device, gap, scalar};

/// A problem of the golden.
struct Case {
    name: String,
    kind: String,
    rows: bool,
    start: Tensor<2>,
    a: Tensor<2>,
    b: Tensor<2>,
    settled_loss: f64,
    runs: Value,
}

fn cases() -> Vec<Case> {
    // Asked for when it runs: a build that was made elsewhere may be taken over.
    let root = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let path = format!("{root}/../../goldens/geoopt/golden.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(&path).expect(&path)).expect("JSON");
    let case = |case: &Value| {
        let kind = case["problem"].as_str().expect("a name").to_owned();
        Case {
            name: format!("{kind} {}", case["shape"]),
            kind,
            rows: case["rows"] == true,
            start: matrix(&case["start"]),
            a: matrix(&case["a"]),
            b: matrix(&case["b"]),
            settled_loss: case["settled_loss"].as_f64().expect("a loss"),
            runs: case["runs"].clone(),
        }
    };
    golden["cases"].as_array().expect("cases").iter().map(case).collect()
}

fn matrix(rows: &Value) -> Tensor<2> {
    let rows: Vec<Vec<f64>> = serde_json::from_value(rows.clone()).expect("rows of numbers");
    let shape = [rows.len(), rows[0].len()];
    Tensor::from_data(TensorData::new(rows.concat(), shape), (&device(), DType::F64))
}

impl Case {
    /// The loss at X and its gradient, in the orientation of the case.
    fn loss(&self, x: &Tensor<2>) -> (f64, Tensor<2>) {
        let turn = |x: Tensor<2>| if self.rows { x.transpose() } else { x };
        let x = turn(x.clone());
        let (loss, gradient) = match self.kind.as_str() {
            "procrustes" => {
                let off = self.a.clone().matmul(x) - self.b.clone();
                ((off.clone() * off.clone()).sum() * 0.5, self.a.clone().transpose().matmul(off))
            }
            "brockett" => {
                let gradient = self.a.clone().matmul(x.clone()).matmul(self.b.clone());
                ((x * gradient.clone()).sum() * 0.5, gradient)
            }
            _ => {
                let ax = self.a.clone().matmul(x.clone());
                let linear = (self.b.clone() * x.clone()).sum();
                ((x * ax.clone()).sum() * 0.5 + linear, ax + self.b.clone())
            }
        };
        (scalar(loss), turn(gradient))
    }

    fn frame(&self) -> Stiefel {
        if self.rows { Stiefel::rows() } else { Stiefel::columns() }
    }

    /// Steps from the start, each shown to `visit`; the last loss.
    fn run<O: Optimizer>(
        &self,
        optimizer: &O,
        steps: usize,
        lr: impl Fn(usize) -> f64,
        mut visit: impl FnMut(usize, f64, &Tensor<2>),
    ) -> f64 {
        let (mut x, mut state) = (self.start.clone(), None);
        for step in 1..=steps {
            let (loss, gradient) = self.loss(&x);
            (x, state) = optimizer.step(lr(step), x, gradient, state);
            visit(step, loss, &x);
        }
        self.loss(&x).0
    }

    /// Fifty steps, held to a run's iterates and losses.
    fn follow<O: Optimizer>(&self, run: &str, optimizer: &O, tolerance: f64) {
        let expected = &self.runs[run];
        let lr = expected["lr"].as_f64().expect("a rate");
        let (mut seen, mut compared) = (0, 0);
        self.run(
            optimizer,
            50,
            |_| lr,
            |step, loss, x| {
                if let Some(known) = expected["losses"].get(step - 1).and_then(Value::as_f64) {
                    compared += 1;
                    assert!(
                        (loss - known).abs() <= tolerance * (1.0 + known.abs()),
                        "{} {run} {step}",
                        self.name
                    );
                }
                if let Some(iterate) = expected["iterates"].get(step.to_string()) {
                    seen += 1;
                    let gap = gap(x.clone(), matrix(iterate));
                    assert!(gap <= tolerance, "{} {run}, step {step}: {gap:e}", self.name);
                }
            },
        );
        assert_eq!((seen, compared), (3, 10), "the golden has iterates 1, 10 and 50 and ten losses");
    }
}

/// geoopt's Euclidean Stiefel manifold: QR, and every step set right.
fn as_geoopt(case: &Case) -> Stiefel {
    case.frame().with_retraction(Retraction::Qr)
}

#[test]
fn gradient_descent_takes_geoopts_steps() {
    for case in cases() {
        let optimizer = RiemannianSgdConfig::new().with_drift_bound(0.0).build(as_geoopt(&case));
        case.follow("sgd", &optimizer, 1e-10);
    }
}

#[test]
fn adam_takes_geoopts_steps() {
    for case in cases() {
        let config = RiemannianAdamConfig::new().with_drift_bound(0.0);
        case.follow("adam", &config.build(as_geoopt(&case)), 1e-9);
        let amsgrad = config.with_amsgrad(true).with_weight_decay(0.1);
        case.follow("amsgrad", &amsgrad.build(as_geoopt(&case)), 1e-9);
    }
}

/// In f32, and with the room to drift that is the default.
#[test]
fn as_it_is_used_adam_stays_within_1e_5_of_geoopts_steps() {
    for case in cases() {
        let optimizer = RiemannianAdamConfig::new().build(as_geoopt(&case));
        let single = Case {
            start: case.start.clone().cast(DType::F32),
            a: case.a.clone().cast(DType::F32),
            b: case.b.clone().cast(DType::F32),
            runs: Value::Null,
            name: case.name.clone(),
            kind: case.kind.clone(),
            ..case
        };
        let expected = &case.runs["adam"];
        let mut seen = 0;
        single.run(
            &optimizer,
            50,
            |_| 0.1,
            |step, _, x| {
                if let Some(iterate) = expected["iterates"].get(step.to_string()) {
                    seen += 1;
                    let gap = gap(x.clone().cast(DType::F64), matrix(iterate));
                    assert!(gap <= 1e-5, "{}, step {step}: {gap:e}", single.name);
                }
            },
        );
        assert_eq!(seen, 3, "the golden has iterates 1, 10 and 50");
    }
}

/// Where ours differs by design it ends where geoopt does: other retractions, the canonical metric, a velocity that is
/// tangent from the first step on, a second moment an element. Off the manifold by d, a loss is off by d times its slope
/// there, so the room to drift is small here.
#[test]
fn every_other_way_ends_at_the_same_loss() {
    for case in cases() {
        let close = |what: &str, manifold: Stiefel, found: f64| {
            let gap = (found - case.settled_loss).abs();
            assert!(gap <= 1e-6, "{} {what} {manifold:?}: {gap:e}", case.name);
        };
        let ways = [Metric::Euclidean, Metric::Canonical].into_iter().flat_map(|metric| {
            [Retraction::Polar, Retraction::Qr, Retraction::Cayley].map(|way| (metric, way))
        });
        for (metric, retraction) in ways {
            let manifold = case.frame().with_metric(metric).with_retraction(retraction);
            let sgd =
                RiemannianSgdConfig::new().with_momentum(0.9).with_nesterov(true).with_drift_bound(1e-9);
            close("sgd", manifold, case.run(&sgd.build(manifold), 2000, |_| 0.01, |_, _, _| {}));
            // A step's length is the rate however small the gradient, so the rate has to fall, and the memory of the large
            // gradients at the start to be short.
            let element =
                RiemannianAdamConfig::new().with_beta_2(0.95).with_second_moment(SecondMoment::Element);
            let element = element.with_drift_bound(1e-9).build(manifold);
            let falling = |step: usize| 0.1 * 0.1f64.powf(step as f64 / 200.0);
            close("element", manifold, case.run(&element, 1000, falling, |_, _, _| {}));
        }
    }
}
