//! The tensors of a converted folder: latent ones in place of `W_k` and `W_v`.

use mla_core::decoder::{LatentConfig, LatentPart, Serves};
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
    /// `….mla.w_q`; fused biases stay. Where keys are normed, `W_k` and its norm stay. A key that all heads share is
    /// `w_down_shared`, `w_up_shared`, and where keys have a bias `b_down_shared`; then `b_k` is what is left of the keys' own.
    pub fn tensors(&self, donor: &[TensorSpec], config: &DecoderConfig) -> Vec<TensorSpec> {
        let config = self.apply(config.donor());
        let mut specs = Vec::with_capacity(donor.len());
        for spec in donor {
            let Slot::Layer(layer, slot) = spec.slot else {
                specs.push(spec.clone());
                continue;
            };
            let latent = config.latent(layer);
            let fused = spec.outputs.is_some();
            let replaced = latent.and_then(|latent| match slot {
                LayerSlot::Key(Part::Weight) => Some(self.in_place_of_key(&config, layer, latent, fused)),
                LayerSlot::Value(Part::Weight) => Some(self.in_place_of_value(&config, layer, latent)),
                LayerSlot::Key(Part::Bias) => biases(&config, layer, latent),
                LayerSlot::Query(Part::Weight) if fused => {
                    Some(vec![("w_q", slot, [config.n_heads * config.d_head, config.d_model])])
                }
                _ => None,
            });
            // Behind a norm a key is made as the donor makes it, and then compressed.
            let kept =
                slot == LayerSlot::Key(Part::Weight) && config.layers[layer].qk_norm.is_some() && !fused;
            if replaced.is_none() || kept {
                specs.push(spec.clone());
            }
            let replaced = replaced.unwrap_or_default();
            let module = module_of(&spec.key);
            specs.extend(replaced.into_iter().map(|(name, slot, [d_out, d_in])| {
                let (key, slot) = (format!("{module}.mla.{name}"), Slot::Layer(layer, slot));
                match d_in {
                    VECTOR => TensorSpec::vector(key, slot, d_out),
                    _ => TensorSpec::matrix(key, slot, d_out, d_in),
                }
            }));
        }
        specs
    }

    fn in_place_of_key(
        &self,
        config: &DecoderConfig,
        layer: usize,
        latent: &LatentConfig,
        fused: bool,
    ) -> Vec<Named> {
        let first = latent.width.parts().into_iter().find(|part| part.serves != Serves::Values);
        let mut named: Vec<_> =
            first.into_iter().flat_map(|part| factors(config, layer, latent, part)).collect();
        if let Some(shared) = latent.shared_key() {
            let (d_rope, read) = (shared.d_rope(), LatentPart { serves: Serves::Keys, width: 0 });
            let read = config.read_by(layer, read).len();
            named.push(("w_down_shared", LayerSlot::DownShared(Part::Weight), [d_rope, read]));
            named.push(("w_up_shared", LayerSlot::UpShared, [config.d_kv(), d_rope]));
        }
        if let Some([columns, _]) = config.cross_columns(layer) {
            named.push(("w_cross_k", LayerSlot::CrossKey, [config.d_kv(), columns]));
        }
        let normed = config.layers[layer].qk_norm.is_some();
        if if normed { fused } else { self.store_original_weights } {
            named.push(("w_k", LayerSlot::Key(Part::Weight), [config.d_kv(), config.d_model]));
        }
        named
    }

    fn in_place_of_value(&self, config: &DecoderConfig, layer: usize, latent: &LatentConfig) -> Vec<Named> {
        let second = latent.width.parts().into_iter().find(|part| part.serves == Serves::Values);
        let mut named: Vec<_> =
            second.into_iter().flat_map(|part| factors(config, layer, latent, part)).collect();
        if let Some([_, columns]) = config.cross_columns(layer) {
            named.push(("w_cross_v", LayerSlot::CrossValue, [config.d_kv(), columns]));
        }
        if self.store_original_weights {
            named.push(("w_v", LayerSlot::Value(Part::Weight), [config.d_kv(), config.d_model]));
        }
        named
    }
}

/// The factors of one part of a layer's latent, and the basis for quantising where it is stored.
fn factors(config: &DecoderConfig, layer: usize, latent: &LatentConfig, part: LatentPart) -> Vec<Named> {
    let [down, up, balance] = match part.serves {
        Serves::Keys => ["w_down_k", "w_up_k", "w_balance_k"],
        Serves::Values => ["w_down_v", "w_up_v", "w_balance_v"],
        Serves::Both => ["w_down", "w_up", "w_balance"],
    };
    let mut named = vec![(down, part.down(), [part.width, config.read_by(layer, part).len()])];
    named.extend((latent.up_of == layer).then_some((up, part.up(), [part.d_up(config.d_kv()), part.width])));
    named.extend(latent.balanced.then_some((balance, part.balance(), [part.width; 2])));
    named
}

/// What stands in the place of the bias of keys; `None` where it stays.
fn biases(config: &DecoderConfig, layer: usize, latent: &LatentConfig) -> Option<Vec<Named>> {
    // A bias before a norm is in the normed key already.
    let shared = latent.shared_key().filter(|_| config.layers[layer].qk_norm.is_none())?;
    Some(vec![
        ("b_down_shared", LayerSlot::DownShared(Part::Bias), [shared.d_rope(), VECTOR]),
        ("b_k", LayerSlot::Key(Part::Bias), [config.d_kv(), VECTOR]),
    ])
}

/// A tensor's name in the attention module, what it is, and `[d_out, d_in]`; of a vector, `[len, VECTOR]`.
type Named = (&'static str, LayerSlot, [usize; 2]);

/// No matrix has inputs of that number.
const VECTOR: usize = 0;

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
