"""Llama with dynamic NTK RoPE scaling, and a prompt longer than max_position_embeddings."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent))
import twin  # noqa: E402

twin.make(
    HERE,
    {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 16,
        "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "initializer_range": 0.02,
    },
    seed=23,
    notes=[
        "No decode and no padded tensors: transformers recomputes the frequencies whenever the sequence grows past "
        "max_position_embeddings while cached keys keep the rotation they were stored with, so what a cached decode "
        "gives depends on how the sequence was fed. For one pass over T > max_position_embeddings tokens the base is "
        "rope_theta * (factor * T / max_position_embeddings - (factor - 1)) ** (head_dim / (head_dim - 2)); a pass "
        "that fits uses rope_theta. (A transformers model also keeps the base of the longest pass it has seen until a "
        "pass fits again; the goldens are a fresh model's.)"
    ],
)
