"""Every family of problems, by kind."""

from __future__ import annotations

from hillclimb.environments.tasks.agentic import Find, Replace, Script, Tested
from hillclimb.environments.tasks.base import TaskFamily, Worksheets
from hillclimb.environments.tasks.drills import Copybook, Glossary, Tables
from hillclimb.environments.tasks.helpfulness import Frame, Repeat, Safety
from hillclimb.environments.tasks.stem import Functions, Sums

FAMILIES: dict[str, TaskFamily] = {
    family.kind: family
    for family in (
        Sums("sum", "+"),
        Sums("mixed", "+-"),
        Functions(),
        Replace(),
        Script(),
        Tested(),
        Find(),
        Repeat(),
        Frame(),
        Safety(),
    )
}

WORKSHEETS: dict[str, Worksheets] = {
    **FAMILIES,
    **{drill.kind: drill for drill in (Copybook(), Tables(), Glossary())},
}


def families_of(specialist: str) -> dict[str, TaskFamily]:
    """The families of one specialist."""
    return {kind: f for kind, f in FAMILIES.items() if f.specialist == specialist}
