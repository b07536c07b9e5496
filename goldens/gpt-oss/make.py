"""gpt-oss: a learned sink a head, biases everywhere, windows in turn, yarn, experts in one tensor a projection."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent))
import twin  # noqa: E402

twin.make(
    HERE,
    {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "hidden_size": 32,
        "intermediate_size": 8,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "attention_bias": True,
        "attention_dropout": 0.0,
        "experts_per_token": 2,
        "hidden_act": "silu",
        "initial_context_length": 64,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "max_position_embeddings": 256,
        "num_experts_per_tok": 2,
        "num_local_experts": 4,
        "output_router_logits": False,
        "pad_token_id": twin.EOS_ID,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000,
        "router_aux_loss_coef": 0.9,
        "sliding_window": 6,
        "swiglu_limit": 2.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "initializer_range": 0.02,
    },
    seed=2,
    notes=[
        "The experts are plain floats, as save_pretrained writes them; the hub's files hold them in MXFP4.",
    ],
)
