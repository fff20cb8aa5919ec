"""Models in Hugging Face folders: `config.json` and `model.safetensors`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from hillclimb.model.configuration import MaiConfig
from hillclimb.model.modeling import MaiForCausalLM

MODEL = "model"
TEMPLATE = "prompt_template"


def read_config(folder: Path) -> dict[str, Any]:
    """What `config.json` says."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def read_network(folder: Path, dropout: float = 0.0) -> MaiForCausalLM:
    """The network with its weights.

    Raises:
        ValueError: if the weights do not fit the configuration, naming the first that differs.
    """
    values = read_config(folder)
    values.pop(TEMPLATE, None)
    values["dropout"] = dropout
    model = MaiForCausalLM(MaiConfig(**values))
    weights = load_file(folder / "model.safetensors")
    for name, parameter in model.named_parameters():
        if name not in weights or weights[name].shape != parameter.shape:
            found = tuple(weights[name].shape) if name in weights else "nothing"
            raise ValueError(
                f"{folder}: {name} should be {tuple(parameter.shape)}, found {found}: "
                "the checkpoint is of another shape than its config.json says"
            )
    model.load_state_dict(weights)
    return model
