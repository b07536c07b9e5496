//! A checkpoint's tensors as data.

use std::ops::Range;

use mla_core::Slot;

/// Which axis of a stored matrix is the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[d_out, d_in]`, as `torch.nn.Linear` and embeddings are; also every vector.
    OutIn,
    /// `[d_in, d_out]`, as GPT-2's `Conv1D` is.
    InOut,
}

/// Where one slot of the graph lies in a checkpoint.
///
/// Several specs may share a key: each names the part of a fused tensor that is its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The tensor's name in the checkpoint, without any prefix the handler allows.
    pub key: String,
    /// The shape of the whole stored tensor.
    pub shape: Vec<usize>,
    /// What it is in the graph.
    pub slot: Slot,
    /// How it is stored.
    pub layout: Layout,
    /// The outputs that belong to the slot, of a fused tensor; `None` for all.
    pub outputs: Option<Range<usize>>,
}

impl TensorSpec {
    /// A matrix or embedding stored `[d_out, d_in]`.
    pub fn matrix(key: impl Into<String>, slot: Slot, d_out: usize, d_in: usize) -> Self {
        Self { key: key.into(), shape: vec![d_out, d_in], slot, layout: Layout::OutIn, outputs: None }
    }

    /// A vector.
    pub fn vector(key: impl Into<String>, slot: Slot, len: usize) -> Self {
        Self { key: key.into(), shape: vec![len], slot, layout: Layout::OutIn, outputs: None }
    }

    /// The same tensor stored `[d_in, d_out]`.
    pub fn transposed(mut self) -> Self {
        self.layout = Layout::InOut;
        self.shape.reverse();
        self
    }

    /// Only these outputs of the tensor belong to the slot.
    pub fn outputs(mut self, outputs: Range<usize>) -> Self {
        self.outputs = Some(outputs);
        self
    }

    /// `[d_out, d_in]` of the slot (`[len, 1]` for a vector).
    pub fn slot_shape(&self) -> [usize; 2] {
        let (d_out, d_in) = match (self.shape.as_slice(), self.layout) {
            ([len], _) => (*len, 1),
            ([d_out, d_in], Layout::OutIn) | ([d_in, d_out], Layout::InOut) => (*d_out, *d_in),
            (shape, _) => panic!("{}: a spec is a vector or a matrix, not {shape:?}", self.key),
        };
        [self.outputs.as_ref().map_or(d_out, Range::len), d_in]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slots_shape_is_out_by_in_whatever_is_stored() {
        let spec = TensorSpec::matrix("w", Slot::Head, 6, 4);
        assert_eq!(spec.slot_shape(), [6, 4]);
        let spec = spec.transposed();
        assert_eq!((spec.shape.as_slice(), spec.slot_shape()), (&[4, 6][..], [6, 4]));
        assert_eq!(spec.outputs(2..4).slot_shape(), [2, 4]);
        assert_eq!(TensorSpec::vector("b", Slot::Head, 6).outputs(0..2).slot_shape(), [2, 1]);
    }
}
