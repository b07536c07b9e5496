//! Model folders in and out: Hugging Face checkpoints become [`mla_core`] weights, converted models become folders.
//!
//! [`Model::open`] reads a donor or a folder that shrink wrote, through the same door: `config.json` picks a
//! [`ModelHandler`] from the [`Registry`]; the handler describes its tensors as data ([`TensorSpec`]); loader, checker
//! and [writer](write_folder) interpret that one table. A new architecture is one file in `families/` and one line in
//! [`Registry::builtin`]; another project registers its own with [`Registry::register`].

mod bounds;
mod carried;
mod checkpoint;
mod config_json;
mod custom_code;
mod detect;
mod empty;
mod error;
pub mod families;
mod folder;
mod generation;
pub mod gguf;
pub mod hub;
mod imported;
mod layout;
mod lfs;
mod mla;
mod model;
mod notes;
mod output;
mod quantised;
mod registry;
mod sibling;
mod spec;
mod tokenizer;
mod unfinished;

pub use carried::read_companion;
pub use checkpoint::{Checkpoint, Dtype};
pub use config_json::ConfigJson;
pub use detect::{Unsuited, is_native_mla};
pub use error::Error;
pub use folder::{Written, write_folder};
pub use generation::GenerationConfig;
pub use imported::{ImportPlan, Imported, Split};
pub use layout::deepseek::{DeepseekOptions, DeepseekPlan, beyond_deepseek};
pub use layout::dense::DensePlan;
pub use layout::gguf::GgufPlan;
pub use layout::mla::FolderPlan;
pub use layout::{Container, Encoded, FolderLayout};
pub use lfs::is_lfs_pointer;
pub use mla::{LayerRanks, MlaSection, SharedRope};
pub use model::{Model, read_config};
pub use notes::left_over;
pub use output::{Existing, Output};
pub use quantised::{declared as declared_quantisation, quantisation};
pub use registry::{ModelHandler, Registry};
pub use spec::{Layout, TensorSpec};
pub use tokenizer::{ChatTemplate, Continuation, Message, Tokenizer, TokenizerNote};
pub use unfinished::{Unfinished, remove_unfinished};

/// The page on adding a model, so that its snippets are compiled and run with the doc tests.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/adding-a-model.md")]
mod adding_a_model {}
