"""`hillclimb chat`: a conversation with a checkpoint, one question at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from hillclimb.artifacts import Artifact
from hillclimb.cli.experiments import Target
from hillclimb.cli.failures import Exit, Failure
from hillclimb.cli.scorecard import made
from hillclimb.recipe.graph import checkpoints, stage_specs
from hillclimb.recipe.schema import Recipe

Ask = Callable[[str, int], str]


def talk(console: Console, target: Target, model: str, prompt: str | None) -> None:
    """Answer `prompt`, or question after question until an empty line.

    Every question stands alone: the recipe's climbs train on single questions.
    """
    ask = load(find(target, model), target.recipe)
    if prompt is not None:
        console.print(ask(prompt, target.seed), markup=False, soft_wrap=True)
        return
    console.print(f"{model}: ask; an empty line leaves", style="dim")
    turn = 0
    while question := _question(console):
        console.print(ask(question, target.seed + turn), markup=False, soft_wrap=True)
        turn += 1


def _question(console: Console) -> str:
    try:
        return console.input("[bold]> [/]").strip()
    except EOFError:
        return ""


def find(target: Target, model: str) -> Path:
    """The folder of a model: one on the disk, or an asset's, its digests checked.

    Raises:
        Failure: if it is neither, or not made.
        ArtifactError: if the artifact is damaged.
    """
    folder = Path(model)
    if folder.is_dir():
        inner = folder / "model"
        return inner if inner.is_dir() else folder
    names = checkpoints(stage_specs(target.recipe, target.seed))
    if model not in names:
        raise Failure(
            f"{model} is neither a folder nor a checkpoint of {target.experiment}; those are "
            f"{', '.join(names)}",
            Exit.USAGE,
        )
    artifact: Artifact = made(target, model)
    artifact.require_intact()
    return artifact.local("model")


def load(folder: Path, recipe: Recipe) -> Ask:
    """A function from question and seed to answer, with the model's own prompt template.

    Raises:
        Failure: if the folder holds no model.
    """
    from hillclimb.environments.templates import STOP_TOKENS, render
    from hillclimb.rollout.engine import SamplingParams
    from hillclimb.rollout.torch_engine import TorchEngine
    from hillclimb.stages.models import load_model_folder

    if not (folder / "config.json").is_file():
        raise Failure(f"{folder} has no config.json: name a folder with a model", Exit.USAGE)
    network, tokenizer, template = load_model_folder(folder)
    engine = TorchEngine(network, batch_size=1)
    params = SamplingParams(
        max_tokens=recipe.evaluation.max_tokens,
        temperature=recipe.evaluation.sampling.temperature,
        top_p=recipe.evaluation.sampling.top_p,
        stop=tuple(id_ for token in STOP_TOKENS if (id_ := tokenizer.ids[token]) is not None),
    )

    def ask(question: str, seed: int) -> str:
        tokens = tokenizer.encode(render(question, template))
        [answer] = engine.generate([tokens], params, seed)
        return tokenizer.decode(answer.tokens)

    return ask
