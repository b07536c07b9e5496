"""Mixtral: 4 experts, 2 a token, in the hub's block_sparse_moe layout."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent))
import twin  # noqa: E402

twin.make(
    HERE,
    {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 64,
        "rope_theta": 50000.0,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.02,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
    },
    seed=41,
)
