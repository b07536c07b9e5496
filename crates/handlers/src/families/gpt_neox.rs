//! GPT-NeoX and Pythia: LayerNorm with biases, attention and MLP side by side, q, k and v fused head by head, and a quarter of
//! each head rotated.

use mla_core::decoder::{
    Biases, BlockKind, HeadKind, LayerConfig, MlpConfig, MlpKind, NormKind, PositionKind, Scales,
};
use mla_core::{CacheDtype, DecoderConfig, LayerSlot, Part, Slot};

use super::rope::{RopeDefaults, context, rope};
use super::skeleton::{MAX_LAYERS, MAX_WIDTH, activation};
use super::table;
use crate::config_json::ConfigJson;
use crate::error::Error;
use crate::registry::ModelHandler;
use crate::spec::TensorSpec;

/// GPT-NeoX 20B (Black et al. 2022), Pythia and kin.
pub struct GptNeoX;

impl ModelHandler for GptNeoX {
    fn model_types(&self) -> &[&str] {
        &["gpt_neox"]
    }

    fn config(&self, json: &ConfigJson) -> Result<DecoderConfig, Error> {
        let (d_model, n_heads) = (json.size("hidden_size")?, json.size("num_attention_heads")?);
        if !d_model.is_multiple_of(n_heads) || d_model > MAX_WIDTH {
            let expected = format!("a divisor of hidden_size = {d_model}, which is at most {MAX_WIDTH}");
            return Err(json.bad("num_attention_heads", expected, &n_heads.into()));
        }
        let d_head = d_model / n_heads;
        let stated = json.size_or_none("max_position_embeddings")?.unwrap_or(2048);
        let plain = RopeDefaults::of(d_head, 10_000.0, stated);
        // In the older spelling, which most checkpoints have, base and share go by other names.
        let defaults =
            RopeDefaults { theta_field: "rotary_emb_base", partial: Some(("rotary_pct", 0.25)), ..plain };
        let rope = rope(json, defaults)?;
        let mlp = MlpConfig {
            kind: MlpKind::Plain(activation(json, "hidden_act", "gelu")?),
            d_ff: json.size("intermediate_size")?,
        };
        let attention = json.flag_or("attention_bias", true)?;
        Ok(DecoderConfig {
            d_model,
            n_heads,
            n_kv_heads: n_heads,
            d_head,
            vocab_size: json.size("vocab_size")?,
            max_positions: context(&rope, stated),
            norm: NormKind::Layer,
            norm_eps: json.positive_or("layer_norm_eps", 1e-5)?,
            block: match json.flag_or("use_parallel_residual", true)? {
                true => BlockKind::Parallel,
                false => BlockKind::PreNorm,
            },
            position: PositionKind::Rope(vec![rope]),
            biases: Biases { qkv: attention, output: attention, mlp: true },
            scales: Scales::default(),
            head: match json.flag_or("tie_word_embeddings", false)? {
                true => HeadKind::Tied,
                false => HeadKind::Own,
            },
            cache_dtype: CacheDtype::F32,
            layers: vec![
                LayerConfig::plain(d_head, Some(0), mlp);
                json.count("num_hidden_layers", MAX_LAYERS)?
            ],
        })
    }

    fn tensors(&self, config: &DecoderConfig) -> Vec<TensorSpec> {
        let (vocab_size, d) = (config.vocab_size, config.d_model);
        let mut specs = vec![
            TensorSpec::matrix("gpt_neox.embed_in.weight", Slot::TokenEmbedding, vocab_size, d),
            TensorSpec::vector("gpt_neox.final_layer_norm.weight", Slot::FinalNorm(Part::Weight), d),
            TensorSpec::vector("gpt_neox.final_layer_norm.bias", Slot::FinalNorm(Part::Bias), d),
        ];
        if config.head == HeadKind::Own {
            specs.push(TensorSpec::matrix("embed_out.weight", Slot::Head, vocab_size, d));
        }
        specs.extend((0..config.n_layers()).flat_map(|layer| layer_tensors(config, layer)));
        specs
    }

    fn is_buffer(&self, key: &str) -> bool {
        // Causal masks and frequencies that the hub's checkpoints carry, and a tied head written out.
        let buffers = [".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"];
        buffers.iter().any(|end| key.ends_with(end)) || key == "embed_out.weight"
    }
}

fn layer_tensors(config: &DecoderConfig, layer: usize) -> Vec<TensorSpec> {
    let (d, d_head, d_ff) = (config.d_model, config.d_head, config.layers[layer].mlp.d_ff);
    let base = format!("gpt_neox.layers.{layer}");
    let name = |name: &str| format!("{base}.{name}");
    let mut specs = Vec::new();
    let norms: [(&str, table::PartSlot); 2] =
        [("input_layernorm", LayerSlot::InputNorm), ("post_attention_layernorm", LayerSlot::MlpNorm)];
    for (norm, slot) in norms {
        for (half, part) in [("weight", Part::Weight), ("bias", Part::Bias)] {
            let slot = Slot::Layer(layer, slot(part));
            specs.push(TensorSpec::vector(format!("{base}.{norm}.{half}"), slot, d));
        }
    }
    let qkv: [table::PartSlot; 3] = [LayerSlot::Query, LayerSlot::Key, LayerSlot::Value];
    for (place, slot) in qkv.into_iter().enumerate() {
        let own = place * d_head..(place + 1) * d_head;
        let whole =
            table::affine(&name("attention.query_key_value"), layer, slot, [3 * d, d], config.biases.qkv);
        specs.extend(whole.into_iter().map(|spec| spec.outputs_every(own.clone(), 3 * d_head)));
    }
    let biased = config.biases.output;
    specs.extend(table::affine(&name("attention.dense"), layer, LayerSlot::Output, [d, d], biased));
    specs.extend(table::affine(&name("mlp.dense_h_to_4h"), layer, LayerSlot::Up, [d_ff, d], true));
    specs.extend(table::affine(&name("mlp.dense_4h_to_h"), layer, LayerSlot::Down, [d, d_ff], true));
    specs
}
