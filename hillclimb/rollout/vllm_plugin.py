"""What vLLM loads at its start to know MAI models: the entry point `vllm.general_plugins`."""

from __future__ import annotations

from transformers import AutoConfig

from hillclimb.model.configuration import MaiConfig


def register() -> None:
    """Make the configuration and the network known; vLLM asks once in each of its processes."""
    from vllm import ModelRegistry

    AutoConfig.register(MaiConfig.model_type, MaiConfig, exist_ok=True)
    ModelRegistry.register_model("MaiForCausalLM", "hillclimb.rollout.vllm_model:MaiForCausalLM")
