"""Qwen3: a norm a head on q and k, a sliding window from layer 1 on."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent))
import twin  # noqa: E402

twin.make(
    HERE,
    {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "max_position_embeddings": 64,
        "max_window_layers": 1,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 20000.0,
        "sliding_window": 6,
        "tie_word_embeddings": True,
        "use_cache": True,
        "use_sliding_window": True,
        "initializer_range": 0.02,
    },
    seed=5,
    notes=[
        "Layer 0 sees the whole prompt; layers 1 and 2 see a position itself and the 5 before it.",
    ],
)
