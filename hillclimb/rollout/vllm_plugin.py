"""What vLLM loads at its start to know MAI models: the entry point `vllm.general_plugins`."""

from __future__ import annotations

from transformers import AutoConfig

from hillclimb.model.configuration import MaiConfig

ARCHITECTURE = "MaiForCausalLM"


def register() -> None:
    """Make the configuration and the network known; vLLM asks once in each of its processes."""
    from vllm import ModelRegistry

    AutoConfig.register(MaiConfig.model_type, MaiConfig, exist_ok=True)
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"hillclimb.rollout.vllm_model:{ARCHITECTURE}")
