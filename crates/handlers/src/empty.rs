//! Telling tensors that hold nothing: what DeepSpeed ZeRO-3 leaves where each process saves only its own part.

use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::spec::TensorSpec;

/// Refuses a checkpoint with needed tensors that are empty.
///
/// # Errors
/// When there are such.
pub(crate) fn check(specs: &[TensorSpec], checkpoint: &Checkpoint) -> Result<(), Error> {
    let is_empty =
        |spec: &&TensorSpec| checkpoint.get(&spec.key).is_some_and(|tensor| tensor.shape.contains(&0));
    let mut keys: Vec<String> = specs.iter().filter(is_empty).map(|spec| spec.key.clone()).collect();
    keys.dedup();
    match keys.is_empty() {
        true => Ok(()),
        false => Err(Error::EmptyTensors { path: checkpoint.folder().into(), keys }),
    }
}
