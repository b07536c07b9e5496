//! What a latent layer caches, and the tensors that belong to it.

use crate::weights::LayerSlot;

/// The latents of one layer and what they are rebuilt with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LatentConfig {
    /// How many numbers a token, and for what.
    pub width: LatentWidth,
    /// The layer whose `W_up` this one uses: itself, or the first of its group where a group shares one (xKV).
    pub up_of: usize,
    /// Cross terms (cascade): K reads the layer's own value latent, V its own key latent, and both read the latents of
    /// layers `first..layer`, those that have any. `None` for a layer that reads nothing but its own latent.
    pub reads_from: Option<usize>,
    /// Whether the weights say in which basis the latent is best quantised.
    pub balanced: bool,
    /// How keys come to depend on their positions.
    pub keys: KeyForm,
    /// Numbers a token that the donor cached in its place, where its graph has other K and V heads than the donor had; `None` for
    /// those of its own graph.
    pub replaces: Option<usize>,
}

/// How keys that are rebuilt from latents come to depend on their positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyForm {
    /// Each head's key is rotated after it is rebuilt, as the donor's is.
    Rotated,
    /// Keys are scored as they are rebuilt; beside them stands one rotated key that all heads share.
    Shared(SharedKeyConfig),
}

/// The rotated key that all heads of a layer share (DeepSeek-V2 2024, §2.1.3). It is cached before the latent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedKeyConfig {
    /// Which of the model's rotary embeddings turns it.
    pub rope: usize,
    /// For each of its pairs, the pair of that embedding that it turns as; at least one.
    pub pairs: Vec<usize>,
}

impl SharedKeyConfig {
    /// Numbers a token.
    pub fn d_rope(&self) -> usize {
        2 * self.pairs.len()
    }
}

/// Latent numbers a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LatentWidth {
    /// One latent for keys, one for values.
    Split {
        /// Numbers a token for keys.
        d_latent_k: usize,
        /// Numbers a token for values.
        d_latent_v: usize,
    },
    /// One latent from which keys and values are both rebuilt.
    Joint {
        /// Numbers a token.
        d_latent: usize,
    },
}

/// One of the latents of a layer, and the tensors that belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentPart {
    /// What is rebuilt from it.
    pub serves: Serves,
    /// Numbers a token.
    pub width: usize,
}

/// What is rebuilt from a latent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    /// Keys.
    Keys,
    /// Values.
    Values,
    /// Both.
    Both,
}

impl LatentPart {
    /// Where its `W_down` is.
    pub fn down(self) -> LayerSlot {
        match self.serves {
            Serves::Keys => LayerSlot::DownKey,
            Serves::Values => LayerSlot::DownValue,
            Serves::Both => LayerSlot::DownJoint,
        }
    }

    /// Where its `W_up` is.
    pub fn up(self) -> LayerSlot {
        match self.serves {
            Serves::Keys => LayerSlot::UpKey,
            Serves::Values => LayerSlot::UpValue,
            Serves::Both => LayerSlot::UpJoint,
        }
    }

    /// Where the basis is in which it is quantised.
    pub fn balance(self) -> LayerSlot {
        match self.serves {
            Serves::Keys => LayerSlot::BalanceKey,
            Serves::Values => LayerSlot::BalanceValue,
            Serves::Both => LayerSlot::BalanceJoint,
        }
    }

    /// Rows of its `W_up`: what is rebuilt from it.
    pub fn d_up(self, d_kv: usize) -> usize {
        match self.serves {
            Serves::Keys | Serves::Values => d_kv,
            Serves::Both => 2 * d_kv,
        }
    }
}

impl LatentWidth {
    /// The parts of a latent, in the order in which they are cached.
    pub fn parts(self) -> Vec<LatentPart> {
        match self {
            LatentWidth::Split { d_latent_k, d_latent_v } => vec![
                LatentPart { serves: Serves::Keys, width: d_latent_k },
                LatentPart { serves: Serves::Values, width: d_latent_v },
            ],
            LatentWidth::Joint { d_latent } => {
                vec![LatentPart { serves: Serves::Both, width: d_latent }]
            }
        }
    }

    /// The widths of its parts.
    pub fn widths(self) -> Vec<usize> {
        self.parts().into_iter().map(|part| part.width).collect()
    }

    /// The same parts in other widths; `None` where there are not as many.
    pub fn with(self, widths: &[usize]) -> Option<Self> {
        match (self, widths) {
            (LatentWidth::Split { .. }, &[d_latent_k, d_latent_v]) => {
                Some(LatentWidth::Split { d_latent_k, d_latent_v })
            }
            (LatentWidth::Joint { .. }, &[d_latent]) => Some(LatentWidth::Joint { d_latent }),
            _ => None,
        }
    }

    /// Numbers a token of all parts.
    pub fn total(self) -> usize {
        self.widths().into_iter().sum()
    }
}

impl LatentConfig {
    /// A layer that stands alone: no group, no cross terms.
    pub fn alone(layer: usize, width: LatentWidth) -> Self {
        Self {
            width,
            up_of: layer,
            reads_from: None,
            balanced: false,
            keys: KeyForm::Rotated,
            replaces: None,
        }
    }

    /// The rotated key that all heads share, where there is one.
    pub fn shared_key(&self) -> Option<&SharedKeyConfig> {
        match &self.keys {
            KeyForm::Rotated => None,
            KeyForm::Shared(shared) => Some(shared),
        }
    }

    /// Numbers a token of the rotated key that all heads share.
    pub fn d_rope(&self) -> usize {
        self.shared_key().map_or(0, SharedKeyConfig::d_rope)
    }

    /// Widths of what is cached, in order: the shared key, where there is one, then the parts of the latent.
    pub fn cached_widths(&self) -> Vec<usize> {
        self.shared_key().map(SharedKeyConfig::d_rope).into_iter().chain(self.width.widths()).collect()
    }

    /// Numbers cached a token.
    pub fn cached_numbers(&self) -> usize {
        self.d_rope() + self.width.total()
    }
}
