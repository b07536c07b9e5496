//! The Stiefel manifold on burn tensors: matrices with orthonormal columns.
//!
//! This first part holds the manifold itself: how far a matrix is from it, the nearest point on it, and the tangent
//! part of a gradient. It knows nothing of attention and runs on every burn backend, since all of it is matrix
//! products.
//!
//! ```
//! use burn::tensor::{Device, Distribution, Tensor};
//! use stiefel_optim::Stiefel;
//!
//! let device = Device::flex();
//! let near = Tensor::<2>::random([16, 4], Distribution::Normal(0.0, 1.0), &device);
//! let on = Stiefel.project(near);
//! assert!(Stiefel.residual(&on) < 1e-5);
//! ```

mod stiefel;

pub use stiefel::Stiefel;
