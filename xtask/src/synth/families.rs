//! Configuration and tensors of the families, by the names that transformers gives them.

use serde_json::{Value, json};

use super::{Fill, Model, Spec};

pub fn qwen2_config(model: &Model) -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": model.d_model,
        "intermediate_size": model.d_mlp,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "hidden_act": "silu",
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.max_positions,
        "rope_theta": 1_000_000.0,
        "rms_norm_eps": 1e-6,
        "use_sliding_window": false,
        "tie_word_embeddings": false,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": "bfloat16",
    })
}

pub fn qwen2_tensors(model: &Model) -> Vec<Spec> {
    let noise = |name: String, shape: &[usize]| Spec { name, shape: shape.to_vec(), fill: Fill::Noise };
    let ones = |name: String| Spec { name, shape: vec![model.d_model], fill: Fill::Ones };
    let (d_q, d_kv) = (model.n_heads * model.d_head, model.n_kv_heads * model.d_head);
    let mut tensors = vec![noise("model.embed_tokens.weight".into(), &[model.vocab_size, model.d_model])];
    for layer in 0..model.n_layers {
        let of = |part: &str| format!("model.layers.{layer}.{part}");
        tensors.push(ones(of("input_layernorm.weight")));
        for (part, rows) in [("q_proj", d_q), ("k_proj", d_kv), ("v_proj", d_kv)] {
            tensors.push(noise(of(&format!("self_attn.{part}.weight")), &[rows, model.d_model]));
            tensors.push(noise(of(&format!("self_attn.{part}.bias")), &[rows]));
        }
        tensors.push(noise(of("self_attn.o_proj.weight"), &[model.d_model, d_q]));
        tensors.push(ones(of("post_attention_layernorm.weight")));
        for part in ["gate_proj", "up_proj"] {
            tensors.push(noise(of(&format!("mlp.{part}.weight")), &[model.d_mlp, model.d_model]));
        }
        tensors.push(noise(of("mlp.down_proj.weight"), &[model.d_model, model.d_mlp]));
    }
    tensors.push(ones("model.norm.weight".into()));
    tensors.push(noise("lm_head.weight".into(), &[model.vocab_size, model.d_model]));
    tensors
}

pub fn gpt2_config(model: &Model) -> Value {
    json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": model.d_model,
        "n_inner": model.d_mlp,
        "n_layer": model.n_layers,
        "n_head": model.n_heads,
        "n_positions": model.max_positions,
        "vocab_size": model.vocab_size,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": "bfloat16",
    })
}

/// Its matrices lie as `[d_in, d_out]`.
pub fn gpt2_tensors(model: &Model) -> Vec<Spec> {
    let d_model = model.d_model;
    let noise = |name: String, shape: &[usize]| Spec { name, shape: shape.to_vec(), fill: Fill::Noise };
    let norm = |name: String| {
        let gain = Spec { name: format!("{name}.weight"), shape: vec![d_model], fill: Fill::Ones };
        [gain, noise(format!("{name}.bias"), &[d_model])]
    };
    let mut tensors = vec![
        noise("wte.weight".into(), &[model.vocab_size, d_model]),
        noise("wpe.weight".into(), &[model.max_positions, d_model]),
    ];
    for layer in 0..model.n_layers {
        let of = |part: &str| format!("h.{layer}.{part}");
        tensors.extend(norm(of("ln_1")));
        tensors.extend(norm(of("ln_2")));
        for (part, rows, cols) in [
            ("attn.c_attn", d_model, 3 * d_model),
            ("attn.c_proj", d_model, d_model),
            ("mlp.c_fc", d_model, model.d_mlp),
            ("mlp.c_proj", model.d_mlp, d_model),
        ] {
            tensors.push(noise(of(&format!("{part}.weight")), &[rows, cols]));
            tensors.push(noise(of(&format!("{part}.bias")), &[cols]));
        }
    }
    tensors.extend(norm("ln_f".into()));
    tensors
}
