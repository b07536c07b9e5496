//! Attention over cached keys and values, or over cached latents.
//!
//! [`GroupedAttention`] is the donor's; [`LatentAttention`] replaces it after a conversion. Both make queries and keys by
//! [`Queries`] and [`Keys`], weigh by [`Scores`], and share what a pass may see ([`Frame`]). Over keys and values as a whole
//! the weighted sum is `scores.rs`; a latent layer with a cache goes through it a tile at a time instead (`tiled.rs`), along the path that
//! `cost.rs` counts as the cheaper; on the CPU `host/` takes that walk, and on other devices `cube/` where it times faster.

mod cost;
#[cfg_attr(not(feature = "cube"), path = "cube/absent.rs")]
mod cube;
mod frame;
mod grouped;
#[cfg_attr(not(feature = "cpu"), path = "host/absent.rs")]
mod host;
mod inputs;
mod latent;
mod projections;
mod scores;
mod shared;
mod tiled;
mod trial;

pub use cost::{Path, Paths, Work};
pub use frame::{Frame, Reach};
pub use grouped::GroupedAttention;
pub use inputs::{Keys, Queries, latent_input};
pub use latent::{KeysValues, LatentAttention};
pub use projections::{CrossTerms, JointProjections, Projections, SplitProjections};
pub use scores::{ScoreConfig, Scores};
pub use shared::SharedKey;
#[cfg(test)]
pub(crate) use tiled::{Cubes, Walk};

use burn::module::Module;
use burn::tensor::Tensor;

use crate::cache::Memory;

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
    /// Attends from the new positions to everything the pass may see, and leaves in `memory` what the layer caches.
    ///
    /// # Shapes
    /// - `h`: `[batch, t_q, d_model]`, the output of the input norm → `[batch, t_q, d_model]`
    ///
    /// # Panics
    /// If `memory` is of another decoder, or layers that this one reads have not run before it.
    pub fn forward(&self, h: Tensor<3>, frame: &Frame, layer: usize, memory: &mut Memory<'_>) -> Tensor<3> {
        match self {
            Attention::Grouped(attention) => attention.forward(h, frame, layer, memory),
            Attention::Latent(attention) => attention.forward(h, frame, layer, memory),
        }
    }
}
