"""Gemma 3: QK-norm, two RoPE bases, a linear scaling that acts on the global layer alone."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent))
import twin  # noqa: E402

twin.make(
    HERE,
    {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 64,
        "pad_token_id": twin.EOS_ID,
        "query_pre_attn_scalar": 24,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 1000.0,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "rope_theta": 50000.0,
        "sliding_window": 6,
        "sliding_window_pattern": 3,
        "use_cache": True,
        "initializer_range": 0.02,
    },
    seed=26,
    notes=[
        "No layer_types in config.json, as on the first of the hub's files: of every sliding_window_pattern "
        "layers the last is global, here layer 2.",
    ],
)
