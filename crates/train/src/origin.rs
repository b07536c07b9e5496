//! What a run is of besides its settings, by digests: a snapshot of another text or model is told by them.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use mla_core::{Attention, Decoder};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// SHA-256 of each thing that a run is of, by its name in messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Origin(BTreeMap<String, String>);

impl Origin {
    /// Adds text, cut into windows or whole.
    pub fn add_text<'a>(&mut self, name: &str, windows: impl IntoIterator<Item = &'a [u32]>) {
        let mut sha = Sha256::new();
        for window in windows {
            sha.update(window.len().to_le_bytes());
            window.iter().for_each(|token| sha.update(token.to_le_bytes()));
        }
        self.0.insert(name.into(), hex(sha));
    }

    /// Adds matrices.
    pub(crate) fn add_matrices(&mut self, name: &str, matrices: impl IntoIterator<Item = Tensor<2>>) {
        let mut sha = Sha256::new();
        for matrix in matrices {
            matrix.dims().iter().for_each(|n| sha.update(n.to_le_bytes()));
            sha.update(matrix.into_data().as_bytes());
        }
        self.0.insert(name.into(), hex(sha));
    }

    /// The first name that has something else there, or is only in one of the two.
    pub(crate) fn difference<'a>(&'a self, other: &'a Self) -> Option<&'a str> {
        let names = self.0.keys().chain(other.0.keys());
        names.map(String::as_str).find(|name| self.0.get(*name) != other.0.get(*name))
    }
}

/// By what a donor's attention differs from that of others: its `W_k` and `W_v`, all layers'.
pub(crate) fn keys_values(decoder: &Decoder) -> impl Iterator<Item = Tensor<2>> {
    decoder.blocks.iter().flat_map(|block| match &block.attention {
        Attention::Grouped(attention) => {
            [&attention.keys.proj, &attention.v_proj].map(|linear| linear.weight.val()).to_vec()
        }
        Attention::Latent(attention) => {
            attention.factors().into_iter().map(|(_, linear)| linear.weight.val()).collect()
        }
    })
}

/// A digest as it is written.
pub(crate) fn hex(sha: Sha256) -> String {
    sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, windows: &[&[u32]]) -> Origin {
        let mut origin = Origin::default();
        origin.add_text(name, windows.iter().copied());
        origin
    }

    #[test]
    fn another_text_another_cut_and_a_text_that_is_missing_are_named() {
        let ours = of("text", &[&[1, 2], &[3]]);
        assert_eq!(ours.difference(&of("text", &[&[1, 2], &[3]])), None);
        for other in [of("text", &[&[1, 2], &[4]]), of("text", &[&[1], &[2, 3]]), Origin::default()] {
            assert_eq!(ours.difference(&other), Some("text"));
            assert_eq!(other.difference(&ours), Some("text"));
        }
    }
}
