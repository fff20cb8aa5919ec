"""Exit codes, and one sentence for every way in which a command can fail."""

from __future__ import annotations

from enum import IntEnum

from hillclimb.artifacts import ArtifactError
from hillclimb.recipe.errors import RecipeError
from hillclimb.scaling.plan import PlanError

EXIT_CODES = """\
Exit codes: [bold]0[/] done · [bold]1[/] a stage failed or an artifact is missing or damaged ·
[bold]2[/] wrong usage, or a recipe that is wrong or does not fit · [bold]3[/] this machine lacks
something (sandbox, disk space, a package) · [bold]130[/] interrupted; what was made stays, and the
same command goes on from there.
"""


class Exit(IntEnum):
    """How a command ended."""

    DONE = 0
    WRONG = 1
    USAGE = 2
    MACHINE = 3
    INTERRUPTED = 130


class Failure(Exception):
    """A command cannot go on. The message says what is wrong and what to do."""

    def __init__(self, message: str, code: Exit) -> None:
        super().__init__(message)
        self.code = code


def explain(error: BaseException) -> tuple[str, Exit]:
    """What to tell about an error, and the exit code."""
    if isinstance(error, Failure):
        return str(error), error.code
    if isinstance(error, RecipeError | PlanError):
        return str(error), Exit.USAGE
    if isinstance(error, ArtifactError):
        return str(error), Exit.WRONG
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the same command goes on from what is made", Exit.INTERRUPTED
    if isinstance(error, ModuleNotFoundError):
        return (
            f"this command needs the package {error.name}, which is not installed; "
            "`pip install -e '.[train,rewards,corpus]'` brings it"
        ), Exit.MACHINE
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"{text}\n`hillclimb --debug …` shows where it came from", Exit.WRONG
