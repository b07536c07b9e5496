"""OLMo 3: OLMo 2 with three sliding layers to a full one, and yarn on the full ones alone."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent))
import twin  # noqa: E402

twin.make(
    HERE,
    {
        "architectures": ["Olmo3ForCausalLM"],
        "model_type": "olmo3",
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "pad_token_id": twin.EOS_ID,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "attention_factor": 1.3,
            "beta_fast": 4.0,
            "beta_slow": 1.0,
            "factor": 8.0,
            "original_max_position_embeddings": 1024,
            "rope_type": "yarn",
        },
        "rope_theta": 500000,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"],
        "sliding_window": 6,
        "tie_word_embeddings": False,
        "use_cache": True,
        "initializer_range": 0.02,
    },
    seed=1,
    style="v5",
    notes=[
        "rope_parameters lies nested by layer type, as transformers 5 saves it.",
    ],
)
