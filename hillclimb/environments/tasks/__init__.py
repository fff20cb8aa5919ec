"""Problems by rule: made, verified and split, with worksheets that show their formats."""

from hillclimb.environments.tasks.base import Problem, TaskFamily, make_problems, worksheet_rows
from hillclimb.environments.tasks.families import FAMILIES, WORKSHEETS, families_of

__all__ = [
    "FAMILIES",
    "WORKSHEETS",
    "Problem",
    "TaskFamily",
    "families_of",
    "make_problems",
    "worksheet_rows",
]
