//! What a step of Riemannian Adam takes, as one line of JSON; `cargo xtask bench stiefel` puts it beside geoopt's.
//!
//! ```text
//! cargo run --release --example step_time -- ROWS COLUMNS LEARNING_RATE STEPS
//! ```

use std::time::Instant;

use burn::optim::Optimizer;
use burn::tensor::{Device, Distribution, Tensor};
use stiefel_optim::{Manifold, Retraction, RiemannianAdamConfig, Stiefel};

#[expect(clippy::print_stdout, reason = "an example shows what it found")]
fn main() {
    let args: Vec<f64> = std::env::args().skip(1).map(|arg| arg.parse().expect("a number")).collect();
    let [rows, columns, lr, steps] = args.as_slice() else { panic!("ROWS COLUMNS LEARNING_RATE STEPS") };
    let (shape, steps) = ([*rows as usize, *columns as usize], *steps as usize);
    let device = Device::flex();
    device.seed(1);
    let mut found = Vec::new();
    for (name, retraction, bound) in [
        ("polar", Retraction::Polar, 1e-6),
        ("polar, every step set right", Retraction::Polar, 0.0),
        ("qr, every step set right", Retraction::Qr, 0.0),
    ] {
        let manifold = Stiefel::columns().with_retraction(retraction);
        let optimizer = RiemannianAdamConfig::new().with_drift_bound(bound).build(manifold);
        let gradient = Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.0), &device);
        let (mut x, mut state) = (manifold.random(shape, &device), None);
        let mut times = Vec::with_capacity(steps);
        // The first step makes the moments and is not like the others.
        for step in 0..=steps {
            let begun = Instant::now();
            (x, state) = optimizer.step(*lr, x, gradient.clone(), state);
            if step > 0 {
                times.push(begun.elapsed().as_secs_f64());
            }
        }
        times.sort_by(f64::total_cmp);
        let residual = manifold.residual(&x);
        found.push(format!(
            "{{\"name\": \"{name}\", \"median_s\": {}, \"least_s\": {}, \"residual\": {residual:e}}}",
            times[steps / 2],
            times[0]
        ));
    }
    println!("[{}]", found.join(", "));
}
