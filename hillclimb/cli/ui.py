"""`hillclimb ui`: Dagster and MLflow on loopback, over everything under a root."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from rich.console import Console

from hillclimb.cli.failures import Exit, Failure
from hillclimb.dagster_runs import Runs, home
from hillclimb.tracking import default_uri

HOST = "127.0.0.1"
WORKSPACE = """\
load_from:
  - python_module:
      module_name: hillclimb.definitions
      location_name: hillclimb
"""
_START_S, _GRACE_S = 180.0, 15.0


def serve(console: Console, root: Path, port: int, mlflow_port: int) -> None:
    """Run both until Ctrl-C or SIGTERM.

    Raises:
        Failure: if a server does not come up or ends by itself; the message names its log.
    """
    root = root.resolve()
    commands = _commands(root, port, mlflow_port)
    Runs(root)  # makes Dagster's databases before several processes open them
    logs = root / "ui"
    logs.mkdir(parents=True, exist_ok=True)
    running: dict[str, subprocess.Popen[bytes]] = {}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for name, command in commands.items():
            running[name] = _start(command, root, logs / f"{name}.log")
        console.print(f"starting; logs are under {logs}", style="dim", soft_wrap=True)
        _await(running, logs, f"http://{HOST}:{port}/server_info")
        console.print(f"Dagster  http://{HOST}:{port}")
        if "mlflow" in running:
            _await(running, logs, f"http://{HOST}:{mlflow_port}/health")
            console.print(f"MLflow   http://{HOST}:{mlflow_port}")
        else:
            console.print(f"MLflow   {default_uri(root)}")
        console.print("Ctrl-C ends both", style="dim")
        while True:
            _require_alive(running, logs)
            time.sleep(0.5)
    except KeyboardInterrupt:
        console.print("stopping", style="dim")
    finally:
        _stop(list(running.values()))


def _commands(root: Path, port: int, mlflow_port: int) -> dict[str, list[str]]:
    folder = home(root)
    workspace = folder / "workspace.yaml"
    workspace.write_text(WORKSPACE)
    listen = ["-h", HOST, "-p", str(port), "-w", str(workspace)]
    commands = {
        "dagster": [_program("dagster-webserver"), *listen],
        "daemon": [_program("dagster-daemon"), "run", "-w", str(workspace)],
    }
    uri = default_uri(root)
    if not uri.startswith("http"):
        options = ["--backend-store-uri", uri, "--host", HOST, "--port", str(mlflow_port)]
        commands["mlflow"] = [_program("mlflow"), "server", *options, "--workers", "1"]
    return commands


def _program(name: str) -> str:
    """The program of this environment.

    Raises:
        Failure: if it is not installed.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise Failure(f"{name} is not installed beside {sys.executable}", Exit.MACHINE)
    return found


def _start(command: list[str], root: Path, log: Path) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(home(root)),
        "HILLCLIMB_ROOT": str(root),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with log.open("wb") as stream:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _await(running: dict[str, subprocess.Popen[bytes]], logs: Path, url: str) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until:
        _require_alive(running, logs)
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.3)
    raise Failure(f"{url} did not answer in {_START_S:.0f} s; see {logs}", Exit.WRONG)


def _require_alive(running: dict[str, subprocess.Popen[bytes]], logs: Path) -> None:
    for name, process in running.items():
        if process.poll() is not None:
            log = logs / f"{name}.log"
            tail = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no output"]
            raise Failure(f"{name} ended by itself ({tail[0]}); see {log}", Exit.WRONG)


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    for how in (signal.SIGINT, signal.SIGKILL):
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, how)
        until = time.monotonic() + _GRACE_S
        while time.monotonic() < until and any(p.poll() is None for p in processes):
            time.sleep(0.1)
