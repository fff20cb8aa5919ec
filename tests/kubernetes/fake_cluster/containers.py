"""A container as a process of this machine: its environment, its output, its end."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

from fake_cluster.kinds import Object
from fake_cluster.store import Store

MARK = "FAKE_CLUSTER_POD"
_KEPT = ("PATH", "HOME", "PYTHONPATH", "OMP_NUM_THREADS")


class Container:
    """A running container: a session of its own, and whatever it started."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.killed_for_memory = False
        self._mark = f"{MARK}={environment[MARK]}".encode()
        self._kill_at = float("inf")
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip

    def ended(self) -> int | None:
        """The exit code as the kubelet reports it (128 + the signal), or None while it runs."""
        if time.monotonic() > self._kill_at:
            self.kill()
        code = self._process.poll()
        if code is not None:
            self.kill()
        return 128 - code if code is not None and code < 0 else code

    def stop(self, grace: float) -> None:
        """SIGTERM to the first process, SIGKILL to all after `grace` seconds."""
        if self._kill_at == float("inf"):
            self._kill_at = time.monotonic() + grace
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    def kill(self) -> None:
        """SIGKILL to every process of the container, as when its PID namespace goes."""
        while found := _marked(self._mark):
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._process.wait()


def _marked(mark: bytes) -> list[int]:
    """The living processes that carry the mark in the environment they began with."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
    return found


def command(pod: Object, environment: dict[str, str], python: str) -> list[str]:
    """What the container runs, `$(NAME)` filled in, with its image's `python`."""
    container = pod["spec"]["containers"][0]
    words = [*container.get("command", []), *container.get("args", [])]
    first, *rest = [_local(pod, _expand(word, environment)) for word in words]
    return [python if first in ("python", "python3") else first, *rest]


def environment(store: Store, pod: Object, ports: dict[str, int]) -> dict[str, str]:
    """The container's variables.

    Args:
        store: where ConfigMaps and Secrets are.
        pod: the pod.
        ports: MASTER_PORT by JobSet attempt, added to.

    Raises:
        LookupError: if a ConfigMap, a Secret or a key of one is absent.
    """
    container, meta = pod["spec"]["containers"][0], pod["metadata"]
    made = {name: os.environ[name] for name in _KEPT if name in os.environ}
    made |= {MARK: meta["uid"], "HOSTNAME": pod["spec"].get("hostname", meta["name"])}
    for source in container.get("envFrom", []):
        made |= _table(store, pod, source)
    for entry in container.get("env", []):
        value = entry.get("value", "")
        if "valueFrom" in entry:
            value = _from(store, pod, entry["valueFrom"])
        made[entry["name"]] = _expand(value, made)
    mapped = {name: _local(pod, value) for name, value in made.items()}
    if mapped.get("MASTER_ADDR") != made.get("MASTER_ADDR"):
        labels, prefix = meta.get("labels", {}), "jobset.sigs.k8s.io/"
        group = f"{labels.get(prefix + 'jobset-uid')} {labels.get(prefix + 'restart-attempt')}"
        mapped["MASTER_PORT"] = str(ports.setdefault(group, _free_port()))
    return mapped


def _table(store: Store, pod: Object, source: Object) -> dict[str, str]:
    kind, part = ("Secret", "secretRef") if "secretRef" in source else ("ConfigMap", "configMapRef")
    found = store.get(kind, pod["metadata"]["namespace"], source[part]["name"])
    if found is None and not source[part].get("optional"):
        raise LookupError(f'{kind.lower()} "{source[part]["name"]}" not found')
    return _plain(found or {})


def _from(store: Store, pod: Object, source: Object) -> str:
    if "fieldRef" in source:
        path = source["fieldRef"]["fieldPath"]
        if match := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
            return str(pod["metadata"].get(match[1], {}).get(match[2], ""))
        value = {"status.podIP": _address(pod), "status.hostIP": "127.0.0.1"}.get(path)
        part, _, field = path.partition(".")
        return value or str(pod[part][field])
    part = "secretKeyRef" if "secretKeyRef" in source else "configMapKeyRef"
    table = _table(store, pod, {part.replace("Key", ""): source[part]})
    if source[part]["key"] not in table and not source[part].get("optional"):
        raise LookupError(f"couldn't find key {source[part]['key']} in {source[part]['name']}")
    return table.get(source[part]["key"], "")


def _plain(found: Object) -> dict[str, str]:
    given = found.get("data", {})
    if found.get("kind") == "Secret":
        given = {key: base64.b64decode(value).decode() for key, value in given.items()}
    return {**given, **found.get("stringData", {})}


def _expand(text: str, variables: dict[str, str]) -> str:
    return re.sub(r"\$\((\w+)\)", lambda match: variables.get(match[1], match[0]), text)


def _local(pod: Object, text: str) -> str:
    """Host names below the pod's subdomain become addresses of this machine, each its own."""
    if not (subdomain := pod["spec"].get("subdomain")):
        return text
    zone = rf"\.{re.escape(pod['metadata']['namespace'])}(\.svc(\.cluster\.local)?)?"
    host = rf"(?<![\w.-])[a-z0-9-]+\.{re.escape(subdomain)}({zone})?(?![\w-]|\.\w)"
    return re.sub(host, lambda match: _loopback(match[0].partition(".")[0]), text)


def _address(pod: Object) -> str:
    """Where the pod's name leads to."""
    spec = pod["spec"]
    return _loopback(spec["hostname"]) if "subdomain" in spec else "127.0.0.1"


def _loopback(hostname: str) -> str:
    """An address that no cluster of another process gives a pod of this name."""
    digest = hashlib.sha256(f"{os.getpid()} {hostname}".encode()).digest()
    return "127." + ".".join(map(str, digest[:3]))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
