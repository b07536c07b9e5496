//! Absorbed attention in one kernel on CUDA and wgpu, over the cache where it lies.
//!
//! By tensors (`tiled.rs`, the oracle) each tile of tokens is a dozen kernels, and scores and weights go to memory and back
//! between them. Here one launch takes all tiles: a cube a span of tokens and block of query heads, and the spans' running
//! softmaxes are merged at the end (Flash-Decoding, Dao et al. 2023).
//!
//! It applies where both keys and values are absorbed, every query head then reading the same latents, and the cache holds
//! floats of the layer alone: no cross terms. Keys that are rotated after they are rebuilt want a device's matrix units:
//! those stay with `tiled.rs`. Which of the two is the faster is measured on the device ([`trial`](super::trial)).

mod kernel;

use std::ops::Range;

use burn::tensor::{DType, Int, Shape, Tensor, TensorData};
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl::ir::{ElemType, FloatKind};
use burn_cubecl::cubecl::prelude::{CubeCount, CubeDim};
use burn_cubecl::ops::numeric::empty_device_dtype;
use burn_cubecl::tensor::CubeTensor;

use super::cost::{Path, Paths};
use super::frame::Frame;
use super::latent::LatentAttention;
use super::tiled::Asked;
use crate::cache::{Kept, Memory};

/// Cubes that keep a device busy: spans are made shorter until there are so many.
const CUBES: usize = 256;
/// Columns of values that a unit's registers hold.
const MOST_COLUMNS: usize = 4 * kernel::UNITS;

impl LatentAttention {
    /// Whether the kernel can take this layer's work along these paths, if the cache holds floats.
    pub(super) fn suits_cubes(&self, paths: Paths, q: &Tensor<3>) -> bool {
        paths == Paths { keys: Path::Absorbed, values: Path::Absorbed }
            && self.cross.is_none()
            && self.made_values().span().len() <= MOST_COLUMNS
            && q.clone().try_into_primitive::<CubeBackend>().is_ok()
    }

    /// Weighted means of values over all that a pass may see, where [`suits_cubes`](Self::suits_cubes). `None` where the cache
    /// holds no floats.
    ///
    /// # Shapes
    /// - → `[batch, n_heads · t_q, d_head]`
    pub(super) fn heads_on_cubes(
        &self,
        q: &Asked,
        frame: &Frame,
        layer: usize,
        memory: &Memory<'_>,
    ) -> Option<Tensor<3>> {
        let (keys, values) = (self.made_keys(), self.made_values());
        // What comes before the first visible token is not read, but counted: tokens are those that are kept.
        let first = memory.first(layer);
        let Kept::Float(latents) = memory.kept(layer, first..frame.t_kv()) else { return None };
        let latents = latents.try_into_primitive::<CubeBackend>().ok()?;
        let float = match latents.dtype {
            DType::F32 => FloatKind::F32,
            DType::F16 => FloatKind::F16,
            DType::BF16 => FloatKind::BF16,
            _ => return None,
        };
        let device = q.heads.device();
        let left = frame.padding().columns().iter().map(|left| left.saturating_sub(first) as i32);
        let left = left.collect::<Vec<_>>();
        let left = TensorData::new(left, [frame.padding().batch()]);
        let left = Tensor::<1, Int>::from_data(left, (&device, DType::I32));
        let spans = spans(Operands {
            queries: self.taken_to_latents(&keys, q).try_into_primitive::<CubeBackend>().ok()?,
            latents,
            float,
            left: left.try_into_primitive::<CubeBackend>().ok()?,
            keys: self.scored(&keys),
            values: values.span(),
            softcap: self.scores.softcap,
            first,
            frame,
            layer,
        });
        let (mean, weight) = spans.mean(self.scores.sink_rows(frame.t_q()));
        Some(self.taken_to_values(&values, mean, weight))
    }
}

