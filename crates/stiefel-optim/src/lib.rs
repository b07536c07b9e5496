#![doc = include_str!("../README.md")]

mod euclidean;
mod manifold;
mod matrix;
mod radam;
mod retraction;
mod rsgd;
mod stiefel;

// The derive of burn's `RecordState` looks for these here.
use burn::optim::{RecordState, StateSink, StateSource};

pub use euclidean::Euclidean;
pub use manifold::{Carried, Manifold, Tangent};
pub use radam::{RiemannianAdam, RiemannianAdamConfig, RiemannianAdamState, SecondMoment};
pub use retraction::Retraction;
pub use rsgd::{RiemannianSgd, RiemannianSgdConfig, RiemannianSgdState};
pub use stiefel::{Frame, Metric, Stiefel};
