"""Gemma 3 with a vision tower: text_config holds the language model and leaves most fields to the class."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent))
import twin  # noqa: E402

twin.make(
    HERE,
    {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "boi_token_index": 265,
        "eoi_token_index": 266,
        "image_token_index": 264,
        "initializer_range": 0.02,
        "mm_tokens_per_image": 4,
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": 24,
            "intermediate_size": 16,
            "num_hidden_layers": 6,
            "head_dim": 8,
            "pad_token_id": twin.EOS_ID,
            "vocab_size": twin.VOCAB,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 6,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 8,
            "image_size": 8,
            "intermediate_size": 8,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "patch_size": 4,
            "vision_use_head": False,
        },
    },
    seed=8,
    notes=[
        "Text alone goes in. As in the hub's gemma-3-4b-it, text_config leaves 8 heads, 4 kv heads, "
        "query_pre_attn_scalar 256, both RoPE bases, the pattern of 6 and tied embeddings to the class; layer"
        " 5 is the global one.",
    ],
)