/// Softmax and weighted sum of each span of tokens.
struct Spans {
    /// `[batch, spans, rows, read_v]`.
    mixed: Tensor<4>,
    /// The largest score: `[batch, spans, rows]`.
    peaks: Tensor<3>,
    /// The sum of `exp(score − peak)`: `[batch, spans, rows]`.
    sums: Tensor<3>,
}

impl Spans {
    /// The spans as one: each brought to the largest score of all. Sinks take their weight and give no value; with them, what
    /// the weights of the others add up to.
    ///
    /// # Shapes
    /// - `sinks`: `[1, rows, 1]` → `[batch, rows, read_v]`, `[batch, rows, 1]`
    fn mean(self, sinks: Option<Tensor<3>>) -> (Tensor<3>, Option<Tensor<3>>) {
        let Self { mixed, peaks, sums } = self;
        let highest = peaks.clone().max_dim(1);
        let fades = (peaks - highest.clone()).exp();
        let sum = (sums * fades.clone()).sum_dim(1).squeeze_dim::<2>(1);
        let (sum, weight) = match sinks {
            None => (sum, None),
            Some(sinks) => {
                let with = sum.clone() + (sinks.squeeze_dim::<2>(2) - highest.squeeze_dim::<2>(1)).exp();
                (with.clone(), Some((sum / with).unsqueeze_dim::<3>(2)))
            }
        };
        let mixed = (mixed * fades.unsqueeze_dim::<4>(3)).sum_dim(1).squeeze_dim::<3>(1);
        // A row that sees nothing, of padding, has to stay a number.
        (mixed / sum.clamp_min(f32::MIN_POSITIVE).unsqueeze_dim::<3>(2), weight)
    }
}

/// What a launch reads.
struct Operands<'a> {
    /// `[batch, rows, read_k]`.
    queries: CubeTensor,
    /// `[batch, tokens, width]`.
    latents: CubeTensor,
    float: FloatKind,
    /// Columns of padding: `[batch]`.
    left: CubeTensor,
    keys: Range<usize>,
    values: Range<usize>,
    softcap: Option<f64>,
    /// The token of the first row of `latents`.
    first: usize,
    frame: &'a Frame,
    layer: usize,
}

fn spans(operands: Operands<'_>) -> Spans {
    let Operands { queries, latents, float, left, keys, values, softcap, first, frame, layer } = operands;
    let [batch, rows, _] = queries.meta.shape().dims();
    let visible = frame.visible(layer);
    let blocks = rows.div_ceil(kernel::ROWS);
    let wanted = CUBES.div_ceil(batch * blocks);
    let span = visible.len().div_ceil(wanted).next_multiple_of(kernel::TILE);
    let spans = visible.len().div_ceil(span);
    let room =
        |shape: Shape| empty_device_dtype(queries.client.clone(), queries.device.clone(), shape, DType::F32);
    let mixed = room(Shape::new([batch, spans, rows, values.len()]));
    let [peaks, sums] = [(); 2].map(|()| room(Shape::new([batch, spans, rows])));
    let number = |number: usize| u32::try_from(number).expect("tokens and heads are fewer than 2^32");
    let client = queries.client.clone();
    kernel::attend_span::launch(
        &client,
        CubeCount::Static(number(blocks), number(spans), number(batch)),
        CubeDim::new_1d(number(kernel::UNITS)),
        queries.into_tensor_arg(),
        latents.into_tensor_arg(),
        left.into_tensor_arg(),
        mixed.clone().into_tensor_arg(),
        peaks.clone().into_tensor_arg(),
        sums.clone().into_tensor_arg(),
        number(frame.past() - first),
        number(frame.t_q()),
        number(frame.window(layer).unwrap_or(0)),
        number(visible.start - first),
        number(span),
        softcap.map_or(0.0, |cap| cap as f32),
        keys.start,
        keys.len(),
        values.start,
        values.len(),
        ElemType::Float(float),
    );
    Spans {
        mixed: Tensor::from_primitive::<CubeBackend>(mixed),
        peaks: Tensor::from_primitive::<CubeBackend>(peaks),
        sums: Tensor::from_primitive::<CubeBackend>(sums),
    }
}
