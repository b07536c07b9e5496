//! Safetensors checkpoints: one file or shards with an index, memory-mapped.

mod dtype;
mod shards;

pub use dtype::Dtype;
pub use shards::{Checkpoint, StoredTensor};
