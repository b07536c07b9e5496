//! The decoder graph: embedding, blocks, final norm, head.

mod basis;
mod block;
mod config;
mod load;
mod mlp;
mod model;
mod norm;
#[cfg(test)]
mod paths;
mod reader;
mod share;

pub use block::Block;
pub use config::{
    Activation, AttentionKind, Biases, DecoderConfig, HeadKind, LatentConfig, LatentWidth, LayerConfig,
    MlpKind, NormKind, PositionKind, Sharing,
};
pub use load::frame;
pub use mlp::{Experts, GatedMlp, Mlp, PlainMlp};
pub use model::Decoder;
pub use norm::Norm;
