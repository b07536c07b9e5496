//! One layer's entry of the `mla` section.

use mla_core::decoder::{KeyForm, LatentConfig, LatentWidth, SharedKeyConfig};
use serde::{Deserialize, Serialize};

/// The latents of one layer as `config.json` has them.
///
/// `{"d_latent_k": 12, "d_latent_v": 27}`, or `{"d_latent": 39}` for one latent of both; with `"up_of": 4` where the layer
/// uses the `W_up` of layer 4, `"reads_from": 2` where it reads the latents of layers 2 to its own (cross terms),
/// `"balanced": true` where the basis for quantising is stored, and `"shared": {"rope": 0, "pairs": [0, 0, 1]}` where all heads
/// share a rotated key of three pairs, which turn as those pairs of the model's rotary embedding 0 do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct LayerRanks {
    /// Latent numbers a token.
    pub width: LatentWidth,
    /// The layer whose `W_up` is used; `None` for its own.
    pub up_of: Option<usize>,
    /// The first layer whose latents are read; `None` for a layer without cross terms.
    pub reads_from: Option<usize>,
    /// Whether the basis is stored in which the latent is best quantised.
    pub balanced: bool,
    /// The rotated key that all heads share, where there is one.
    pub shared: Option<SharedKeyConfig>,
}

impl LayerRanks {
    /// The entry of a layer.
    pub fn new(layer: usize, latent: &LatentConfig) -> Self {
        let up_of = Some(latent.up_of).filter(|&leader| leader != layer);
        let shared = latent.shared_key().cloned();
        Self { width: latent.width, up_of, reads_from: latent.reads_from, balanced: latent.balanced, shared }
    }

    /// What a layer with this entry caches and reads.
    pub fn latent(&self, layer: usize) -> LatentConfig {
        let Self { width, up_of, reads_from, balanced, ref shared } = *self;
        let keys = shared.clone().map_or(KeyForm::Rotated, KeyForm::Shared);
        LatentConfig { width, up_of: up_of.unwrap_or(layer), reads_from, balanced, keys, replaces: None }
    }
}

/// An entry as it is spelled.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    #[serde(skip_serializing_if = "Option::is_none")]
    d_latent_k: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    d_latent_v: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    d_latent: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    up_of: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reads_from: Option<usize>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    balanced: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    shared: Option<Shared>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shared {
    rope: usize,
    pairs: Vec<usize>,
}

impl TryFrom<Fields> for LayerRanks {
    type Error = &'static str;

    fn try_from(fields: Fields) -> Result<Self, &'static str> {
        let width = match (fields.d_latent_k, fields.d_latent_v, fields.d_latent) {
            (Some(d_latent_k), Some(d_latent_v), None) => LatentWidth::Split { d_latent_k, d_latent_v },
            (None, None, Some(d_latent)) => LatentWidth::Joint { d_latent },
            _ => return Err("a layer has d_latent_k and d_latent_v, or d_latent alone"),
        };
        let shared = fields.shared.map(|Shared { rope, pairs }| SharedKeyConfig { rope, pairs });
        let Fields { up_of, reads_from, balanced, .. } = fields;
        Ok(Self { width, up_of, reads_from, balanced, shared })
    }
}

impl From<LayerRanks> for Fields {
    fn from(ranks: LayerRanks) -> Self {
        let (d_latent_k, d_latent_v, d_latent) = match ranks.width {
            LatentWidth::Split { d_latent_k, d_latent_v } => (Some(d_latent_k), Some(d_latent_v), None),
            LatentWidth::Joint { d_latent } => (None, None, Some(d_latent)),
        };
        let LayerRanks { up_of, reads_from, balanced, shared, .. } = ranks;
        let shared = shared.map(|SharedKeyConfig { rope, pairs }| Shared { rope, pairs });
        Self { d_latent_k, d_latent_v, d_latent, up_of, reads_from, balanced, shared }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_says_what_differs_from_a_layer_that_stands_alone() {
        let split = LatentWidth::Split { d_latent_k: 3, d_latent_v: 5 };
        let joint = LatentWidth::Joint { d_latent: 8 };
        for (latent, text) in [
            (LatentConfig::alone(2, split), r#"{"d_latent_k":3,"d_latent_v":5}"#),
            (LatentConfig::alone(2, joint), r#"{"d_latent":8}"#),
            (
                LatentConfig { up_of: 1, ..LatentConfig::alone(2, split) },
                r#"{"d_latent_k":3,"d_latent_v":5,"up_of":1}"#,
            ),
            (
                LatentConfig { reads_from: Some(0), ..LatentConfig::alone(2, joint) },
                r#"{"d_latent":8,"reads_from":0}"#,
            ),
            (
                LatentConfig { balanced: true, ..LatentConfig::alone(2, joint) },
                r#"{"d_latent":8,"balanced":true}"#,
            ),
            (
                LatentConfig {
                    keys: KeyForm::Shared(SharedKeyConfig { rope: 1, pairs: vec![0, 0, 3] }),
                    ..LatentConfig::alone(2, joint)
                },
                r#"{"d_latent":8,"shared":{"rope":1,"pairs":[0,0,3]}}"#,
            ),
        ] {
            let ranks = LayerRanks::new(2, &latent);
            assert_eq!(serde_json::to_string(&ranks).expect("it is written"), text);
            let again: LayerRanks = serde_json::from_str(text).expect("it is read");
            assert_eq!((again.latent(2), again), (latent, ranks));
        }
    }

    #[test]
    fn an_entry_is_split_or_joint() {
        for text in [
            "{}",
            r#"{"d_latent_k":3}"#,
            r#"{"d_latent_v":3}"#,
            r#"{"d_latent_k":3,"d_latent":3}"#,
            r#"{"d_latent_k":3,"d_latent_v":3,"d_latent":6}"#,
            r#"{"d_latent":6,"rank":6}"#,
        ] {
            assert!(serde_json::from_str::<LayerRanks>(text).is_err(), "{text}");
        }
    }
}
