"""Converted folders in vLLM: their architecture, their attention, and their latents in its paged cache."""

from __future__ import annotations


def register() -> None:
    """Makes `ShrinkForCausalLM` known to vLLM. Called in every process of an engine, more than once."""
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from .configuration_shrink import ShrinkConfig

    AutoConfig.register(ShrinkConfig.model_type, ShrinkConfig, exist_ok=True)
    if "ShrinkForCausalLM" not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model("ShrinkForCausalLM", "shrink_vllm.model:ShrinkForCausalLM")
