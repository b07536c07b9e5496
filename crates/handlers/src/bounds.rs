//! Sizes beyond every model's: what is counted of a configuration, by whatever command, fits its number.
//!
//! A handler bounds each field by itself; products of fields, and what a family derives from several, are bounded here, for
//! all families at once.

use std::path::Path;

use mla_core::DecoderConfig;
use mla_core::decoder::{LayerConfig, MlpKind};

use crate::error::Error;

/// A dimension: width, context, rows of an embedding.
const SIZE: u128 = 1 << 31;
/// Width of all heads together.
const HEADS: u128 = 1 << 24;
/// Layers; a table of tensors has some entries for each.
const LAYERS: u128 = 10_000;
/// Experts of all layers: the table has entries for each.
const EXPERTS: u128 = 100_000;
/// Numbers of a K that all layers cache a token. Cross terms have up to four times its square of weights.
const CACHED: u128 = 1 << 28;
/// Weights of the model.
const WEIGHTS: u128 = 1 << 48;

/// Refuses a graph that no machine could hold, before anything is counted or allocated for it.
pub(crate) fn check(path: &Path, config: &DecoderConfig) -> Result<(), Error> {
    let [d_model, vocab_size, positions, heads, kv_heads, d_head, layers] = [
        config.d_model,
        config.vocab_size,
        config.max_positions,
        config.n_heads,
        config.n_kv_heads,
        config.d_head,
        config.n_layers(),
    ]
    .map(|size| size as u128);
    let mlp_of = |layer: &LayerConfig| {
        let n_experts = match layer.mlp.kind {
            MlpKind::Experts { n_experts, .. } => n_experts as u128,
            MlpKind::Plain(_) | MlpKind::Gated(_) => 1,
        };
        (layer.mlp.d_ff as u128, n_experts)
    };
    let d_ff = config.layers.iter().map(|layer| mlp_of(layer).0).max().unwrap_or(0);
    let experts = config.layers.iter().fold(0, |sum: u128, layer| sum.saturating_add(mlp_of(layer).1));
    let each = [
        ("a number of layers", layers, LAYERS),
        ("a model width", d_model, SIZE),
        ("an MLP width", d_ff, SIZE),
        ("a vocabulary size", vocab_size, SIZE),
        ("a context", positions, SIZE),
        ("a number of experts in all layers", experts, EXPERTS),
        ("a width of all query heads", heads.saturating_mul(d_head), HEADS),
        ("a width of all kv heads", kv_heads.saturating_mul(d_head), HEADS),
    ];
    // What comes next is made of these and fits.
    each.into_iter().try_for_each(|bound| within(path, bound))?;
    let attention = 2 * d_model * (heads + kv_heads) * d_head;
    let mlp: u128 =
        config.layers.iter().map(mlp_of).map(|(d_ff, experts)| 3 * d_model * d_ff * experts).sum();
    let weights = layers * attention + mlp + d_model * (2 * vocab_size + positions);
    let cached = layers * kv_heads * d_head;
    within(path, ("a width of all kv heads in all layers", cached, CACHED))?;
    within(path, ("a number of weights", weights, WEIGHTS))
}

fn within(path: &Path, (what, found, most): (&'static str, u128, u128)) -> Result<(), Error> {
    match (1..=most).contains(&found) {
        true => Ok(()),
        false => Err(Error::Sizes { path: path.into(), what, found, most }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_json::ConfigJson;
    use crate::registry::Registry;
    use mla_core::decoder::MlpConfig;
    use serde_json::{Value, json};

    fn llama_405b() -> DecoderConfig {
        let Value::Object(fields) = json!({
            "model_type": "llama",
            "hidden_size": 16_384,
            "intermediate_size": 53_248,
            "max_position_embeddings": 131_072,
            "num_attention_heads": 128,
            "num_key_value_heads": 8,
            "num_hidden_layers": 126,
            "vocab_size": 128_256,
        }) else {
            panic!("an object")
        };
        let json = ConfigJson::from_fields("config.json", fields);
        Registry::builtin().handler(&json).and_then(|llama| llama.config(&json)).expect("a configuration")
    }

    fn refused(config: &DecoderConfig) -> Option<&'static str> {
        match check(Path::new("config.json"), config) {
            Ok(()) => None,
            Err(Error::Sizes { what, .. }) => Some(what),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn the_largest_of_todays_models_is_far_inside() {
        assert_eq!(refused(&llama_405b()), None);
    }

    #[test]
    fn what_is_too_large_is_named_whether_alone_or_as_a_product() {
        let base = llama_405b;
        let (huge, all) = (usize::MAX, "a number of weights");
        let wide = |d_ff| {
            let mlp = |layer: &LayerConfig| MlpConfig { d_ff, ..layer.mlp };
            base().layers.into_iter().map(|layer| LayerConfig { mlp: mlp(&layer), ..layer }).collect()
        };
        for (config, what) in [
            (DecoderConfig { d_model: huge, ..base() }, "a model width"),
            (DecoderConfig { d_model: 0, ..base() }, "a model width"),
            (DecoderConfig { max_positions: huge, ..base() }, "a context"),
            (DecoderConfig { n_heads: huge, d_head: huge, ..base() }, "a width of all query heads"),
            (DecoderConfig { n_kv_heads: huge, ..base() }, "a width of all kv heads"),
            (DecoderConfig { layers: Vec::new(), ..base() }, "a number of layers"),
            (DecoderConfig { d_model: 1 << 30, layers: wide(1 << 30), ..base() }, all),
            (DecoderConfig { d_model: 1 << 30, vocab_size: 1 << 30, ..base() }, all),
            (
                DecoderConfig { n_heads: 1 << 17, n_kv_heads: 1 << 17, d_model: 2, ..base() },
                "a width of all kv heads in all layers",
            ),
        ] {
            assert_eq!(refused(&config), Some(what));
        }
    }
}
