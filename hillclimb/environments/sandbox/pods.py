"""The cluster's sandboxes: one Kubernetes pod per episode, under a runtime class such as gVisor.

A new pod each, or one that waits in a warm pool of agent-sandbox. Commands run in it as
`pod_sandbox` says; what is asked of the cluster is in `pod_spec`.

Pods live in another namespace than the stage that uses them, so no owner reference can tie them to
it. They end with its process; what a killed one leaves ends when its next attempt begins, or with
its lifetime.

Not covered: a command that fills the pod's memory with several processes ends its own sandbox
(`SandboxDied`, an episode without a grade); under a runtime that shares the node's kernel, the
limit on processes counts those of all sandboxes on the node.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hillclimb.environments.sandbox.base import (
    Sandbox,
    SandboxDied,
    SandboxLimits,
    SandboxUnavailable,
    stopping,
)
from hillclimb.environments.sandbox.pod_api import Api, ApiAway, ExecLost, Full
from hillclimb.environments.sandbox.pod_sandbox import PodSandbox, end
from hillclimb.environments.sandbox.pod_spec import (
    MANAGED,
    OWNER,
    Object,
    PodSettings,
    claim_manifest,
    not_started,
    obstacle,
    open_door,
    pod_manifest,
    runs,
    weakness,
)
from hillclimb.environments.sandbox.shell import NOBODY

__all__ = ["PodProvider", "PodSandbox"]

_POLL_S = 0.2
_METADATA = ("169.254.169.254", 80)  # of cloud providers; it hands out credentials
_IN_CLUSTER = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_CLAIM_FAULTS = ("InvalidMetadata", "TemplateNotFound", "WarmPoolNotFound")
_PROBE = """python3 - <<'END'
import os, socket, threading
print("user", os.getuid())
for folder in ("/var/run/secrets/kubernetes.io", "/run/secrets/kubernetes.io"):
    if os.path.exists(folder):
        print("it holds a service account token")
def reach(host, port):
    try:
        socket.create_connection((host, port), 2).close()
        print("it reaches", host, "port", port)
    except OSError:
        pass
