//! A decoder-only transformer whose attention may cache small latents in place of keys and values.
//!
//! One [`Decoder`] serves all families, from GPT-2 to gpt-oss: they differ in the closed choices of [`DecoderConfig`]. A layer's attention is either [`Attention::Grouped`] (the donor's, with K and V cached) or
//! [`Attention::Latent`] (Multi-Head Latent Attention: `W_k ≈ W_uk · W_down_k`, `W_v ≈ W_uv · W_down_v`, only the
//! latents cached). Donor, converted model, teacher and student are therefore the same code.
//!
//! The crate knows no files and no tokenizer: weights come through [`WeightSource`], text goes in and out as token
//! ids. Read it in this order: [`decoder`], [`attention`], [`positions`], [`cache`], [`generate`].
//!
//! # Names
//! `d_model` width of the residual stream; `d_head` width of a head; `d_kv = n_kv_heads · d_head`; `d_latent` cached
//! numbers a token in place of `d_kv`; `t_q` new positions of a pass; `t_kv` positions it can look at.

pub mod attention;
pub mod cache;
pub mod decoder;
pub mod generate;
#[cfg_attr(not(feature = "cpu"), path = "host/absent.rs")]
mod host;
mod linear;
mod norm;
pub mod positions;
mod source;
mod weights;

pub use attention::Attention;
pub use cache::{Cache, CacheDtype, CacheError, Memory, PassLatents};
pub use decoder::{Block, Decoder, DecoderConfig, WeightDtype};
pub use linear::linear;
pub use norm::HeadNorm;
pub use positions::Padding;
pub use source::{Patch, SourceError, WeightMap, WeightSource};
pub use weights::{LayerSlot, Matrix, Part, Slot};
