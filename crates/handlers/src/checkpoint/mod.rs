//! Safetensors checkpoints: one file or shards with an index, read at their offsets.

mod dtype;
mod shards;

pub use dtype::Dtype;
pub use shards::{Checkpoint, StoredTensor};
