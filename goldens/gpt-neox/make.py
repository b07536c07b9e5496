"""GPT-NeoX (Pythia): q, k and v fused head by head, RoPE on a quarter of a head, attention and MLP side by side."""

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
        "num_attention_heads": 2,
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
        "rotary_pct": 0.25,
        "use_parallel_residual": True,
    },
    seed=5,
    buffers=True,
)
