//! What a converted folder adds to its donor's: the `mla` section of `config.json`.
//!
//! [`LayerRanks`] is one entry of it; `mla/tensors.rs` names the latent tensors it implies.

pub(crate) mod identity;
mod ranks;
mod tensors;

pub use ranks::LayerRanks;

use mla_core::decoder::{AttentionKind, LatentConfig, LatentWidth, PositionKind};
use mla_core::positions::RopeConfig;
use mla_core::{CacheDtype, DecoderConfig};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config_json::ConfigJson;
use crate::error::Error;

/// The `mla` section of `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MlaSection {
    /// Layout of this section; readers refuse one they do not know.
    pub version: u32,
    /// How the factors were found: `separate`, `cascade`, …
    pub method: String,
    /// The metric they minimise: `mse`, …
    pub objective: String,
    /// Earlier layers that a layer reads (cascade). A record: the entries of `layers` say what is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// Layers of a group that read each other only (cascade). A record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<usize>,
    /// Layers that share one `W_up` (xKV). A record: the entries of `layers` say whose is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_size: Option<usize>,
    /// The rotary embedding that shared keys turn by, where it is not one of the donor's: it follows those in their list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_rope: Option<SharedRope>,
    /// Rotary dimensions of K and V that were kept as they are (decoupled RoPE). A record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d_rope: Option<usize>,
    /// What the cache keeps its numbers as unless the user says otherwise: `int4`, …; without it f32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_dtype: Option<String>,
    /// Numbers a token and layer that the donor cached, where the graph has other K and V heads than it had (an import).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub donor_numbers: Option<usize>,
    /// One entry a layer; `null` for a layer that keeps its original attention.
    pub layers: Vec<Option<LayerRanks>>,
    /// Whether the original `W_k` and `W_v` are stored too.
    #[serde(default)]
    pub store_original_weights: bool,
}

/// The rotary embedding that only shared keys turn by.
fn shared_rope(config: &DecoderConfig) -> Option<SharedRope> {
    let mut turning = (0..config.n_layers()).filter_map(|layer| config.latent(layer)?.shared_key());
    let own = |rope: usize| config.layers.iter().any(|layer| layer.rope == Some(rope));
    let added = turning.find(|shared| !own(shared.rope))?;
    let rope = config.ropes().get(added.rope)?;
    Some(SharedRope { theta: rope.theta, d_rotary: rope.d_rotary })
}

/// A rotary embedding without scaling.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedRope {
    /// Base of the geometric series of frequencies.
    pub theta: f64,
    /// Dimensions that it turns: an even number.
    pub d_rotary: usize,
}

impl MlaSection {
    /// The layout this version writes.
    pub const VERSION: u32 = 1;

    /// The section that describes a converted graph, without any record of how it was found but the names.
    pub fn from_config(
        method: impl Into<String>,
        objective: impl Into<String>,
        config: &DecoderConfig,
        store_original_weights: bool,
    ) -> Self {
        let ranks = |layer| config.latent(layer).map(|latent| LayerRanks::new(layer, latent));
        Self {
            version: Self::VERSION,
            method: method.into(),
            objective: objective.into(),
            window: None,
            group: None,
            group_size: None,
            shared_rope: shared_rope(config),
            d_rope: None,
            donor_numbers: (0..config.n_layers()).find_map(|layer| config.latent(layer)?.replaces),
            cache_dtype: (config.cache_dtype != CacheDtype::F32)
                .then(|| config.cache_dtype.name().to_owned()),
            layers: (0..config.n_layers()).map(ranks).collect(),
            store_original_weights,
        }
    }

    /// Reads the section, if the configuration has one.
    ///
    /// # Errors
    /// When it is malformed, of a later version, or does not fit the graph.
    pub fn read(json: &ConfigJson, config: &DecoderConfig) -> Result<Option<Self>, Error> {
        let Some(value) = json.get("mla") else { return Ok(None) };
        let bad = |expected: String| json.bad("mla", expected, value);
        // Read first and alone: another version may have other fields.
        let version = value.get("version").and_then(Value::as_u64);
        if version.is_some_and(|version| version != u64::from(Self::VERSION)) {
            return Err(bad(format!("version {}, which this shrink reads", Self::VERSION)));
        }
        let section = Self::deserialize(value).map_err(|e| bad(format!("a valid section ({e})")))?;
        if section.layers.len() != config.n_layers() {
            return Err(bad(format!("{} layers, as the model has", config.n_layers())));
        }
        let d_kv = config.d_kv();
        for (field, allowed, expected) in [
            ("group", section.group != Some(0), "at least 1".to_owned()),
            ("group_size", section.group_size != Some(0), "at least 1".to_owned()),
            ("d_rope", section.d_rope.is_none_or(|d| d <= d_kv), format!("at most d_kv = {d_kv}")),
            (
                "donor_numbers",
                section.donor_numbers.is_none_or(|n| (1..=2 * d_kv).contains(&n)),
                format!("from 1 to 2 · d_kv = {}", 2 * d_kv),
            ),
        ] {
            if !allowed {
                return Err(json.bad(&format!("mla.{field}"), expected, &value[field]));
            }
        }
        if section.cache_dtype.as_deref().is_some_and(|name| CacheDtype::from_name(name).is_none()) {
            let expected = CacheDtype::ALL.map(CacheDtype::name).join(", ");
            return Err(json.bad("mla.cache_dtype", expected, &value["cache_dtype"]));
        }
        if let Some(SharedRope { theta, d_rotary }) = section.shared_rope
            && !(theta.is_finite() && theta > 0.0 && (2..=d_kv).contains(&d_rotary) && d_rotary % 2 == 0)
        {
            let expected = format!("a positive theta, and an even d_rotary from 2 to d_kv = {d_kv}");
            return Err(json.bad("mla.shared_rope", expected, &value["shared_rope"]));
        }
        for layer in 0..config.n_layers() {
            let fault = section.fault(layer, d_kv).or_else(|| section.shared_fault(layer, config));
            if let Some(expected) = fault {
                return Err(json.bad(&format!("mla.layers[{layer}]"), expected, &value["layers"][layer]));
            }
        }
        Ok(Some(section))
    }

