"""One sandbox in a pod: every command through the API's `exec`, run by the pod's first process.

What is sent and what comes back is sealed (see `pod_guard`): whatever a command does to the
processes that carry messages, it cannot speak for the next one. Where a connection breaks, the
same request is sent again, and its command has run once.
"""

from __future__ import annotations

import atexit
import json
import logging
import secrets
import time
from itertools import count

from hillclimb.environments.sandbox.base import SandboxDied, SandboxLimits, SandboxUnavailable
from hillclimb.environments.sandbox.pod_api import STATUS, STDOUT, Api, ApiAway, Exec, ExecLost
from hillclimb.environments.sandbox.pod_guard import ANSWER, RELAY, REQUEST, SIZE, seal, unseal
from hillclimb.environments.sandbox.pod_spec import Object, how_it_ended, runs
from hillclimb.environments.sandbox.shell import KILL_GRACE_S, VARIABLES, Run, ShellSandbox

_POLL_S = 0.2
_END_PATIENCE_S = 10.0
_HEADER = 4096
_RELAY = ["python3", "-I", "-S", "-B", "-c", RELAY]
_LOG = logging.getLogger(__name__)


class PodSandbox(ShellSandbox):
    """A `Sandbox` in a pod. Not for use from two threads at once.

    One that nobody has stopped ends with this process, unless that is killed.
    """

    def __init__(self, api: Api, pod: str, claim: str, limits: SandboxLimits) -> None:
        """Take a running pod; `claim` names the SandboxClaim that it came from, or is empty."""
        self.limits, self.pod = limits, pod
        self._api, self._claim, self._stopped = api, claim, False
        self._key, self._numbers = secrets.token_bytes(32), count()

    def greet(self) -> None:
        """Give the pod its key, before anything else.

        Raises:
            ExecLost: if nothing in the pod answers.
            ApiAway: if the API is away for longer than its patience.
        """
        self._ask({"key": self._key.hex()}, b"", 0, KILL_GRACE_S)
        atexit.register(self.stop)

    def stop(self) -> None:
        """See `Sandbox.stop`. What cannot be deleted now ends at its lifetime."""
        if not self._stopped:
            self._stopped = True
            atexit.unregister(self.stop)
            end(self._api, self.pod, self._claim)

    def _run(self, command: bytes, timeout_s: float, limit: int) -> Run:
        if self._stopped:
            raise SandboxDied("the sandbox was stopped")
        bounds = {
            "CORE": 0,
            "NPROC": self.limits.processes,
            "AS": self.limits.memory,
            "CPU": self.limits.cpu_s,
            "FSIZE": self.limits.file,
            "NOFILE": self.limits.open_files,
        }
        asked = {"seconds": timeout_s, "limit": limit, "limits": bounds, "variables": VARIABLES}
        try:
            said, printed = self._ask(asked, command.replace(b"\0", b""), limit, timeout_s)
        except (ExecLost, ApiAway, SandboxUnavailable) as error:
            why = self._why(error)
            self.stop()
            raise SandboxDied(f"the sandbox ended while it ran a command: {why}") from error
        stdout, stderr = printed[: said["stdout"]], printed[said["stdout"] :]
        timed_out, truncated = (said["ending"] == how for how in ("timed_out", "truncated"))
        return Run(limit, bytearray(stdout), bytearray(stderr), said["code"], timed_out, truncated)

    def _ask(self, asked: Object, body: bytes, limit: int, takes_s: float) -> tuple[Object, bytes]:
        """The sealed answer to a request, which is sent again while it is lost and the pod runs.

        It is lost as a matter of course where a command was killed, and the relay with it.
        """
        number, pause = next(self._numbers), 0.0
        request = seal(self._key, REQUEST, {"number": number, **asked}, body)
        until = time.monotonic() + takes_s + KILL_GRACE_S + self._api.patience_s
        while True:
            try:
                answer = self._carry(request, 2 * limit + _HEADER, takes_s + KILL_GRACE_S)
                said, printed = unseal(self._key, ANSWER, answer)
                if said["number"] == number:
                    return said, printed
                problem: Exception = ExecLost("the pod answers what was asked before")
            except (ExecLost, ValueError) as error:
                problem = error
            if pause and (time.monotonic() > until or not self._running()):
                raise ExecLost(str(problem)) from problem
            time.sleep(pause)
            pause = _POLL_S

    def _carry(self, request: bytes, longest: int, within_s: float) -> bytes:
        """Send a request through a relay of its own; what the relay prints."""
        until, answer = time.monotonic() + within_s, bytearray()
        with Exec(self._api, self.pod, _RELAY) as relay:
            relay.send(SIZE.pack(len(request)) + request)
            while got := relay.receive(until - time.monotonic()):
                channel, data = got
                if channel == STATUS and not answer:
                    raise ExecLost(json.loads(data).get("message") or "the pod says nothing")
                if channel == STATUS:
                    return bytes(answer)
                if channel == STDOUT:
                    answer += data
                if len(answer) > longest:
                    raise ExecLost("the pod answers more than was asked for")
        raise ExecLost("the pod does not answer")

    def _running(self) -> bool:
        pod = self._api.pod(self.pod)
        return pod is not None and runs(pod)

    def _why(self, error: Exception) -> str:
        try:
            pod = self._api.pod(self.pod)
        except (ApiAway, SandboxUnavailable):
            return str(error)
        if pod is None:
            return "its pod is gone"
        return str(error) if runs(pod) else how_it_ended(pod)


def end(api: Api, pod: str, claim: str) -> None:
    """Delete a sandbox's pod, or the claim that it belongs to; never raises for the API."""
    patience_s = min(api.patience_s, _END_PATIENCE_S)
    try:
        if claim:
            api.delete_claim(claim, patience_s)
        else:
            api.delete_pod(pod, patience_s)
    except (ApiAway, SandboxUnavailable) as error:
        _LOG.warning("sandbox pod %s is left until its lifetime ends: %s", pod, error)
