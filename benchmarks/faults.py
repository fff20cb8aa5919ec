"""Faults of an asynchronous climb: `python benchmarks/faults.py`; the smoke recipe's model.

Processes are killed with SIGKILL in the middle of a climb: what is lost, what is done again, and
how long it takes until the next gradient step. The climb's learner and controller are one process;
its engine is a child server of its own, or two named servers. A killed climb is asked for again at
once, as a launcher does.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from hillclimb.artifacts import Artifact, Store
from hillclimb.experiments import Experiment
from hillclimb.rl.curriculum import PromptQueue
from hillclimb.stages.context import Context
from hillclimb.stages.problems import read_problems
from hillclimb.stages.reporting import SilentReporter
from hillclimb.stages.request import Request
from hillclimb.stages.tables import read_rows

NAME, STEPS = "stem/round_0/climb", 24
CHANGES = (
    "specialists.stem.climbs.0.staleness={steps_per_update: 2, max_updates: 8, ahead: 1}",
    f"specialists.stem.climbs.0.lengths=[{{max_tokens: 48, steps: {STEPS}}}]",
)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Fault:
    """What is killed once `steps` were made, and on how many named servers the climb draws."""

    name: str
    climb: bool
    engines: int
    servers: int = 0


FAULTS = (
    Fault("nothing", False, 0),
    Fault("controller and learner", True, 0),
    Fault("its engine", False, 1),
    Fault("controller, learner and engine", True, 1),
    Fault("one of two servers", False, 1, 2),
    Fault("all: climb and both servers", True, 2, 2),
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="the fault of this name")
    parser.add_argument("--root", help="of a machine whose smoke base is made, or is made here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        request = prepare(args.root or f"{folder}/root")
        print("| killed | lost | counted twice | steps again | prompts again | goes on after |")
        print("|---|---:|---:|---:|---:|---:|")
        for number, fault in enumerate(FAULTS):
            if args.only in (None, fault.name):
                print(Trial(request, Path(folder) / f"trial-{number}", fault).run(), flush=True)


def prepare(root: str) -> Request:
    """The climb's request; its inputs are made where they are not there."""
    plan = Experiment.make("smoke", 0, "faults", CHANGES).plan()
    command = [str(Path(sys.executable).parent / "hillclimb"), "climb", "--recipe", "smoke"]
    for name in ("mai_base_256k", "stem_problems"):
        subprocess.run(
            [*command, "--root", root, "--select", name], check=True, env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
    return plan.request(NAME, Store(root))


class Trial:
    """One climb and its fault."""

    def __init__(self, request: Request, folder: Path, fault: Fault) -> None:
        folder.mkdir()
        self.folder, self.fault = folder, fault
        self.request = request.model_copy(update={"output": str(folder / "out")})
        (folder / "request.json").write_text(self.request.model_dump_json())
        self.environment = dict(ENVIRONMENT)

    def run(self) -> str:
        """A row of the table."""
        with ExitStack() as stack:
            ports = [0] * self.fault.servers
            servers = [self._server(stack, port) for port in ports]
            urls = [url for _, url in servers]
            if urls:
                self.environment["HILLCLIMB_ROLLOUT_SERVERS"] = ",".join(urls)
            climb = self._climb(stack)
            if self.fault.climb or self.fault.engines:
                self._wait(climb, STEPS // 2)
                engines = [server.pid for server, _ in servers] or [self._child(climb)]
                at, before = time.time(), len(self._steps())
                if self.fault.climb:
                    climb.kill()
                for pid in engines[: self.fault.engines]:
                    os.kill(pid, signal.SIGKILL)
                if self.fault.climb:
                    climb.wait()
                for server, url in servers[: self.fault.engines]:
                    server.wait()
                    self._server(stack, int(url.rsplit(":", 1)[1]))
                climb = self._climb(stack) if self.fault.climb else climb
                self._wait(climb, before + 1)
                went_on = self._steps()[before][1] - at
            else:
                went_on = 0.0
            if climb.wait():
                raise RuntimeError((self.folder / "log.txt").read_text()[-3000:])
        return self._row(went_on)

    def _server(self, stack: ExitStack, port: int) -> tuple[subprocess.Popen[str], str]:
        start = self.request.inputs["checkpoint"]
        process = subprocess.Popen(
            [sys.executable, "-m", "hillclimb.rollout.server", "--checkpoint", start.uri,
             "--fingerprint", start.fingerprint, "--host", "127.0.0.1", "--port", str(port)],
            stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
        )  # fmt: skip
        stack.callback(process.kill)
        assert process.stdout is not None
        if port:
            return process, ""
        return process, f"http://{process.stdout.readline().split()[-1]}"

    def _climb(self, stack: ExitStack) -> subprocess.Popen[bytes]:
        with open(self.folder / "log.txt", "a") as log:
            words = ["climb", "--request", str(self.folder / "request.json")]
            process = subprocess.Popen(
                [sys.executable, "-m", "hillclimb.stages", *words],
                stdout=log, stderr=log, env=self.environment,
            )  # fmt: skip
        stack.callback(process.kill)
        return process

    def _child(self, climb: subprocess.Popen[bytes]) -> int:
        """The process id of the climb's own engine."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            words = path.read_bytes().split(b"\0")
            if b"--owner" in words and str(climb.pid).encode() in words:
                return int(path.parent.name)
        raise RuntimeError("the climb has no engine of its own")

    def _messages(self) -> list[dict]:
        path = self.folder / "messages.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [json.loads(line)["params"] for line in lines]
        return [params["payload"] for params in found if params and "payload" in params]

    def _steps(self) -> list[tuple[int, float]]:
        """Steps that were reported, by all attempts, and when."""
        return [(m["step"], m["at"]) for m in self._messages() if m["type"] == "metrics"]

    def _wait(self, climb: subprocess.Popen[bytes], steps: int) -> None:
        while len(self._steps()) < steps:
            if climb.poll() is not None and len(self._steps()) < steps:
                log = (self.folder / "log.txt").read_text()[-3000:]
                raise RuntimeError(f"the climb ended with {climb.returncode}: {log}")
            time.sleep(0.02)

    def _row(self, went_on: float) -> str:
        lost, twice = self._accounts()
        steps = [step for step, _ in self._steps()]
        again = sum(count - 1 for count in Counter(steps).values())
        notes = [m["message"] for m in self._messages() if m["type"] == "note"]
        flying = [note.rsplit(": ", 1)[1] for note in notes if "drawn again" in note]
        after = f"{went_on:.1f} s" if went_on else "–"
        cells = [self.fault.name, lost, twice, again, " ".join(flying) or 0, after]
        return f"| {' | '.join(map(str, cells))} |"

    def _accounts(self) -> tuple[int, int]:
        """Prompts and kept groups that are missing, and that are there too often."""
        climb = Artifact(self.request.output)
        metrics, rows = climb.manifest.metrics, climb.read_text("metrics.jsonl").splitlines()
        steps = [json.loads(row) for row in rows]
        groups = {(r["update"], r["group"]): r for r in read_rows(climb, "rollouts/*.parquet")}
        problems = read_problems(Context(self.request, SilentReporter()), "stem_problems", "train")
        queue = PromptQueue({"stem": len(problems)}, {"stem": 1.0}, self.request.seed or 0)
        prompts = queue.take(int(metrics["prompts"]))
        taken = Counter(problems[index].id for _, index in prompts)
        ended = Counter(group["problem_id"] for group in groups.values())
        stale = sum({row["update"]: row["groups_stale"] for row in steps}.values())
        kept = sum(group["status"] == "trained" for group in groups.values())
        learnt = sum(row["groups_learned"] for row in steps) + stale + metrics["groups_left"]
        missing = (taken - ended).total() - int(metrics["prompts_let_go"])
        return missing + max(0, int(kept - learnt)), (ended - taken).total() + max(
            0, int(learnt - kept)
        )


if __name__ == "__main__":
    main()
