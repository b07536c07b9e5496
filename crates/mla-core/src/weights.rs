//! The parts of a decoder by name, and host matrices, independent of any checkpoint's spelling.

use std::fmt;

/// Which half of an affine map a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// The matrix (or a norm's gain).
    Weight,
    /// The vector added afterwards.
    Bias,
}

/// One tensor of the decoder graph.
///
/// Matrices are handed over as `[d_out, d_in]`, whatever the checkpoint stores; embeddings as `[rows, d_model]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Slot {
    /// `[vocab_size, d_model]`.
    TokenEmbedding,
    /// `[max_positions, d_model]`, learned positions only.
    PositionEmbedding,
    /// The norm before the head.
    FinalNorm(Part),
    /// `[vocab_size, d_model]`, absent when the head is tied to the token embedding.
    Head,
    /// A tensor of the layer with this index.
    Layer(usize, LayerSlot),
}

/// One tensor of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LayerSlot {
    /// The norm before attention: its output is what `W_q`, `W_k` and `W_v` multiply.
    InputNorm(Part),
    /// The norm between attention and the residual stream.
    AttendedNorm(Part),
    /// `[n_heads · d_head, d_model]`.
    Query(Part),
    /// `[d_kv, d_model]`. The bias stays when the weight is replaced by latents.
    Key(Part),
    /// `[d_kv, d_model]`. The bias stays when the weight is replaced by latents.
    Value(Part),
    /// `[d_model, n_heads · d_head]`.
    Output(Part),
    /// The gain of the norm of queries: `[d_head]`, or `[n_heads · d_head]` where it goes over all heads.
    QueryNorm,
    /// The gain of the norm of keys: `[d_head]`, or `[d_kv]`.
    KeyNorm,
    /// A logit a query head that takes weight from its scores: `[n_heads]`.
    Sinks,
    /// `[d_latent_k, d_model]`; behind a norm of keys `[d_latent_k, d_kv]`.
    DownKey,
    /// `[d_kv, d_latent_k]`, orthonormal columns.
    UpKey,
    /// `[d_latent_v, d_model]`.
    DownValue,
    /// `[d_kv, d_latent_v]`, orthonormal columns.
    UpValue,
    /// `[d_latent, d_model]`, where keys and values share one latent; behind a norm of keys `[d_latent, d_kv + d_model]`.
    DownJoint,
    /// `[W_uk; W_uv]` stacked, `[2 · d_kv, d_latent]`, orthonormal columns as a whole.
    UpJoint,
    /// `[d_rope, d_model]`, or behind a norm of keys `[d_rope, d_kv]`: to the rotated key that all heads share; its bias `[d_rope]`.
    /// Where there is one, the bias of [`Key`](Self::Key) is that of the keys which are not rotated.
    DownShared(Part),
    /// `[d_kv, d_rope]`: what each kv head's queries read of the shared key.
    UpShared,
    /// `[d_latent_k, d_latent_k]`: takes the latent to the basis in which it is quantised (see `decoder::basis`).
    BalanceKey,
    /// `[d_latent_v, d_latent_v]`: takes the latent to the basis in which it is quantised.
    BalanceValue,
    /// `[d_latent, d_latent]`: takes the latent to the basis in which it is quantised.
    BalanceJoint,
    /// `[d_kv, columns]`: keys from all that is not their own latent (see `DecoderConfig::cross_columns`).
    CrossKey,
    /// `[d_kv, columns]`: values from all that is not their own latent.
    CrossValue,
    /// The norm before the MLP.
    MlpNorm(Part),
    /// The norm between the MLP and the residual stream.
    MlpOutNorm(Part),
    /// `[d_ff, d_model]`, gated MLPs only.
    Gate(Part),
    /// `[d_ff, d_model]`.
    Up(Part),
    /// `[d_model, d_ff]`.
    Down(Part),
    /// `[n_experts, d_model]`.
    Router(Part),
    /// `[d_ff, d_model]` of one expert.
    ExpertGate(usize, Part),
    /// `[d_ff, d_model]` of one expert.
    ExpertUp(usize, Part),
    /// `[d_model, d_ff]` of one expert.
    ExpertDown(usize, Part),
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Slot::Layer(layer, slot) => write!(f, "layer {layer} {slot:?}"),
            other => write!(f, "{other:?}"),
        }
    }
}

/// A dense matrix on the host, row-major, in the precision factorisations return.
///
/// # Shapes
/// `data[r * cols + c]` is row `r`, column `c`; a weight is `[d_out, d_in]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// `rows · cols` numbers, row-major.
    pub data: Vec<f32>,
}

impl Matrix {
    /// Wraps row-major data.
    ///
    /// # Panics
    /// If `data` does not hold `rows · cols` numbers.
    pub fn new(rows: usize, cols: usize, data: Vec<f32>) -> Self {
        assert_eq!(data.len(), rows * cols, "a {rows}x{cols} matrix needs {} numbers", rows * cols);
        Self { rows, cols, data }
    }

    /// Rows and columns exchanged.
    pub fn transpose(&self) -> Self {
        let row = |r: usize| (0..self.rows).map(move |c| self.data[c * self.cols + r]);
        Self::new(self.cols, self.rows, (0..self.cols).flat_map(row).collect())
    }

    /// Reads a device tensor back to the host.
    pub fn from_tensor(tensor: &burn::tensor::Tensor<2>) -> Self {
        let [rows, cols] = tensor.dims();
        Self::new(rows, cols, crate::source::host_f32(tensor.clone()))
    }

    /// Places the matrix on a device as f32.
    pub fn to_tensor(&self, device: &burn::tensor::Device) -> burn::tensor::Tensor<2> {
        let data = burn::tensor::TensorData::new(self.data.clone(), [self.rows, self.cols]);
        burn::tensor::Tensor::from_data(data, device)
    }
}
