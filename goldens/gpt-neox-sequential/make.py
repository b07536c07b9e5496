"""GPT-NeoX with the MLP after attention and no biases in attention."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent))
import twin  # noqa: E402

twin.make(
    HERE,
    {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "attention_dropout": 0.0,
        "classifier_dropout": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout": 0.0,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 64,
        "rotary_emb_base": 5000,
        "tie_word_embeddings": False,
        "use_cache": True,
        "initializer_range": 0.02,
        "rotary_pct": 0.5,
        "attention_bias": False,
        "use_parallel_residual": False,
    },
    seed=1,
)