    /// What a layer's entry should be and is not.
    fn fault(&self, layer: usize, d_kv: usize) -> Option<String> {
        let ranks = self.layers[layer].as_ref()?;
        let (most, fits) = match ranks.width {
            LatentWidth::Split { d_latent_k, d_latent_v } => {
                (d_kv, [d_latent_k, d_latent_v].iter().all(|rank| (1..=d_kv).contains(rank)))
            }
            LatentWidth::Joint { d_latent } => (2 * d_kv, (1..=2 * d_kv).contains(&d_latent)),
        };
        if !fits {
            return Some(match ranks.width {
                LatentWidth::Split { .. } => format!("latent widths from 1 to d_kv = {most}"),
                LatentWidth::Joint { .. } => format!("a latent width from 1 to 2 · d_kv = {most}"),
            });
        }
        if ranks.reads_from.is_some_and(|first| first > layer) {
            return Some(format!("reads_from of at most {layer}: a layer reads earlier ones"));
        }
        if ranks.balanced && ranks.up_of.is_some_and(|leader| leader != layer) {
            return Some("balanced with a W_up of its own, or not balanced".into());
        }
        let up_of = ranks.up_of?;
        if up_of > layer {
            return Some(format!("up_of of at most {layer}: a group's W_up is that of its first layer"));
        }
        match &self.layers[up_of] {
            Some(leader) if leader.up_of.is_some_and(|other| other != up_of) => {
                Some(format!("up_of a layer with a W_up of its own, which layer {up_of} has not"))
            }
            Some(leader) if leader.width == ranks.width => None,
            Some(_) => Some(format!("the latent widths of layer {up_of}, whose W_up it uses")),
            None => Some(format!("up_of a layer with latents, which layer {up_of} has not")),
        }
    }

    /// What a layer's shared key should be and is not.
    fn shared_fault(&self, layer: usize, donor: &DecoderConfig) -> Option<String> {
        let ranks = self.layers[layer].as_ref()?;
        let shared = ranks.shared.as_ref()?;
        if !matches!(ranks.width, LatentWidth::Joint { .. })
            || ranks.reads_from.is_some()
            || ranks.up_of.is_some()
        {
            return Some("a shared key beside one latent of its own for keys and values".into());
        }
        let more = self.shared_rope.map(|rope| rope.d_rotary);
        let mut turned = donor.ropes().iter().map(|rope| rope.d_rotary).chain(more);
        let Some(d_rotary) = turned.nth(shared.rope) else {
            return Some("a shared key of one of the model's rotary embeddings".into());
        };
        let (most, half) = (donor.d_kv() / 2, d_rotary / 2);
        if shared.pairs.is_empty() || shared.pairs.len() > most {
            return Some(format!("a shared key of 1 to {most} pairs"));
        }
        let beyond = shared.pairs.iter().any(|&pair| pair >= half);
        beyond.then(|| format!("pairs below {half}, the rotary embedding's"))
    }

    /// The donor's graph with this section's attention.
    pub fn apply(&self, mut config: DecoderConfig) -> DecoderConfig {
        if let (Some(SharedRope { theta, d_rotary }), PositionKind::Rope(ropes)) =
            (self.shared_rope, &mut config.position)
        {
            ropes.push(RopeConfig::plain(theta, d_rotary));
        }
        for (layer, (place, ranks)) in config.layers.iter_mut().zip(&self.layers).enumerate() {
            if let Some(ranks) = ranks {
                let replaces = self.donor_numbers;
                place.attention = AttentionKind::Latent(LatentConfig { replaces, ..ranks.latent(layer) });
            }
        }
        let dtype = self.cache_dtype.as_deref().and_then(CacheDtype::from_name);
        config.cache_dtype = dtype.unwrap_or_default();
        config
    }
}
