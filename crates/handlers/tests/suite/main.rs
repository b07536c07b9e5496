//! What a model folder must be and do, from the reference's numbers to the folders of strangers.
//!
//! Read it in this order: [`goldens`] holds the decoder against transformers, [`sensitivity`] shows that those numbers
//! would catch a mistake, [`latent`], [`methods`], [`blocks`] and [`generate`] hold what shrink adds to what it replaces,
//! [`probes`] takes gradients, [`configs`] reads configurations that say less, [`writer`] reads back what was written, and [`hostile`] damages folders. [`twin`],
//! [`conversion`], [`graphs`] and [`scratch`] serve them all.

mod blocks;
mod configs;
mod conversion;
mod generate;
mod goldens;
mod graphs;
mod hostile;
mod hub;
mod latent;
mod methods;
mod probes;
mod registry;
mod scratch;
mod sensitivity;
mod tokenizer;
mod tokenizer_golden;
mod twin;
mod writer;
