"""Granite 3: four multipliers, none near what it would be without."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent))
import twin  # noqa: E402

twin.make(
    HERE,
    {
        "architectures": ["GraniteForCausalLM"],
        "model_type": "granite",
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attention_multiplier": 0.15,
        "embedding_multiplier": 3.0,
        "hidden_act": "silu",
        "logits_scaling": 0.25,
        "max_position_embeddings": 64,
        "mlp_bias": False,
        "residual_multiplier": 0.4,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 20000.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "initializer_range": 0.02,
    },
    seed=1,
)
