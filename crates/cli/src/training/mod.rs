//! What `shrink train` is made of: where its settings come from, who takes part, what is watched and kept.

mod curves;
mod folder;
pub mod rates;
mod settings;
mod sources;
mod validation;

pub use folder::RunFolder;
pub use settings::settings;
pub use sources::{donor, donor_name, files, originals, recorded_donor, text};
pub use validation::Validation;
