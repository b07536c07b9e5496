"""Ministral: Mistral with the window in some layers, as layer_types says."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent))
import twin  # noqa: E402

twin.make(
    HERE,
    {
        "architectures": ["MinistralForCausalLM"],
        "model_type": "ministral",
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "sliding_attention"],
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-05,
        "rope_theta": 20000.0,
        "sliding_window": 6,
        "tie_word_embeddings": True,
        "use_cache": True,
        "initializer_range": 0.02,
    },
    seed=2,
)
