"""Progress of a climb: one bar a running stage, one line a finished one."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from hillclimb.cli import words
from hillclimb.runner import Event


class Board:
    """Shows stages as they start, move and end."""

    def __init__(self, console: Console, total: int) -> None:
        self.console, self.total, self.ended = console, total, 0
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
            transient=True,
            redirect_stderr=False,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Board:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, event: Event) -> None:
        """Show what the runner tells."""
        if event.type == "started":
            self.started(event.stage)
        elif event.type == "progress":
            self.moved(event.stage, event.done, event.total, event.message)
        elif event.type == "note":
            self.said(event.stage, event.message)
        elif event.type == "made":
            self.made(event.stage, event.seconds)
        elif event.type == "skipped":
            self.skipped(event.stage)
        elif event.type == "failed":
            self.failed(event.stage, event.message)

    def started(self, name: str) -> None:
        """A stage begins."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=None, note="")

    def moved(self, name: str, done: float, total: float, note: str) -> None:
        """A stage says how far it is."""
        self.started(name)
        self._progress.update(self._tasks[name], completed=done, total=total, note=note)

    def said(self, name: str, message: str) -> None:
        """A stage or the machine says a sentence."""
        self.console.print(f"[dim]{name}:[/] {message}" if name else message, soft_wrap=True)

    def made(self, name: str, seconds: float) -> None:
        """A stage ended with an artifact."""
        self._end(name, f"[green]made[/] {name} [dim]in {words.duration(seconds / 3600)}[/]")

    def skipped(self, name: str) -> None:
        """A stage was made before."""
        self._end(name, f"[dim]made before {name}[/]")

    def failed(self, name: str, why: str) -> None:
        """A stage ended without an artifact."""
        self._end(name, f"[red]failed[/] {name}: {why}")

    def _end(self, name: str, line: str) -> None:
        self.ended += 1
        if name in self._tasks:
            self._progress.remove_task(self._tasks.pop(name))
        width = len(str(self.total))
        self.console.print(f"[dim]{self.ended:>{width}}/{self.total}[/] {line}", soft_wrap=True)
