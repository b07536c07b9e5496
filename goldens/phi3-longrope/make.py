"""Phi-3 with longrope on three quarters of a head, and a prompt longer than the original context."""

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
        "original_max_position_embeddings": 16,
        "pad_token_id": twin.EOS_ID,
        "partial_rotary_factor": 0.75,
        "rope_scaling": {
            "long_factor": [1.5, 4.0, 7.0],
            "short_factor": [1.0, 1.25, 2.0],
            "type": "longrope",
        },
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_cache": True,
        "initializer_range": 0.02,
    },
    seed=1,
    notes=[
        "No decode and no padded tensors: transformers takes the long factors for a whole pass as soon as its"
        " largest position reaches original_max_position_embeddings, while cached keys keep the rotation they"
        " were stored with, so what a cached decode gives depends on how the sequence was fed. The attention "
        "factor is the same for long and short: sqrt(1 + ln(max_position_embeddings / "
        "original_max_position_embeddings) / ln(original_max_position_embeddings)).",
    ],
)
