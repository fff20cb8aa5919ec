"""Programs in any sandbox: a Python start for each, where no warm interpreter can be kept.

What holds of `programs.CodeRunner` holds here, except that a program may write files in /work and
/tmp; they are gone before the next one starts.
"""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from hillclimb.environments.sandbox import program_server
from hillclimb.environments.sandbox.base import (
    Completed,
    Sandbox,
    SandboxDied,
    SandboxFileError,
    SandboxProvider,
)
from hillclimb.environments.sandbox.bubblewrap import BubblewrapProvider
from hillclimb.environments.sandbox.program_server import UNCLEAN, encode
from hillclimb.environments.sandbox.programs import (
    CallResult,
    CodeRunner,
    ProgramLimits,
    ProgramRun,
    ProgramRunner,
    read_results,
)

_SERVER = shlex.quote(Path(program_server.__file__).read_text(encoding="utf-8"))
_START_S = 5.0
_SHORT = 64 * 1024  # characters of a job that fits into the command


def program_runner(provider: SandboxProvider) -> Callable[[], ProgramRunner]:
    """What runs programs where `provider` runs commands."""
    local = isinstance(provider, BubblewrapProvider)
    return CodeRunner if local else partial(SandboxPrograms, provider)


class SandboxPrograms:
    """A `ProgramRunner` over one sandbox, which is started when first needed.

    Not for use from two threads at once. If the sandbox is lost, the next program gets a new one.
    """

    def __init__(self, provider: SandboxProvider, limits: ProgramLimits | None = None) -> None:
        self.limits = limits or ProgramLimits()
        self._provider = provider
        self._stack = ExitStack()
        self._sandbox: Sandbox | None = None
        bounds = f"{self.limits.memory} {self.limits.wall_s}"
        self._python = f"exec python3 -I -S -B -c {_SERVER} {bounds}"

    def call(self, source: str, entry: str, calls: Sequence[tuple[object, ...]]) -> ProgramRun:
        """See `CodeRunner.call`."""
        job = {"source": source, "entry": entry, "calls": encode(list(calls)), "stdin": None}
        done = self._run(job)
        return _ended(done, read_results(done.stdout, len(calls)), "")

    def script(self, source: str, stdin: str = "") -> ProgramRun:
        """See `CodeRunner.script`."""
        done = self._run({"source": source, "stdin": stdin})
        return _ended(done, (), done.stdout)

    def stop(self) -> None:
        """End the sandbox; a later program starts another."""
        self._sandbox = None
        self._stack.close()

    def _run(self, job: dict[str, object]) -> Completed:
        text = json.dumps(job)
        for _ in range(2):  # a program may have harmed the sandbox that it leaves to the next one
            if self._sandbox is None:
                self._sandbox = self._stack.enter_context(self._provider.start())
            try:
                done = self._ask(self._sandbox, text)
                if done.exit_code != UNCLEAN:
                    return done
            except (SandboxDied, SandboxFileError):
                pass
            self.stop()
        return Completed("", "", 128 + signal.SIGKILL)

    def _ask(self, sandbox: Sandbox, job: str) -> Completed:
        timeout_s = self.limits.wall_s + _START_S
        if len(job) <= _SHORT:
            return sandbox.run(f"{self._python} <<'END'\n{job}\nEND", timeout_s)
        sandbox.write("job", job)
        return sandbox.run(f"{self._python} <job", timeout_s)


def _ended(done: Completed, results: tuple[CallResult, ...], stdout: str) -> ProgramRun:
    code = done.exit_code
    if done.timed_out or code == 128 + signal.SIGALRM:
        return ProgramRun("timeout", -signal.SIGKILL, results, stdout)
    if done.truncated:
        return ProgramRun("output", -signal.SIGKILL, results, stdout)
    if code > 128:
        return ProgramRun("killed", 128 - code, results, stdout)
    return ProgramRun("exited", code, results, stdout)
