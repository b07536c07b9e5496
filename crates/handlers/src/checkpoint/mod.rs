//! Safetensors checkpoints: one file or shards with an index, read at their offsets.

mod dtype;
mod numbered;
mod shards;

pub use dtype::Dtype;
pub(crate) use numbered::numbered;
pub use shards::{Checkpoint, StoredTensor};
