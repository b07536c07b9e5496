//! The orthogonal Procrustes problem: which matrix with orthonormal columns turns one set of points into another?
//!
//! `min ‖AX − B‖²` over `XᵀX = I`. Here B was made by a known X, so the answer can be checked.
//!
//! ```text
//! cargo run --release --example procrustes
//! ```

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Distribution, Tensor};
use stiefel_optim::{Manifold, RiemannianSgdConfig, Stiefel};

#[derive(Module, Debug)]
struct Turn {
    x: Param<Tensor<2>>,
}

#[expect(clippy::print_stdout, reason = "an example shows what it found")]
fn main() {
    let device = Device::flex();
    device.seed(1);
    let manifold = Stiefel::columns();
    let points = Tensor::<2>::random([200, 8], Distribution::Normal(0.0, 1.0), &device);
    let answer: Tensor<2> = manifold.random([8, 3], &device);
    let turned = points.clone().matmul(answer.clone());

    // Parameters and data live on a device with gradients; answer and residual do not need any.
    let training = device.autodiff();
    let on = |x: Tensor<2>| Tensor::<2>::from_data(x.into_data(), &training);
    let (points, turned) = (on(points), on(turned));
    let start = on(manifold.random([8, 3], &Device::flex())).require_grad();
    let mut model = Turn { x: Param::from_tensor(start) };
    let mut optimizer = RiemannianSgdConfig::new().with_momentum(0.9).init(manifold);
    for step in 0..=100 {
        let off = points.clone().matmul(model.x.val()) - turned.clone();
        let loss = (off.clone() * off).mean();
        if step % 20 == 0 {
            println!("step {step:3}  loss {:.2e}", loss.clone().into_scalar::<f64>());
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(0.1, model, gradients);
    }
    let found = model.x.val().inner();
    println!("off the manifold by {:.1e}", manifold.residual(&found));
    println!("off the answer by {:.1e}", (found - answer).abs().max().into_scalar::<f64>());
}
