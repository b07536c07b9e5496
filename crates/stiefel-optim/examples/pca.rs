//! Principal components as an optimisation: the p orthonormal directions that keep most of the variance.
//!
//! `max tr XᵀCX` over `XᵀX = I` has every orthonormal basis of the leading eigenvectors of C as its solution. The variance is
//! laid out so that the share kept is known: directions have variances 1, 1/2, 1/4, …
//!
//! ```text
//! cargo run --release --example pca
//! ```

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Distribution, Tensor, TensorData};
use stiefel_optim::{Manifold, RiemannianAdamConfig, Stiefel};

#[derive(Module, Debug)]
struct Directions {
    x: Param<Tensor<2>>,
}

#[expect(clippy::print_stdout, reason = "an example shows what it found")]
fn main() {
    const DIMENSIONS: usize = 16;
    const KEPT: usize = 4;
    let device = Device::flex();
    device.seed(2);
    let manifold = Stiefel::columns();
    let axes: Tensor<2> = manifold.random([DIMENSIONS, DIMENSIONS], &device);
    let deviations: Vec<f32> = (0..DIMENSIONS).map(|i| 0.5f32.powf(i as f32 / 2.0)).collect();
    let deviations = Tensor::<2>::from_data(TensorData::new(deviations, [1, DIMENSIONS]), &device);
    let samples = Tensor::<2>::random([4000, DIMENSIONS], Distribution::Normal(0.0, 1.0), &device);
    let samples = (samples * deviations).matmul(axes.transpose());

    let training = device.autodiff();
    let on = |x: Tensor<2>| Tensor::<2>::from_data(x.into_data(), &training);
    let total = (samples.clone() * samples.clone()).mean().into_scalar::<f64>() * DIMENSIONS as f64;
    let samples = on(samples);
    let start = on(manifold.random([DIMENSIONS, KEPT], &Device::flex())).require_grad();
    let mut model = Directions { x: Param::from_tensor(start) };
    let mut optimizer = RiemannianAdamConfig::new().with_beta_2(0.99).init(manifold);
    for step in 0..=200 {
        let shadow = samples.clone().matmul(model.x.val());
        let kept = (shadow.clone() * shadow).mean() * KEPT as f64;
        if step % 40 == 0 {
            let share = kept.clone().into_scalar::<f64>() / total;
            println!("step {step:3}  variance kept {:.2}%", 100.0 * share);
        }
        let gradients = GradientsParams::from_grads(kept.neg().backward(), &model);
        model = optimizer.step(0.1, model, gradients);
    }
    let best = 1.0 - 0.5f64.powi(KEPT as i32);
    println!("the best there is: about {:.2}%", 100.0 * best / (1.0 - 0.5f64.powi(DIMENSIONS as i32)));
    println!("off the manifold by {:.1e}", manifold.residual(&model.x.val().inner()));
}
