"""A worker process of `GraderPool`: grades tasks from standard input until it is closed."""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from functools import cache
from typing import BinaryIO

from hillclimb.rewards.graded import Graded

_ORPHAN_GRACE_S = 2.0


@cache
def _grader(function: str) -> Callable[..., Graded]:
    module, _, name = function.partition(":")
    grader: Callable[..., Graded] = getattr(importlib.import_module(module), name)
    return grader


def _say(out: BinaryIO, message: dict[str, object]) -> None:
    out.write(json.dumps(message).encode() + b"\n")
    out.flush()


def _grade(out: BinaryIO, request: dict[str, object]) -> None:
    """Grade one request. The alarm ends this process if nobody is left to kill it."""
    try:
        grader = _grader(str(request["function"]))
        _say(out, {"started": True})
        signal.setitimer(signal.ITIMER_REAL, float(request["deadline_s"]) + _ORPHAN_GRACE_S)  # type: ignore[arg-type]
        verdict = grader(**request["arguments"])  # type: ignore[arg-type]
        _say(out, {"score": verdict.score, "reason": verdict.reason})
    except Exception as error:
        retire = isinstance(error, MemoryError)
        reason = f"{type(error).__name__}: {error}"[:200]
        _say(out, {"score": None, "reason": reason, "retire": retire})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def main() -> None:
    memory = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what a library prints must not be read as a verdict
        for line in sys.stdin.buffer:
            _grade(out, json.loads(line))


if __name__ == "__main__":
    main()
