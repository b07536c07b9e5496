"""Qwen3-MoE with router weights as the softmax leaves them, experts in every other layer, a sliding window."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent))
import twin  # noqa: E402

twin.make(
    HERE,
    {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "intermediate_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "attention_bias": False,
        "hidden_act": "silu",
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 20000.0,
        "sliding_window": 6,
        "use_sliding_window": True,
        "tie_word_embeddings": True,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [],
        "moe_intermediate_size": 8,
        "norm_topk_prob": False,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
        "use_cache": True,
        "initializer_range": 0.02,
    },
    seed=1,
    style="v5",
    notes=[
        "Layers 1 and 3 have experts, layers 0 and 2 a dense MLP; every layer has the window.",
    ],
)
