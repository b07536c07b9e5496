//! Training a decoder's latent matrices, and measuring a decoder: perplexity, distance to its donor, cache bytes.
//!
//! The same evaluation serves `shrink eval` and validates a conversion. Token ids in, numbers out.
//!
//! Training touches nothing but the [`factors`] of a conversion. [`gradients`] takes a batch through the model a block at a
//! time, forwards and back, so that memory holds the activations of one block and what flows between blocks.

mod backward;
mod batches;
pub mod eval;
mod factors;
mod head;
mod objective;
mod optimise;
mod origin;
mod rates;
mod schedule;
mod settings;
mod snapshots;
mod trainer;

pub use backward::{Gradients, Models, Overflow, gradients};
pub use batches::Batches;
pub use factors::{Constraint, Factor, factors, replace, trainable};
pub use objective::{LossParts, Objective, Originals};
pub use optimise::{Optimiser, Rates, Remembered, Scalars, orthonormality, values};
pub use origin::Origin;
pub use rates::{FoundRates, MOST_TRIALS, Trial, default_rates, find_rates};
pub use schedule::Schedule;
pub use settings::{BadSetting, Loss, Settings};
pub use snapshots::{SnapshotError, Snapshots};
pub use trainer::{Place, Snapshot, Sources, StepReport, TrainError, Trainer, windows};
