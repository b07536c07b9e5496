//! What `shrink train` is made of: where its settings come from, who takes part, what is watched and kept.

mod curves;
mod folder;
mod settings;
mod sources;
mod validation;

pub use folder::RunFolder;
pub use settings::settings;
pub use sources::{donor, donor_name, originals, recorded_donor};
pub use validation::Validation;
