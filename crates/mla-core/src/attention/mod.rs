//! Attention over cached keys and values, or over cached latents.
//!
//! [`GroupedAttention`] is the donor's; [`LatentAttention`] replaces it after a conversion. Both share the rotary
//! embedding ([`rope`]), what a pass may see ([`Frame`]) and the weighted sum itself (`scores.rs`).

mod frame;
mod grouped;
mod latent;
pub mod rope;
mod scores;

pub use frame::{Frame, Padding};
pub use grouped::GroupedAttention;
pub use latent::LatentAttention;
pub use rope::{RopeConfig, RopeScaling, RopeTable};

use burn::module::Module;
use burn::tensor::Tensor;

use crate::cache::LayerCache;

/// The attention of one layer.
#[derive(Module, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a model has one a layer, and after a conversion most are the larger"
)]
pub enum Attention {
    /// Caches keys and values.
    Grouped(GroupedAttention),
    /// Caches latents.
    Latent(LatentAttention),
}

impl Attention {
    /// Attends from the new positions to everything the pass may see.
    ///
    /// # Shapes
    /// - `h`: `[batch, t_q, d_model]`, the output of the input norm → `[batch, t_q, d_model]`
    ///
    /// # Panics
    /// If `cache` is of the other kind: a cache is made from the decoder it serves.
    pub fn forward(
        &self,
        h: Tensor<3>,
        frame: &Frame,
        layer: usize,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<3> {
        match (self, cache) {
            (Attention::Grouped(attention), None) => attention.forward(h, frame, layer, None),
            (Attention::Grouped(attention), Some(LayerCache::Dense(cache))) => {
                attention.forward(h, frame, layer, Some(cache))
            }
            (Attention::Latent(attention), None) => attention.forward(h, frame, layer, None),
            (Attention::Latent(attention), Some(LayerCache::Latent(cache))) => {
                attention.forward(h, frame, layer, Some(cache))
            }
            _ => panic!("layer {layer}: the cache was made for another decoder"),
        }
    }
}
