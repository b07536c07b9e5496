//! Where tensors lie in a LLaMA-like checkpoint: the names that nearly all families share.

use mla_core::decoder::{BlockKind, HeadKind, MlpKind, QkNorm};
use mla_core::{DecoderConfig, LayerSlot, Part, Slot};

use crate::spec::TensorSpec;

/// Names the weight and the bias of one affine map or norm.
pub(super) type PartSlot = fn(Part) -> LayerSlot;

/// Every tensor of a checkpoint whose layers have no experts.
pub(super) fn tensors(config: &DecoderConfig) -> Vec<TensorSpec> {
    with_layers(config, |layer| [norms(config, layer), attention(config, layer), mlp(config, layer)].concat())
}

/// Embedding, final norm and head, and what `of_layer` has for each layer.
pub(super) fn with_layers(
    config: &DecoderConfig,
    of_layer: impl Fn(usize) -> Vec<TensorSpec>,
) -> Vec<TensorSpec> {
    let d_model = config.d_model;
    let mut specs = vec![
        TensorSpec::matrix("model.embed_tokens.weight", Slot::TokenEmbedding, config.vocab_size, d_model),
        TensorSpec::vector("model.norm.weight", Slot::FinalNorm(Part::Weight), d_model),
    ];
    if config.head == HeadKind::Own {
        specs.push(TensorSpec::matrix("lm_head.weight", Slot::Head, config.vocab_size, d_model));
    }
    specs.extend((0..config.n_layers()).flat_map(of_layer));
    specs
}

/// The norms around attention and MLP.
pub(super) fn norms(config: &DecoderConfig, layer: usize) -> Vec<TensorSpec> {
    let named: &[(&str, PartSlot)] = match config.block {
        BlockKind::PreNorm | BlockKind::Parallel => {
            &[("input_layernorm", LayerSlot::InputNorm), ("post_attention_layernorm", LayerSlot::MlpNorm)]
        }
        BlockKind::PostNorm => &[
            ("post_attention_layernorm", LayerSlot::AttendedNorm),
            ("post_feedforward_layernorm", LayerSlot::MlpOutNorm),
        ],
        BlockKind::Sandwich => &[
            ("input_layernorm", LayerSlot::InputNorm),
            ("post_attention_layernorm", LayerSlot::AttendedNorm),
            ("pre_feedforward_layernorm", LayerSlot::MlpNorm),
            ("post_feedforward_layernorm", LayerSlot::MlpOutNorm),
        ],
    };
    let spec = |&(name, slot): &(&str, PartSlot)| {
        let slot = Slot::Layer(layer, slot(Part::Weight));
        TensorSpec::vector(format!("model.layers.{layer}.{name}.weight"), slot, config.d_model)
    };
    named.iter().map(spec).collect()
}

/// Query, key, value and output projections, the norms of queries and keys, and sinks.
pub(super) fn attention(config: &DecoderConfig, layer: usize) -> Vec<TensorSpec> {
    let (d_model, d_q, d_kv) = (config.d_model, config.n_heads * config.d_head, config.d_kv());
    let base = format!("model.layers.{layer}.self_attn");
    let projections: [(&str, PartSlot, usize, usize, bool); 4] = [
        ("q_proj", LayerSlot::Query, d_q, d_model, config.biases.qkv),
        ("k_proj", LayerSlot::Key, d_kv, d_model, config.biases.qkv),
        ("v_proj", LayerSlot::Value, d_kv, d_model, config.biases.qkv),
        ("o_proj", LayerSlot::Output, d_model, d_q, config.biases.output),
    ];
    let mut specs = Vec::new();
    for (name, slot, d_out, d_in, biased) in projections {
        specs.extend(affine(&format!("{base}.{name}"), layer, slot, [d_out, d_in], biased));
    }
    let widths = match config.layers[layer].qk_norm {
        None => None,
        Some(QkNorm::Head) => Some([config.d_head; 2]),
        Some(QkNorm::Whole) => Some([d_q, d_kv]),
    };
    if let Some([queries, keys]) = widths {
        let norm = |name: &str, slot, width| {
            TensorSpec::vector(format!("{base}.{name}.weight"), Slot::Layer(layer, slot), width)
        };
        specs.push(norm("q_norm", LayerSlot::QueryNorm, queries));
        specs.push(norm("k_norm", LayerSlot::KeyNorm, keys));
    }
    if config.layers[layer].scores.sinks {
        let slot = Slot::Layer(layer, LayerSlot::Sinks);
        specs.push(TensorSpec::vector(format!("{base}.sinks"), slot, config.n_heads));
    }
    specs
}

