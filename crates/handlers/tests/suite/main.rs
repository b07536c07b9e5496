//! What a model folder must be and do, from the reference's numbers to the folders of strangers.
//!
//! Read it in this order: [`goldens`] holds the decoder against transformers, [`sensitivity`] shows that those numbers
//! would catch a mistake, [`latent`] and [`generate`] hold what shrink adds to what it replaces, [`writer`] reads back
//! what was written, and [`hostile`] damages folders. [`twin`] and [`scratch`] serve them all.

mod conversion;
mod generate;
mod goldens;
mod hostile;
mod hub;
mod latent;
mod registry;
mod scratch;
mod sensitivity;
mod tokenizer;
mod twin;
mod writer;
