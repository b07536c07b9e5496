"""Phi-3: q, k and v in one matrix, gate and up in another, RoPE on the first half of a head, a sliding window."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent))
import twin  # noqa: E402

twin.make(
    HERE,
    {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-05,
        "rope_theta": 5000.0,
        "max_position_embeddings": 64,
        "original_max_position_embeddings": 64,
        "pad_token_id": twin.EOS_ID,
        "partial_rotary_factor": 0.5,
        "rope_scaling": None,
        "sliding_window": 6,
        "tie_word_embeddings": False,
        "use_cache": True,
        "initializer_range": 0.02,
    },
    seed=3,
)
