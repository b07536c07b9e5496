"""Qwen2 with yarn as a user of Qwen2.5 adds it to config.json."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent))
import twin  # noqa: E402

twin.make(
    HERE,
    {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 64,
        "max_window_layers": 3,
        "rope_theta": 20000.0,
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 16, "type": "yarn"},
        "rms_norm_eps": 1e-06,
        "sliding_window": 8,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
    },
    seed=1,
)
