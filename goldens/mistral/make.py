"""Mistral with a sliding window shorter than the prompt; config.json as transformers 5 saves it."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent))
import twin  # noqa: E402

twin.make(
    HERE,
    {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 64,
        "rope_theta": 7000.0,
        "rms_norm_eps": 1e-5,
        "sliding_window": 8,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
    },
    seed=34,
    style="v5",
    notes=["A position sees itself and the 7 before it."],
)
