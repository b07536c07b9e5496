//! The decoder graph: embedding, blocks, final norm, head.

mod basis;
mod block;
mod config;
mod latents;
mod load;
mod mlp;
mod model;
#[cfg(test)]
mod paths;
mod reader;
mod share;

pub use crate::norm::Norm;
pub use block::Block;
pub use config::{
    Activation, AttentionKind, Biases, BlockKind, DecoderConfig, HeadKind, LayerConfig, MlpConfig, MlpKind,
    NormKind, PositionKind, QkNorm, Scales, Sharing,
};
pub use latents::{KeyForm, LatentConfig, LatentPart, LatentWidth, Serves, SharedKeyConfig};
pub use load::frame;
pub use mlp::{Experts, GatedMlp, Mlp, PlainMlp};
pub use model::Decoder;
pub use reader::WeightDtype;
