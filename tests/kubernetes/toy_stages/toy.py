"""A stage that counts with a checkpoint each step, waits at gates, and ends as it is told to."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from pathlib import Path
from typing import Any

from hillclimb.stages.context import Context
from hillclimb.stages.process import Terminated

BEAT = 0.02


def make_toy(context: Context) -> None:
    """Count to `steps`; its artifact holds one line a step, however often it was taken away.

    The config may name gates, files that the stage waits for: `gate` at the step `at`, and
    `last_gate` after the commit. `do` says what else happens at the step `at`, `dying` how many
    seconds it takes to end once it is told to.
    """
    lines = resumed(context)
    links = meet(context)
    try:
        count(context, lines, links)
    except Terminated:
        for link in links:
            link.close()
        time.sleep(context.config.get("dying", 0.0))
        raise


def count(context: Context, lines: list[str], links: list[socket.socket]) -> None:
    """The work itself, from the last checkpoint's lines on."""
    config = context.config
    for step in range(len(lines), config["steps"]):
        lines.append(f"{step * step}\n")
        if context.rank == 0:
            context.reporter.metrics({"square": float(step * step)}, step)
            context.out.write_text("resume/lines", "".join(lines))
        if step == config.get("at"):
            act(context, config.get("do", ""))
            wait_for(config.get("gate", ""), links)
    if context.rank == 0:
        context.out.write_text("out.txt", "".join(lines))
        context.commit({"steps": float(len(lines))})
    wait_for(config.get("last_gate", ""), links)


def act(context: Context, what: str) -> None:
    """What a stage may do to itself."""
    if what == "refuse":
        raise ValueError("steps is 3: give it more")
    if what == "fail":
        raise RuntimeError("the disk is on fire")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    once = Path(context.out.path("failed"))
    if what == "fail once" and context.rank == context.request.ranks - 1 and not once.exists():
        once.touch()
        raise RuntimeError("the disk is on fire")


def meet(context: Context) -> list[socket.socket]:
    """Connect the ranks where the launcher says: every other one to the first."""
    others = context.request.ranks - 1
    if not others:
        return []
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if context.rank:
        link = _connected(place)
        link.sendall(bytes([context.rank]))
        return [link]
    with socket.create_server(place) as server:
        server.settimeout(60)
        links = [server.accept()[0] for _ in range(others)]
    met = sorted(link.recv(1)[0] for link in links)
    context.reporter.log(f"rank 0 met ranks {met}")
    return links


def _connected(place: tuple[str, int]) -> socket.socket:
    until = time.monotonic() + 60
    while True:
        try:
            return socket.create_connection(place)
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(BEAT)


def wait_for(gate: str, links: list[socket.socket]) -> None:
    """Until the file is there; fails as a collective does when a peer is gone."""
    while gate and not os.path.exists(gate):
        for link in select.select(links, [], [], 0)[0]:
            if not link.recv(1):
                raise RuntimeError("connection closed by peer")
        time.sleep(BEAT)


def resumed(context: Context) -> list[str]:
    """The lines of the last checkpoint."""
    if not context.out.exists("resume/lines"):
        return []
    return context.out.read_text("resume/lines").splitlines(keepends=True)


def expected(config: dict[str, Any]) -> str:
    """What the artifact must hold in the end."""
    return "".join(f"{step * step}\n" for step in range(config["steps"]))