/// A gated MLP; nothing of a layer that has experts.
pub(super) fn mlp(config: &DecoderConfig, layer: usize) -> Vec<TensorSpec> {
    let MlpKind::Gated(_) = config.layers[layer].mlp.kind else { return Vec::new() };
    let (d_model, d_ff) = (config.d_model, config.layers[layer].mlp.d_ff);
    let projections: [(&str, PartSlot, [usize; 2]); 3] = [
        ("gate_proj", LayerSlot::Gate, [d_ff, d_model]),
        ("up_proj", LayerSlot::Up, [d_ff, d_model]),
        ("down_proj", LayerSlot::Down, [d_model, d_ff]),
    ];
    let base = format!("model.layers.{layer}.mlp");
    let specs =
        |(name, slot, shape)| affine(&format!("{base}.{name}"), layer, slot, shape, config.biases.mlp);
    projections.into_iter().flat_map(specs).collect()
}

/// A router and gated experts, a tensor each; nothing of a layer that has none.
///
/// `names` are those of an expert's gate, up and down projections.
pub(super) fn experts(
    config: &DecoderConfig,
    layer: usize,
    module: &str,
    names: [&str; 3],
) -> Vec<TensorSpec> {
    let MlpKind::Experts { n_experts, .. } = config.layers[layer].mlp.kind else { return Vec::new() };
    let (d_model, d_ff) = (config.d_model, config.layers[layer].mlp.d_ff);
    let base = format!("model.layers.{layer}.{module}");
    let matrix = |name: String, slot, d_out, d_in| {
        TensorSpec::matrix(format!("{base}.{name}.weight"), Slot::Layer(layer, slot), d_out, d_in)
    };
    let mut specs = vec![matrix("gate".into(), LayerSlot::Router(Part::Weight), n_experts, d_model)];
    let [gate, up, down] = names;
    for e in 0..n_experts {
        let named = |name: &str| format!("experts.{e}.{name}");
        specs.push(matrix(named(gate), LayerSlot::ExpertGate(e, Part::Weight), d_ff, d_model));
        specs.push(matrix(named(down), LayerSlot::ExpertDown(e, Part::Weight), d_model, d_ff));
        specs.push(matrix(named(up), LayerSlot::ExpertUp(e, Part::Weight), d_ff, d_model));
    }
    specs
}

/// `name.weight` and, where there is one, `name.bias`.
pub(super) fn affine(
    name: &str,
    layer: usize,
    slot: PartSlot,
    [d_out, d_in]: [usize; 2],
    biased: bool,
) -> Vec<TensorSpec> {
    let weight = Slot::Layer(layer, slot(Part::Weight));
    let mut specs = vec![TensorSpec::matrix(format!("{name}.weight"), weight, d_out, d_in)];
    if biased {
        specs.push(TensorSpec::vector(format!("{name}.bias"), Slot::Layer(layer, slot(Part::Bias)), d_out));
    }
    specs
}

/// Several maps fused in one: `name.weight` and, where there is one, `name.bias`, the outputs of each in turn.
pub(super) fn fused(
    name: &str,
    layer: usize,
    parts: &[(PartSlot, usize)],
    d_in: usize,
    biased: bool,
) -> Vec<TensorSpec> {
    let whole: usize = parts.iter().map(|(_, d_out)| d_out).sum();
    let mut start = 0;
    let mut specs = Vec::new();
    for &(slot, d_out) in parts {
        let place = start..start + d_out;
        specs.extend(
            affine(name, layer, slot, [whole, d_in], biased)
                .into_iter()
                .map(|spec| spec.outputs(place.clone())),
        );
        start = place.end;
    }
    specs
}

/// Frequencies that old checkpoints carry, and a tied head written out: neither is needed.
pub(super) fn is_buffer(key: &str) -> bool {
    key.ends_with("rotary_emb.inv_freq") || key == "lm_head.weight"
}
