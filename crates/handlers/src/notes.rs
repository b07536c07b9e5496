//! What is unusual about a model's folder and yet not wrong.

use crate::model::Model;
use crate::quantised;

impl Model {
    /// What a user should hear of how the folder was read, a sentence each; none of an ordinary folder.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.checkpoint().lacks_index() {
            notes.push(format!(
                "there is no model.safetensors.index.json; the {} shard(s) are a whole set by their numbers, and are read as one",
                self.checkpoint().files().count()
            ));
        }
        notes.extend(quantised::declared(self.json()).map(|scheme| left_over(&scheme)));
        notes
    }
}

/// The note on a configuration that says that plain weights are quantised.
pub fn left_over(scheme: &str) -> String {
    format!(
        "config.json says that the weights are quantised ({scheme}), and they are plain floats: that is ignored"
    )
}
