"""Models inside artifacts: Hugging Face folders with their tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from hillclimb.artifacts import Artifact, ArtifactWriter
from hillclimb.environments.templates import Template
from hillclimb.model.folder import MODEL, TEMPLATE, read_config, read_network
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.model.tokenizer import TextTokenizer


def save_model(
    out: ArtifactWriter,
    model: MaiForCausalLM,
    tokenizer: TextTokenizer,
    template: Template,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write `model/`: config.json, model.safetensors, the tokenizer's files.

    Args:
        weights: of the whole model, where ranks share it out; its own parameters otherwise.
    """
    config = model.config.to_diff_dict()
    config.update({TEMPLATE: template, "dropout": 0.0})
    with out.local(MODEL) as folder:
        tokenizer.save(folder)
        weights = weights or {n: p.detach().contiguous() for n, p in model.named_parameters()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        text = json.dumps(config, indent=1, sort_keys=True, default=str)
        (folder / "config.json").write_text(text + "\n")


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
    template: Template = read_config(folder).get(TEMPLATE, "chat")
    return read_network(folder, dropout), TextTokenizer.load(folder), template
