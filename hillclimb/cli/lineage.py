"""`hillclimb lineage`: what an asset was made from, walked through MLflow."""

from __future__ import annotations

import json

from rich.console import Console
from rich.tree import Tree

from hillclimb.cli.experiments import Target, require_local
from hillclimb.cli.failures import Exit, Failure
from hillclimb.recipe.graph import stage_specs
from hillclimb.tracking import Sender
from hillclimb.tracking.lineage import LineageError, Node, lineage


def show(console: Console, target: Target, asset: str, as_json: bool) -> None:
    """Print the tree from `asset` back to its documents.

    Raises:
        Failure: if MLflow does not know the asset, or cannot be reached.
    """
    root = require_local(target.root, "lineage")
    known = stage_specs(target.recipe, target.seed)
    if asset not in known:
        raise Failure(f"there is no asset {asset}; there are {', '.join(known)}", Exit.USAGE)
    if not root.is_dir():
        raise Failure(f"there is nothing under {root}: `hillclimb climb` first", Exit.WRONG)
    sender = Sender(root)
    sent = sender.finish()
    try:
        node = lineage(asset, sender.uri, target.experiment)
    except LineageError as error:
        waiting = f"; {sent.sentence}" if sent.pending else ""
        raise Failure(f"{error}{waiting}; `hillclimb climb` makes it", Exit.WRONG) from error
    if as_json:
        print(json.dumps(node.to_json(), indent=1))
        return
    console.print(tree(node))


def tree(node: Node) -> Tree:
    """The tree for people; what is spelt out above is only named."""
    view = Tree(_label(node))
    for source in node.inputs:
        view.add(tree(source))
    return view


def _label(node: Node) -> str:
    above = " [dim](see above)[/]" if node.seen else ""
    roles = f" [dim]as {', '.join(node.roles)}[/]" if node.roles else ""
    return f"{node.asset} [dim]{node.fingerprint[:12]}[/]{roles}{above}"
