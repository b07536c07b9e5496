//! The tensors of a converted folder: latent ones in place of `W_k` and `W_v`.

use mla_core::decoder::LatentWidth;
use mla_core::{DecoderConfig, LayerSlot, Part, Slot};

use super::MlaSection;
use crate::spec::TensorSpec;

impl MlaSection {
    /// The tensors of the converted folder, from those of the donor.
    ///
    /// A latent layer's `W_k` and `W_v` give way to `….mla.w_down_k`, `w_up_k`, `w_down_v`, `w_up_v`, or to `w_down`,
    /// `w_up` where it has one latent for both; cross terms are `w_cross_k`, `w_cross_v`; the bases for quantising are
    /// `w_balance_k`, `w_balance_v` or `w_balance`; all are `[d_out, d_in]`. A layer
    /// that uses another's `W_up` stores none. Where the originals were part of a fused tensor, `W_q` moves to
    /// `….mla.w_q`; fused biases stay.
    pub fn tensors(&self, donor: &[TensorSpec], config: &DecoderConfig) -> Vec<TensorSpec> {
        let config = self.apply(config.donor());
        let mut specs = Vec::with_capacity(donor.len());
        for spec in donor {
            let Slot::Layer(layer, slot) = spec.slot else {
                specs.push(spec.clone());
                continue;
            };
            let replaced = self.layers[layer].is_some().then(|| match slot {
                LayerSlot::Key(Part::Weight) => self.in_place_of_key(&config, layer),
                LayerSlot::Value(Part::Weight) => self.in_place_of_value(&config, layer),
                LayerSlot::Query(Part::Weight) if spec.outputs.is_some() => {
                    vec![("w_q", slot, [config.n_heads * config.d_head, config.d_model])]
                }
                _ => Vec::new(),
            });
            let replaced = replaced.unwrap_or_default();
            if replaced.is_empty() {
                specs.push(spec.clone());
            }
            let module = module_of(&spec.key);
            specs.extend(replaced.into_iter().map(|(name, slot, [d_out, d_in])| {
                TensorSpec::matrix(format!("{module}.mla.{name}"), Slot::Layer(layer, slot), d_out, d_in)
            }));
        }
        specs
    }

    fn in_place_of_key(&self, config: &DecoderConfig, layer: usize) -> Vec<Named> {
        let (d_model, d_kv) = (config.d_model, config.d_kv());
        let mut named = Vec::new();
        let Some(latent) = config.latent(layer) else { return named };
        let own_up = latent.up_of == layer;
        match latent.width {
            LatentWidth::Split { d_latent_k, .. } => {
                named.push(("w_down_k", LayerSlot::DownKey, [d_latent_k, d_model]));
                named.extend(own_up.then_some(("w_up_k", LayerSlot::UpKey, [d_kv, d_latent_k])));
                let balance = ("w_balance_k", LayerSlot::BalanceKey, [d_latent_k; 2]);
                named.extend(latent.balanced.then_some(balance));
            }
            LatentWidth::Joint { d_latent } => {
                named.push(("w_down", LayerSlot::DownJoint, [d_latent, d_model]));
                named.extend(own_up.then_some(("w_up", LayerSlot::UpJoint, [2 * d_kv, d_latent])));
                let balance = ("w_balance", LayerSlot::BalanceJoint, [d_latent; 2]);
                named.extend(latent.balanced.then_some(balance));
            }
        }
        if let Some([columns, _]) = config.cross_columns(layer) {
            named.push(("w_cross_k", LayerSlot::CrossKey, [d_kv, columns]));
        }
        if self.store_original_weights {
            named.push(("w_k", LayerSlot::Key(Part::Weight), [d_kv, d_model]));
        }
        named
    }

    fn in_place_of_value(&self, config: &DecoderConfig, layer: usize) -> Vec<Named> {
        let (d_model, d_kv) = (config.d_model, config.d_kv());
        let mut named = Vec::new();
        let Some(latent) = config.latent(layer) else { return named };
        if let LatentWidth::Split { d_latent_v, .. } = latent.width {
            named.push(("w_down_v", LayerSlot::DownValue, [d_latent_v, d_model]));
            let own_up = latent.up_of == layer;
            named.extend(own_up.then_some(("w_up_v", LayerSlot::UpValue, [d_kv, d_latent_v])));
            let balance = ("w_balance_v", LayerSlot::BalanceValue, [d_latent_v; 2]);
            named.extend(latent.balanced.then_some(balance));
        }
        if let Some([_, columns]) = config.cross_columns(layer) {
            named.push(("w_cross_v", LayerSlot::CrossValue, [d_kv, columns]));
        }
        if self.store_original_weights {
            named.push(("w_v", LayerSlot::Value(Part::Weight), [d_kv, d_model]));
        }
        named
    }
}

/// A tensor's name in the attention module, what it is, and `[d_out, d_in]`.
type Named = (&'static str, LayerSlot, [usize; 2]);

/// The attention module of a projection: `model.layers.3.self_attn` of `model.layers.3.self_attn.k_proj.weight`.
fn module_of(key: &str) -> &str {
    let projection = key.rsplit_once('.').map_or(key, |(projection, _)| projection);
    projection.rsplit_once('.').map_or(projection, |(module, _)| module)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_projections_module_is_what_stands_before_its_name() {
        assert_eq!(module_of("model.layers.3.self_attn.k_proj.weight"), "model.layers.3.self_attn");
        assert_eq!(module_of("h.0.attn.c_attn.weight"), "h.0.attn");
        assert_eq!(module_of("weight"), "weight");
    }
}
