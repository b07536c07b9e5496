//! A checkpoint's tensors as data.

use std::ops::Range;

use mla_core::Slot;

/// The outputs of a fused tensor that belong to a slot: `len` of them from `start` on, and again after every `stride`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outputs {
    start: usize,
    len: usize,
    stride: usize,
    blocks: usize,
}

impl Outputs {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.len * self.blocks
    }

    /// The consecutive pieces that they are made of.
    pub fn pieces(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let Self { start, len, stride, blocks } = *self;
        (0..blocks).map(move |block| start + block * stride..start + block * stride + len)
    }
}

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
    pub outputs: Option<Outputs>,
    /// Which of the matrices, or vectors, the slot is, where the tensor holds those of all experts; `None` where it holds one.
    pub expert: Option<usize>,
}

impl TensorSpec {
    /// A matrix or embedding stored `[d_out, d_in]`.
    pub fn matrix(key: impl Into<String>, slot: Slot, d_out: usize, d_in: usize) -> Self {
        Self {
            key: key.into(),
            shape: vec![d_out, d_in],
            slot,
            layout: Layout::OutIn,
            outputs: None,
            expert: None,
        }
    }

    /// A vector.
    pub fn vector(key: impl Into<String>, slot: Slot, len: usize) -> Self {
        Self { key: key.into(), shape: vec![len], slot, layout: Layout::OutIn, outputs: None, expert: None }
    }

    /// The same tensor stored `[d_in, d_out]`.
    pub fn transposed(mut self) -> Self {
        self.layout = Layout::InOut;
        self.shape.reverse();
        self
    }

    /// Only these outputs of the tensor belong to the slot.
    pub fn outputs(mut self, outputs: Range<usize>) -> Self {
        let (start, len) = (outputs.start, outputs.len());
        self.outputs = Some(Outputs { start, len, stride: len, blocks: 1 });
        self
    }

    /// Only these outputs belong to the slot, and those that follow them at every multiple of `stride`: a head's share of q,
    /// k and v that are fused head by head.
    ///
    /// # Panics
    /// If `stride` is zero or less than the outputs span.
    pub fn outputs_every(mut self, outputs: Range<usize>, stride: usize) -> Self {
        assert!(outputs.end <= stride && stride > 0, "outputs {outputs:?} of every {stride}");
        let [all, _] = Self { outputs: None, ..self.clone() }.slot_shape();
        self.outputs =
            Some(Outputs { start: outputs.start, len: outputs.len(), stride, blocks: all / stride });
        self
    }

    /// The tensor holds a matrix, or vector, for each of `experts`, of which the slot is one.
    pub fn of_experts(mut self, expert: usize, experts: usize) -> Self {
        self.shape.insert(0, experts);
        self.expert = Some(expert);
        self
    }

    /// `[d_out, d_in]` of the slot (`[len, 1]` for a vector).
    pub fn slot_shape(&self) -> [usize; 2] {
        let one = if self.expert.is_some() { &self.shape[1..] } else { &self.shape[..] };
        let (d_out, d_in) = match (one, self.layout) {
            ([len], _) => (*len, 1),
            ([d_out, d_in], Layout::OutIn) | ([d_in, d_out], Layout::InOut) => (*d_out, *d_in),
            (shape, _) => panic!("{}: a spec is a vector or a matrix, not {shape:?}", self.key),
        };
        [self.outputs.as_ref().map_or(d_out, Outputs::count), d_in]
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

    #[test]
    fn a_slot_may_be_every_heads_share_of_a_fused_tensor() {
        let spec = TensorSpec::matrix("qkv", Slot::Head, 2 * 3 * 4, 5).outputs_every(4..8, 12);
        assert_eq!(spec.slot_shape(), [8, 5]);
        let pieces: Vec<_> = spec.outputs.expect("fused").pieces().collect();
        assert_eq!(pieces, [4..8, 16..20]);
    }

    #[test]
    fn a_slot_may_be_one_expert_of_a_tensor_of_all() {
        let spec = TensorSpec::matrix("w", Slot::Head, 6, 4).transposed().of_experts(1, 3);
        assert_eq!((spec.shape.as_slice(), spec.slot_shape()), (&[3, 4, 6][..], [6, 4]));
        let bias = TensorSpec::vector("b", Slot::Head, 6).outputs_every(0..1, 2).of_experts(2, 3);
        assert_eq!((bias.shape.as_slice(), bias.slot_shape()), (&[3, 6][..], [3, 1]));
    }
}
