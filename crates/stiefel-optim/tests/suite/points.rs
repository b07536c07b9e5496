//! Points, and distances between them.

use burn::tensor::{DType, Device, Distribution, Tensor};

pub fn device() -> Device {
    Device::flex()
}

/// A Gaussian batch of matrices in f64, fixed by its seed.
pub fn random(shape: [usize; 3], seed: u64) -> Tensor<3> {
    device().seed(seed);
    Tensor::<3>::random(shape, Distribution::Normal(0.0, 1.0), &device()).cast(DType::F64)
}

pub fn scalar<const D: usize>(x: Tensor<D>) -> f64 {
    x.into_scalar::<f64>()
}

/// `max |a − b|`.
pub fn gap<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f64 {
    scalar((a - b).abs().max())
}

/// The Frobenius norm of everything.
pub fn norm<const D: usize>(a: Tensor<D>) -> f64 {
    scalar((a.clone() * a).sum()).sqrt()
}
