"""Gemma 2: gains stored as 1 + w, a norm after each sublayer too, softcaps, every other layer sliding."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent))
import twin  # noqa: E402

twin.make(
    HERE,
    {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 2.0,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 64,
        "pad_token_id": twin.EOS_ID,
        "query_pre_attn_scalar": 24,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "sliding_window": 6,
        "sliding_window_size": 6,
        "cache_implementation": "hybrid",
        "use_cache": True,
        "initializer_range": 0.02,
    },
    seed=122,
    notes=[
        "No layer_types in config.json, as on the hub: layers 0 and 2 are sliding, layers 1 and 3 see the "
        "whole prompt.",
    ],
)
