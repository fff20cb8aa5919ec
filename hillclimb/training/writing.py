"""The trainer's end of its writer process: orders, answers, and a new writer when one died."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from hillclimb.artifacts import ArtifactError

_TRIES = 2


class CheckpointError(OSError):
    """A checkpoint could not be written; the one before it is intact."""


class Writer:
    """One writer process, started at the first order. It has one order at a time.

    `written` and `seconds` are the bytes of the last order and how long they took.
    """

    def __init__(
        self, uri: str, rank: int, memory: tuple[int, int], log: Callable[[str], None]
    ) -> None:
        self.uri, self.rank, self.memory, self.log = uri, rank, memory, log
        self.process: subprocess.Popen[str] | None = None
        self.written, self.seconds = 0, 0.0
        self._order: dict[str, Any] | None = None

    @property
    def busy(self) -> bool:
        """Whether an order has no answer yet."""
        return self._order is not None

    def send(self, order: dict[str, Any]) -> None:
        """Give an order; what it names in memory must stay as it is until `wait` returns."""
        if self.process is not None and self.process.poll() is not None:
            self._say_dead(self.process.returncode)
            self._discard()
        self._order = order
        self._pass_on()

    def wait(self) -> None:
        """Wait for the answer. A writer that dies is replaced, and the order given again.

        Raises:
            CheckpointError: if the order cannot be carried out.
            ArtifactError: if the store refuses it.
        """
        for _ in range(_TRIES):
            if self._order is None:
                return
            assert self.process is not None
            assert self.process.stdout is not None
            if line := self.process.stdout.readline():
                self._settle(json.loads(line))
                return
            self._say_dead(self.process.wait())
            self._discard()
            self._pass_on()
        assert self._order is not None
        folder, self._order = self._order["folder"], None
        raise CheckpointError(
            f"{self.uri}/{folder} could not be written: the writer of rank {self.rank} was killed "
            f"{_TRIES} times; the checkpoint before it is intact. Look for what kills it (memory?)"
        )

    def close(self, patience: float | None) -> None:
        """Wait for the answer, at most `patience` seconds, and end the process."""
        if self.process is None:
            return
        assert self.process.stdin is not None
        try:
            if patience is None:
                self.wait()
            self.process.stdin.close()
            self.process.wait(patience)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            pass
        finally:
            self._discard()

    def _pass_on(self) -> None:
        if self.process is None:
            self._start()
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(self._order) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return  # `wait` sees that it is dead

    def _start(self) -> None:
        arguments = [self.uri, str(self.rank), str(os.getpid()), *map(str, self.memory)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hillclimb.training.writer", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=self.memory, text=True,
        )  # fmt: skip

    def _settle(self, answer: dict[str, Any]) -> None:
        assert self._order is not None
        folder, self._order = self._order["folder"], None
        if "error" in answer:
            kind = ArtifactError if answer["refused"] else CheckpointError
            raise kind(
                f"{self.uri}/{folder} could not be written: {answer['error']}. Training stops "
                "here, the checkpoint before it is intact: make room or correct the store, and "
                "start again"
            )
        self.written, self.seconds = answer["bytes"], answer["seconds"]

    def _say_dead(self, code: int) -> None:
        doing = f"while it wrote {self._order['folder']}" if self._order else "between checkpoints"
        self.log(
            f"the checkpoint writer of rank {self.rank} ended with {code} {doing}: another one "
            "takes over, nothing is lost"
        )

    def _discard(self) -> None:
        """Let go of a process that ended, or that is to end now."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None and not stream.closed:
                    try:
                        stream.close()
                    except BrokenPipeError:
                        continue
