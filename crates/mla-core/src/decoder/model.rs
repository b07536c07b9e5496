//! The whole decoder.

use burn::module::Module;
use burn::nn::{Embedding, Linear};
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::block::Block;
use super::config::{DecoderConfig, Scales};
use super::load::{frame, ids_tensor};
use crate::attention::Frame;
use crate::cache::{Cache, CacheError, Memory};
use crate::host;
use crate::linear::{linear, widened};
use crate::norm::Norm;
use crate::positions::Padding;

/// Up to this many rows, a product reads the embedding row by row (`E hᵀ`) faster than transposed (`h Eᵀ`): one row of
/// 1×576×49152 took 5 ms against 213 on the CPU backend.
const FEW_ROWS: usize = 32;

/// A decoder-only transformer: donor, converted model, teacher and student alike.
#[derive(Module, Debug)]
pub struct Decoder {
    /// Token embedding.
    pub tokens: Embedding,
    /// Learned positions, where the family has them.
    pub positions: Option<Embedding>,
    /// The layers.
    pub blocks: Vec<Block>,
    /// Norm before the head.
    pub final_norm: Norm,
    /// Output head; `None` when it is the token embedding, transposed.
    pub head: Option<Linear>,
    #[module(skip)]
    pub(super) config: DecoderConfig,
}

impl Decoder {
    /// What graph this is.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The device the weights are on.
    pub fn device(&self) -> Device {
        self.tokens.weight.val().device()
    }

    /// An empty cache for sequences of up to `capacity` tokens, padding included.
    pub fn cache(&self, padding: Padding, capacity: usize) -> Cache {
        Cache::new(&self.config, padding, capacity, &self.device())
    }

    /// Logits of every position, without a cache.
    ///
    /// # Shapes
    /// - `ids`: equally long sequences, padded as `padding` says → `[batch, t, vocab_size]`
    ///
    /// # Panics
    /// If the sequences differ in length, their number is not `padding`'s, or with learned positions they are longer
    /// than the context.
    pub fn forward(&self, ids: &[Vec<u32>], padding: &Padding) -> Tensor<3> {
        self.logits(self.hidden(ids, padding))
    }

    /// What the head multiplies, for every position, without a cache.
    ///
    /// # Shapes
    /// - `ids`: equally long sequences → `[batch, t, d_model]`
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn hidden(&self, ids: &[Vec<u32>], padding: &Padding) -> Tensor<3> {
        let t = check_batch(ids, padding);
        let frame = frame(&self.config, padding, t, &self.device());
        self.run(self.embed(ids, padding, 0), &frame, Memory::of_pass(&self.config))
    }

    /// What the head multiplies, for new columns that follow those in the cache: prefill (also in chunks) and decode.
    ///
    /// # Shapes
    /// - `ids`: `[batch, t_q]` → `[batch, t_q, d_model]`
    ///
    /// # Errors
    /// When the new columns do not fit the cache; the cache is unchanged then.
    pub fn hidden_cached(&self, ids: &[Vec<u32>], cache: &mut Cache) -> Result<Tensor<3>, CacheError> {
        let t_q = ids.first().map_or(0, Vec::len);
        let past = cache.advance(ids.len(), t_q)?;
        check_batch(ids, cache.padding());
        let reach = self.config.reach();
        let frame = Frame::new(reach, &cache.tables, cache.padding(), past, t_q, &self.device());
        let x = self.embed(ids, cache.padding(), past);
        let hidden = self.run(x, &frame, Memory::Cache(cache));
        cache.trim();
        Ok(hidden)
    }

    /// Logits of given positions.
    ///
    /// # Shapes
    /// - `hidden`: `[batch, t, d_model]` → `[batch, t, vocab_size]`
    pub fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.config.scales.logits(match &self.head {
            Some(head) => linear(head, hidden),
            None => tied_logits(hidden, self.tokens.weight.val()),
        })
    }

    /// The residual stream before the first layer, of columns that follow `past` others.
    ///
    /// # Shapes
    /// - `ids`: `[batch, t]` → `[batch, t, d_model]`
    ///
    /// A learned position beyond the context is the last one: a row of a batch that has ended is carried on there, unread.
    ///
    /// # Panics
    /// If the sequences differ in length.
    pub fn embed(&self, ids: &[Vec<u32>], padding: &Padding, past: usize) -> Tensor<3> {
        let device = self.device();
        let x = self.config.scales.embedded(widened(self.tokens.forward(ids_tensor(ids, &device))));
        match &self.positions {
            None => x,
            Some(table) => {
                let (t, last) = (ids[0].len(), table.weight.dims()[0] - 1);
                let places = padding.positions(past, t).into_iter().map(|place| place.min(last as i64));
                let places = TensorData::new(places.collect(), [ids.len(), t]);
                x + widened(table.forward(Tensor::<2, Int>::from_data(places, &device)))
            }
        }
    }

    fn run(&self, mut x: Tensor<3>, frame: &Frame, mut memory: Memory<'_>) -> Tensor<3> {
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.forward(x, frame, layer, &mut memory);
        }
        self.final_norm.forward(x)
    }
}

impl Scales {
    /// What the first layer reads of a token's embedding.
    ///
    /// # Shapes
    /// - any
    pub fn embedded<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        if self.embedding == 1.0 { x } else { x * self.embedding }
    }

    /// Logits of what the head's matrix gives.
    ///
    /// # Shapes
    /// - any
    pub fn logits<const D: usize>(&self, products: Tensor<D>) -> Tensor<D> {
        let logits = if self.logits == 1.0 { products } else { products * self.logits };
        match self.logit_softcap {
            None => logits,
            Some(cap) => (logits / cap).tanh() * cap,
        }
    }

    /// `∂logit/∂product`, the derivative of [`logits`](Self::logits), by the logit itself.
    pub fn logit_slope(&self, logit: f32) -> f32 {
        let bent = self.logit_softcap.map_or(1.0, |cap| 1.0 - (f64::from(logit) / cap).powi(2));
        (bent * self.logits) as f32
    }

    /// Whether logits are the products themselves.
    pub fn leave_logits(&self) -> bool {
        self.logits == 1.0 && self.logit_softcap.is_none()
    }
}

/// `hidden · Eᵀ` with the embedding as it lies.
///
/// # Shapes
/// - `hidden`: `[batch, t, d_model]`, `embedding`: `[vocab_size, d_model]` → `[batch, t, vocab_size]`
fn tied_logits(hidden: Tensor<3>, embedding: Tensor<2>) -> Tensor<3> {
    let ([batch, t, d_model], [vocab_size, _]) = (hidden.dims(), embedding.dims());
    let rows = hidden.reshape([batch * t, d_model]);
    let logits = host::product_transposed(&rows, &embedding).unwrap_or_else(|| {
        let embedding = widened(embedding);
        match batch * t > FEW_ROWS {
            true => rows.matmul(embedding.transpose()),
            false => embedding.matmul(rows.transpose()).transpose(),
        }
    });
    logits.reshape([batch, t, vocab_size])
}

/// The common length of a batch.
fn check_batch(ids: &[Vec<u32>], padding: &Padding) -> usize {
    assert_eq!(ids.len(), padding.batch(), "one padding entry a sequence");
    let t = ids.first().map_or(0, Vec::len);
    assert!(ids.iter().all(|row| row.len() == t), "sequences of a batch are equally long");
    t
}
