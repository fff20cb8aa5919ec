"""Models inside artifacts: Hugging Face folders with their tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from hillclimb.artifacts import Artifact, ArtifactWriter
from hillclimb.environments.templates import Template
from hillclimb.model.configuration import MaiConfig
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.model.tokenizer import TextTokenizer

MODEL = "model"


def save_model(
    out: ArtifactWriter, model: MaiForCausalLM, tokenizer: TextTokenizer, template: Template
) -> None:
    """Write `model/`: config.json, model.safetensors, the tokenizer's files."""
    config = model.config.to_diff_dict()
    config.update(prompt_template=template, dropout=0.0)
    with out.local(MODEL) as folder:
        tokenizer.save(folder)
        weights = {name: p.detach().contiguous() for name, p in model.named_parameters()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        text = json.dumps(config, indent=1, sort_keys=True, default=str)
        (folder / "config.json").write_text(text + "\n")


def load_config(folder: Path) -> dict[str, Any]:
    """What `config.json` says."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def load_model(
    artifact: Artifact, dropout: float = 0.0
) -> tuple[MaiForCausalLM, TextTokenizer, Template]:
    """The model of an artifact, its tokenizer, and the template it is prompted with."""
    return load_model_folder(artifact.local(MODEL), dropout)


def load_model_folder(
    folder: Path, dropout: float = 0.0
) -> tuple[MaiForCausalLM, TextTokenizer, Template]:
    """As `load_model`, from a folder.

    Raises:
        ValueError: if the weights do not fit the configuration, naming the first that differs.
    """
    values = load_config(folder)
    template: Template = values.pop("prompt_template", "chat")
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
    return model, TextTokenizer.load(folder), template
