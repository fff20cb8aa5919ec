"""The options that every command has."""

from __future__ import annotations

from typing import Annotated

import typer

Root = Annotated[
    str,
    typer.Option("--root", metavar="DIR", help="Where artifacts live: a folder or any fsspec URI."),
]
RecipeName = Annotated[
    str,
    typer.Option(
        "--recipe",
        metavar="NAME|FILE",
        help="smoke, toy or mai-thinking-1, an experiment under the root, or a YAML file.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed of every draw.")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="SECTION.FIELD=VALUE", help="Change a recipe's field; repeatable."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

ROOT, RECIPE, SEED = ".hillclimb", "toy", 0
