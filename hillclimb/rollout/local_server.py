"""A rollout server as a child of this process: a climb's engine where no servers are named.

It lives and dies with its owner, also where that is killed, and is started anew where it dies
itself, at the same port.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence

from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.rollout.remote import RemoteEngine

PAUSE = 0.5
START = 1800.0
SERVING = "serving at "


class LocalServer:
    """Keeps one server alive until `close`.

    Args:
        words: the command, to which its owner and its port are added.
        environment: variables that it has besides those of this process.
        log: told when it has to be started anew, and what it says of why.

    Raises:
        RuntimeError: if it does not come up the first time, within half an hour.
    """

    def __init__(
        self, words: Sequence[str], environment: Mapping[str, str], log: Callable[[str], None]
    ) -> None:
        self._words = [*words, "--host", "127.0.0.1", "--owner", str(os.getpid())]
        self._environment = {**os.environ, **environment}
        self._log, self._port = log, 0
        self._ready, self._closed = threading.Event(), threading.Event()
        self.process: subprocess.Popen[str] | None = None
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()
        if not self._ready.wait(START):
            self.close()
        if not self._port:
            raise RuntimeError("the rollout server of this climb did not start: see the log")

    @property
    def url(self) -> str:
        """Where it listens, however often it was started."""
        return f"http://127.0.0.1:{self._port}"

    def close(self) -> None:
        """End it."""
        self._closed.set()
        if self.process is not None:
            self.process.kill()
        self._keeper.join()

    def _keep(self) -> None:
        """The thread that starts the process: the process ends with it."""
        while not self._closed.is_set():
            self.process = subprocess.Popen(
                [*self._words, "--port", str(self._port)], stdout=subprocess.PIPE,
                stdin=subprocess.DEVNULL, env=self._environment, text=True,
            )  # fmt: skip
            with self.process as process:
                if self._closed.is_set():
                    process.kill()
                self._listen(process)
            if not self._ready.is_set():
                self._ready.set()
                return
            if not self._closed.wait(PAUSE):
                self._log(f"the rollout server ended with {process.returncode}: it is started anew")

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(SERVING):
                self._port = int(line.rsplit(":", 1)[1])
                self._ready.set()


class LocalEngine(RemoteEngine):
    """`RemoteEngine` over a server of its own."""

    def __init__(
        self,
        checkpoint: str,
        fingerprint: str,
        model: MaiForCausalLM,
        threads: int,
        log: Callable[[str], None],
    ) -> None:
        words = [
            sys.executable, "-m", "hillclimb.rollout.server", "--checkpoint", checkpoint,
            "--fingerprint", fingerprint,
        ]  # fmt: skip
        self.server = LocalServer(words, {"OMP_NUM_THREADS": str(threads)}, log)
        super().__init__([self.server.url], model, log=log)

    def close(self) -> None:
        """End the server too."""
        super().close()
        self.server.close()