tries = [threading.Thread(target=reach, args=target) for target in {targets}]
for each in tries: each.start()
for each in tries: each.join()
END"""


class PodProvider:
    """A `SandboxProvider` whose sandboxes are pods with the same settings and limits."""

    def __init__(self, settings: PodSettings, limits: SandboxLimits | None = None,
                 configuration: Any = None) -> None:  # fmt: skip
        """`configuration` is the Kubernetes client's; left out, the pod's own or the kubeconfig's.

        Raises:
            SandboxUnavailable: if there is no access to a Kubernetes API.
        """
        self.settings, self.limits = settings, limits or SandboxLimits()
        self._api = Api(settings.namespace, settings.patience_s, configuration)
        self._owner = _owner()

    def start(self) -> AbstractContextManager[Sandbox]:
        """See `SandboxProvider.start`."""
        return stopping(self._started())

    def check(self) -> None:
        """Prove that the cluster isolates; end what an earlier attempt of this stage has left.

        For once a rank, before its first sandbox: its other processes are the same owner.

        Raises:
            SandboxUnavailable: if the RuntimeClass or the NetworkPolicy is missing, a pod is not
                admitted as it was asked for, has a network or a token, or no pod can be had.
        """
        name = self.settings.runtime_class
        try:
            if self._api.runtime_class(name) is None:
                raise SandboxUnavailable(
                    f"the cluster has no RuntimeClass {name!r}: install gVisor on its nodes and "
                    "create it, or name another isolating one in HILLCLIMB_SANDBOX_RUNTIME_CLASS"
                )
            door = open_door(self._api.network_policies())
            self._end_left()
        except ApiAway as error:
            raise SandboxUnavailable(f"{error}: try again when it answers") from error
        if door:
            raise SandboxUnavailable(f"in namespace {self.settings.namespace!r}, {door}")
        self._probe()

    def _end_left(self) -> None:
        labels = ",".join(
            f"{key}={value}" for key, value in {**MANAGED, OWNER: self._owner}.items()
        )
        for claim in self._api.claims(labels) if self.settings.warm_pool else ():
            self._api.delete_claim(claim["metadata"]["name"])
        for pod in self._api.pods(labels):
            self._api.delete_pod(pod["metadata"]["name"])

    def _probe(self) -> None:
        targets = [self._api.address, _METADATA, *((server, 53) for server in _name_servers())]
        if host := os.environ.get("KUBERNETES_SERVICE_HOST"):
            targets.append((host, int(os.environ.get("KUBERNETES_SERVICE_PORT", "443"))))
        with self.start() as sandbox:
            try:
                done = sandbox.run(_PROBE.format(targets=targets), timeout_s=60)
            except SandboxDied as error:
                raise SandboxUnavailable(f"the probe did not run: {error}") from error
        found = done.stdout.splitlines()
        if found != [f"user {NOBODY}"]:
            said = "; ".join(found[1:] or found) or done.stderr.strip() or "it says nothing"
            raise SandboxUnavailable(
                f"a sandbox pod does not isolate ({said}): use a network plugin that enforces "
                "NetworkPolicy, and an image with sh and python3"
            )

    def _started(self) -> PodSandbox:
        name = f"sandbox-{uuid.uuid4().hex[:20]}"
        labels, claim = {**MANAGED, OWNER: self._owner}, name if self.settings.warm_pool else ""
        try:
            pod = self._claimed(name, labels) if claim else self._made(name, labels)
            sandbox = PodSandbox(self._api, pod, claim, self.limits)
            sandbox.greet()
        except BaseException as error:
            end(self._api, name, claim)
            if isinstance(error, ApiAway | ExecLost):
                raise SandboxUnavailable(f"a sandbox pod could not be started: {error}") from error
            raise
        return sandbox

    def _made(self, name: str, labels: dict[str, str]) -> str:
        until = time.monotonic() + self.settings.start_timeout_s
        manifest = pod_manifest(self.settings, self.limits, name, labels)
        while True:
            try:
                self._require(self._api.create_pod(manifest))
                break
            except Full:  # sandboxes of others end
                if time.monotonic() > until:
                    raise
            time.sleep(_POLL_S)
        self._wait(lambda: self._api.pod(name), until)
        return name

    def _claimed(self, name: str, labels: dict[str, str]) -> str:
        """A pod of the warm pool, or the one that its controller makes where none waits."""
        until = time.monotonic() + self.settings.start_timeout_s
        ends = datetime.now(UTC) + timedelta(seconds=self.settings.lifetime_s)
        shutdown = ends.strftime("%Y-%m-%dT%H:%M:%SZ")
        claim = self._api.create_claim(claim_manifest(self.settings, name, labels, shutdown))
        if claim is None:
            raise SandboxUnavailable(
                f"there is no SandboxClaim to take sandboxes from warm pool "
                f"{self.settings.warm_pool!r} with: install agent-sandbox with its extensions "
                "(v1beta1), or unset HILLCLIMB_SANDBOX_WARM_POOL"
            )
        pod = self._wait(lambda: self._pod_of(name), until)
        return str(pod["metadata"]["name"])

    def _pod_of(self, claim: str) -> Object | None:
        """The pod that a claim was given; a sandbox's pod has the sandbox's name."""
        status = (self._api.claim(claim) or {}).get("status") or {}
        for condition in status.get("conditions") or []:
            if condition.get("reason") in _CLAIM_FAULTS:
                raise SandboxUnavailable(
                    f"warm pool {self.settings.warm_pool!r} gives no sandbox "
                    f"({condition.get('message', '')}): apply its manifests in namespace "
                    f"{self.settings.namespace!r}, or correct HILLCLIMB_SANDBOX_WARM_POOL"
                )
        given = (status.get("sandbox") or {}).get("name")
        return self._api.pod(given) if given else None

    def _wait(self, look: Callable[[], Object | None], until: float) -> Object:
        """The pod once it runs as it was asked for."""
        pod = None
        while time.monotonic() < until:
            pod = look()
            if pod is not None:
                self._require(pod)
                if runs(pod):
                    return pod
                if fault := obstacle(pod):
                    raise SandboxUnavailable(f"a sandbox pod does not start: {fault}")
            time.sleep(_POLL_S)
        waits, warning = "there is no pod yet", ""
        if pod is not None:
            waits, warning = not_started(pod), self._api.warning(pod["metadata"]["name"])
        raise SandboxUnavailable(
            f"no sandbox pod started within {self.settings.start_timeout_s:g} s: {waits}"
            + (f"; the cluster says: {warning}" if warning else "")
        )

    def _require(self, pod: Object) -> None:
        if fault := weakness(pod, self.settings):
            pool = self.settings.warm_pool
            raise SandboxUnavailable(
                f"a sandbox pod was not admitted as it was asked for ({fault}): exempt namespace "
                f"{self.settings.namespace!r} from what changes its pods"
                + (
                    f", and apply the manifests of warm pool {pool!r} of this version"
                    if pool
                    else ""
                )
            )


def _owner() -> str:
    """Who uses the sandboxes, as a label: in a cluster the same for every attempt of a rank.

    A Job's pod has the Job's name and its index as host name, however often it is replaced.
    """
    who = f"{socket.gethostname()} {os.getpid()} {time.time()}"
    with suppress(OSError):
        who = f"{_IN_CLUSTER.read_text()} {socket.gethostname()} {os.environ.get('RANK', '')}"
    return hashlib.sha256(who.encode()).hexdigest()[:16]


def _name_servers() -> list[str]:
    """Where this machine resolves names; none in a sandbox may be reached."""
    lines = []
    with suppress(OSError):
        lines = Path("/etc/resolv.conf").read_text().splitlines()
    words = [line.split() for line in lines]
    return [word[1] for word in words if len(word) > 1 and word[0] == "nameserver"]
