//! GPT-2: learned positions, LayerNorm, biases everywhere, and q, k, v fused in one `Conv1D` of shape `[in, out]`.

use mla_core::decoder::{
    Biases, BlockKind, HeadKind, LayerConfig, MlpConfig, MlpKind, NormKind, PositionKind, Scales,
};
use mla_core::{CacheDtype, DecoderConfig, LayerSlot, Part, Slot};

use super::skeleton::{MAX_LAYERS, MAX_WIDTH, activation};
use super::table::PartSlot;
use crate::config_json::ConfigJson;
use crate::error::Error;
use crate::registry::ModelHandler;
use crate::spec::TensorSpec;

/// GPT-2 (Radford et al. 2019), small to XL.
pub struct Gpt2;

impl ModelHandler for Gpt2 {
    fn model_types(&self) -> &[&str] {
        &["gpt2"]
    }

    fn config(&self, json: &ConfigJson) -> Result<DecoderConfig, Error> {
        let (d_model, n_heads) = (json.size("n_embd")?, json.size("n_head")?);
        if !d_model.is_multiple_of(n_heads) {
            return Err(json.bad("n_head", format!("a divisor of n_embd = {d_model}"), &n_heads.into()));
        }
        if d_model > MAX_WIDTH {
            return Err(json.bad("n_embd", format!("at most {MAX_WIDTH}"), &d_model.into()));
        }
        for (field, expected) in [("scale_attn_by_inverse_layer_idx", false), ("scale_attn_weights", true)] {
            if json.flag_or(field, expected)? != expected {
                return Err(json.bad(field, expected.to_string(), &(!expected).into()));
            }
        }
        let mlp = MlpConfig {
            kind: MlpKind::Plain(activation(json, "activation_function", "gelu_new")?),
            d_ff: json.size_or_none("n_inner")?.unwrap_or(4 * d_model),
        };
        let plain = LayerConfig::plain(d_model / n_heads, None, mlp);
        Ok(DecoderConfig {
            d_model,
            n_heads,
            n_kv_heads: n_heads,
            d_head: d_model / n_heads,
            vocab_size: json.size("vocab_size")?,
            max_positions: json.size_or_none("n_positions")?.unwrap_or(1024),
            norm: NormKind::Layer,
            norm_eps: json.positive_or("layer_norm_epsilon", 1e-5)?,
            block: BlockKind::PreNorm,
            position: PositionKind::Learned,
            scales: Scales::default(),
            biases: Biases { qkv: true, output: true, mlp: true },
            head: match json.flag_or("tie_word_embeddings", true)? {
                true => HeadKind::Tied,
                false => HeadKind::Own,
            },
            cache_dtype: CacheDtype::F32,
            layers: vec![plain; json.count("n_layer", MAX_LAYERS)?],
        })
    }

    fn tensors(&self, config: &DecoderConfig) -> Vec<TensorSpec> {
        let d = config.d_model;
        let mut specs = vec![
            TensorSpec::matrix("wte.weight", Slot::TokenEmbedding, config.vocab_size, d),
            TensorSpec::matrix("wpe.weight", Slot::PositionEmbedding, config.max_positions, d),
            TensorSpec::vector("ln_f.weight", Slot::FinalNorm(Part::Weight), d),
            TensorSpec::vector("ln_f.bias", Slot::FinalNorm(Part::Bias), d),
        ];
        if config.head == HeadKind::Own {
            specs.push(TensorSpec::matrix("lm_head.weight", Slot::Head, config.vocab_size, d));
        }
        for layer in 0..config.n_layers() {
            specs.extend(layer_tensors(config, layer));
        }
        specs
    }

    fn prefixes(&self) -> &[&str] {
        &["", "transformer."]
    }

    fn is_buffer(&self, key: &str) -> bool {
        // Causal masks that the hub's checkpoints carry, and a tied head written out.
        key.ends_with(".attn.bias") || key.ends_with(".attn.masked_bias") || key == "lm_head.weight"
    }
}

fn layer_tensors(config: &DecoderConfig, layer: usize) -> Vec<TensorSpec> {
    let (d, d_ff) = (config.d_model, config.layers[layer].mlp.d_ff);
    let mut specs = Vec::new();
    let norms: [(&str, PartSlot); 2] = [("ln_1", LayerSlot::InputNorm), ("ln_2", LayerSlot::MlpNorm)];
    for (name, slot) in norms {
        for (part, suffix) in [(Part::Weight, "weight"), (Part::Bias, "bias")] {
            specs.push(TensorSpec::vector(
                format!("h.{layer}.{name}.{suffix}"),
                Slot::Layer(layer, slot(part)),
                d,
            ));
        }
    }
    // `Conv1D` multiplies from the right, and `c_attn` holds q, k and v side by side.
    let matrices: [(&str, &[PartSlot], usize, usize); 4] = [
        ("attn.c_attn", &[LayerSlot::Query, LayerSlot::Key, LayerSlot::Value], d, d),
        ("attn.c_proj", &[LayerSlot::Output], d, d),
        ("mlp.c_fc", &[LayerSlot::Up], d_ff, d),
        ("mlp.c_proj", &[LayerSlot::Down], d, d_ff),
    ];
    for (name, slots, d_out, d_in) in matrices {
        let key = format!("h.{layer}.{name}");
        let fused = slots.len() * d_out;
        for (place, slot) in slots.iter().enumerate() {
            let weight = Slot::Layer(layer, slot(Part::Weight));
            let bias = Slot::Layer(layer, slot(Part::Bias));
            let mut weight = TensorSpec::matrix(format!("{key}.weight"), weight, fused, d_in).transposed();
            let mut bias = TensorSpec::vector(format!("{key}.bias"), bias, fused);
            if slots.len() > 1 {
                let own = place * d_out..(place + 1) * d_out;
                (weight, bias) = (weight.outputs(own.clone()), bias.outputs(own));
            }
            specs.extend([weight, bias]);
        }
    }
    specs
}
