"""The programs of rendered workloads as processes of this machine."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from k8s_documents import Object
from k8s_pods import pods
from k8s_references import of_kind

BINARIES = Path(sys.executable).parent
Secrets = Mapping[str, Mapping[str, str]]


def container(objects: Sequence[Object], workload: str, name: str) -> Object:
    """A container of a workload."""
    (pod,) = (pod for pod in pods(objects) if pod.owner["metadata"]["name"] == workload)
    (found,) = (c for c in pod.containers if c["name"] == name)
    return found


def environment(objects: Sequence[Object], part: Object, secrets: Secrets) -> dict[str, str]:
    """What a container gets from ConfigMaps, from Secrets and by itself, in Kubernetes' order."""
    maps, values = of_kind(objects, "ConfigMap"), dict[str, str]()
    for source in part.get("envFrom", ()):
        if "configMapRef" in source:
            values |= maps[source["configMapRef"]["name"]]["data"]
        else:
            values |= secrets[source["secretRef"]["name"]]
    return values | {variable["name"]: variable["value"] for variable in part.get("env", ())}


def command(part: Object, values: Mapping[str, str], port: int = 0) -> list[str]:
    """What a container runs, its variables filled in, its port changed to one that is free here."""
    words = [
        re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], word)
        for word in [*part.get("command", ()), *part.get("args", ())]
    ]
    if port:
        words[words.index("--port") + 1] = str(port)
    return [str(BINARIES / words[0]), *words[1:]]


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def surroundings(values: Mapping[str, str]) -> dict[str, str]:
    """A container's variables and the few that any process here has."""
    path = f"{BINARIES}:{os.environ['PATH']}"
    return {"PATH": path, "OMP_NUM_THREADS": "1", **values}


@contextmanager
def running(argv: Sequence[str], values: Mapping[str, str], folder: Path) -> Iterator[Path]:
    """The program in an empty working folder, ended at the end; gives the path of its output."""
    log = folder / f"{Path(argv[0]).name}-{free_port()}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, env=surroundings(values), cwd=folder, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield log
    finally:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
