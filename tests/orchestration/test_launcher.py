"""Stages as real processes: made once, attached to, cancelled, resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hillclimb.artifacts import Artifact
from hillclimb.artifacts.fingerprint import code_version
from hillclimb.launcher import Handle, LocalLauncher, Outcome, State, records
from hillclimb.recipe.graph import CODE
from hillclimb.stages.request import Request

HERE = Path(__file__).parent
TOYS = [sys.executable, str(HERE / "nursery_with_toys.py")]


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[LocalLauncher]:
    made = LocalLauncher(tmp_path / "runs", TOYS, fork=True)
    yield made
    made.close()


def toy(root: Path, name: str, ranks: int = 1, **config: Any) -> Request:
    return Request(
        name=name,
        kind="toy",
        output=f"{root}/artifacts/{name}/f",
        fingerprint="f" * 64,
        code_version="1",
        seed=0,
        inputs={},
        config={"steps": 3, **config},
        ranks=ranks,
    )


def wait(launcher: LocalLauncher, handle: Handle) -> Outcome:
    until = time.monotonic() + 30
    while not (outcome := launcher.poll(handle)).ended:
        assert time.monotonic() < until, "the stage does not end"
        time.sleep(0.01)
    return outcome


def until(probe: Callable[[], Any], seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while not (found := probe()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
    return found


def test_a_stage_is_made_and_tells_its_story(launcher: LocalLauncher, tmp_path: Path) -> None:
    handle = launcher.submit(toy(tmp_path, "deep/down"))
    assert wait(launcher, handle).state is State.DONE
    messages, offset = launcher.messages(handle, 0)
    assert [m["method"] for m in messages][:1] == ["opened"]
    assert [m["method"] for m in messages][-2:] == ["report_asset_materialization", "closed"]
    reported = messages[-2]["params"]
    assert reported["asset_key"] == "deep/down"
    assert reported["data_version"] == "f" * 64
    steps = [
        m["params"]["payload"]["step"]
        for m in messages
        if m["method"] == "report_custom_message" and m["params"]["payload"]["type"] == "metrics"
    ]
    assert steps == [0, 1, 2]
    assert launcher.messages(handle, offset) == ([], offset)
    assert not list((tmp_path / "artifacts").rglob("*.lock"))


def test_half_a_line_is_not_a_message(launcher: LocalLauncher, tmp_path: Path) -> None:
    (tmp_path / "messages.jsonl").write_text('{"a": 1}\n{"b"')
    handle = Handle("x", str(tmp_path))
    assert launcher.messages(handle, 0) == ([{"a": 1}], 9)
    with (tmp_path / "messages.jsonl").open("a") as stream:
        stream.write(": 2}\n")
    assert launcher.messages(handle, 9) == ([{"b": 2}], 18)


def test_what_is_made_is_not_made_again(launcher: LocalLauncher, tmp_path: Path) -> None:
    request = toy(tmp_path, "a")
    wait(launcher, launcher.submit(request))
    before = (tmp_path / "artifacts/a/f/manifest.json").stat().st_mtime_ns
    second = launcher.submit(request)
    assert wait(launcher, second).state is State.DONE
    assert (tmp_path / "artifacts/a/f/manifest.json").stat().st_mtime_ns == before
    assert "already made" in (Path(second.where) / "log.txt").read_text()


def test_asking_twice_attaches(launcher: LocalLauncher, tmp_path: Path) -> None:
    request = toy(tmp_path, "a", seconds=0.1)
    first = launcher.submit(request)
    other = LocalLauncher(tmp_path / "runs", TOYS)
    assert other.submit(request) == first
    assert wait(other, first).state is State.DONE
    assert len(records.attempts(Path(first.where).parent)) == 1


def test_two_processes_never_make_the_same_output(launcher: LocalLauncher, tmp_path: Path) -> None:
    request = toy(tmp_path, "a", seconds=0.2)
    handle = launcher.submit(request)
    elsewhere = LocalLauncher(tmp_path / "other-runs", TOYS)
    outcome = wait(elsewhere, elsewhere.submit(request))
    assert outcome.code == 75
    pid = records.alive(Path(handle.where))
    assert f"process {pid} is making" in outcome.reason
    assert wait(launcher, handle).state is State.DONE


@pytest.mark.parametrize(
    ("do", "code", "sentence", "resumable"),
    [
        ("refuse", 2, "steps is 3: give it more", False),
        ("fail", 1, "RuntimeError: the disk is on fire", True),
    ],
)
def test_a_failure_is_one_sentence(
    launcher: LocalLauncher, tmp_path: Path, do: str, code: int, sentence: str, resumable: bool
) -> None:
    handle = launcher.submit(toy(tmp_path, "a", at=1, do=do))
    outcome = wait(launcher, handle)
    assert (outcome.state, outcome.code) == (State.FAILED, code)
    assert outcome.reason == sentence
    assert outcome.resumable is resumable
    assert "Traceback" in (Path(handle.where) / "log.txt").read_text()


def test_a_killed_stage_goes_on_from_its_checkpoint(
    launcher: LocalLauncher, tmp_path: Path
) -> None:
    request = toy(tmp_path, "a", at=1, do="die")
    outcome = wait(launcher, launcher.submit(request))
    assert outcome.resumable
    assert "killed by SIGKILL" in outcome.reason
    again = launcher.submit(request)
    assert again.where.endswith("attempt-2")
    assert wait(launcher, again).state is State.DONE
    assert Artifact(request.output).manifest.metrics["resumed_at"] == 2


def test_cancel_ends_the_process(launcher: LocalLauncher, tmp_path: Path) -> None:
    handle = launcher.submit(toy(tmp_path, "a", steps=1000, seconds=0.1))
    pid = records.alive(Path(handle.where))
    until(lambda: (Path(handle.where) / "messages.jsonl").exists())
    launcher.cancel(handle)
    assert pid is not None
    assert records.started(pid) is None
    outcome = wait(launcher, handle)
    assert (outcome.state, outcome.code) == (State.STOPPED, 143)
    assert not outcome.resumable


def test_sigterm_from_elsewhere_is_no_cancel(launcher: LocalLauncher, tmp_path: Path) -> None:
    handle = launcher.submit(toy(tmp_path, "a", steps=1000, seconds=0.1))
    until(lambda: launcher.messages(handle, 0)[1])
    os.kill(records.alive(Path(handle.where)) or 0, signal.SIGTERM)
    outcome = wait(launcher, handle)
    assert (outcome.state, outcome.code) == (State.FAILED, 143)
    assert outcome.resumable


def test_ranks_run_together_and_only_the_first_speaks(
    launcher: LocalLauncher, tmp_path: Path
) -> None:
    request = toy(tmp_path, "a", ranks=2)
    handle = launcher.submit(request)
    assert wait(launcher, handle).state is State.DONE
    assert Artifact(request.output).json("out.txt") == 2
    messages, _ = launcher.messages(handle, 0)
    assert sum(m["method"] == "opened" for m in messages) == 1


def test_one_lost_rank_ends_all(launcher: LocalLauncher, tmp_path: Path) -> None:
    request = toy(tmp_path, "a", ranks=2, steps=1000, seconds=0.05, at=1, do="lose a rank")
    handle = launcher.submit(request)
    outcome = wait(launcher, handle)
    assert outcome.state is State.FAILED
    assert "SIGKILL" in outcome.reason
    assert "rank 1 ended" in (Path(handle.where) / "log.txt").read_text()
    assert not _living(handle)


def test_killing_the_watcher_kills_its_ranks(launcher: LocalLauncher, tmp_path: Path) -> None:
    handle = launcher.submit(toy(tmp_path, "a", ranks=2, steps=1000, seconds=0.05))
    until(lambda: len(_living(handle)) == 3)
    os.kill(records.alive(Path(handle.where)) or 0, signal.SIGKILL)
    wait(launcher, handle)
    until(lambda: not _living(handle))


def _living(handle: Handle) -> list[int]:
    """Processes of the attempt's session."""
    session = (records.read_json(Path(handle.where) / "process.json") or {})["pid"]
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and records.started(int(entry.name)):
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session:
                found.append(int(entry.name))
    return found


def test_a_stage_outlives_a_killed_orchestrator(tmp_path: Path) -> None:
    request = toy(tmp_path, "a", steps=40, seconds=0.05)
    (tmp_path / "request.json").write_text(request.model_dump_json())
    code = (
        "import sys, time; from pathlib import Path\n"
        "from hillclimb.launcher import LocalLauncher\n"
        "from hillclimb.stages.request import Request\n"
        f"l = LocalLauncher(Path({str(tmp_path)!r}) / 'runs', {TOYS!r})\n"
        f"l.submit(Request.read({str(tmp_path / 'request.json')!r}))\n"
        "print('on its way', flush=True); time.sleep(60)"
    )
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert first.stdout
    assert first.stdout.readline() == b"on its way\n"
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = LocalLauncher(tmp_path / "runs", TOYS)
    handle = second.submit(request)
    assert second.poll(handle).state is State.RUNNING
    assert wait(second, handle).state is State.DONE
    assert len(records.attempts(Path(handle.where).parent)) == 1
    assert Artifact(request.output).manifest.metrics["resumed_at"] == 0


def test_without_forking_a_fresh_interpreter_makes_it(tmp_path: Path) -> None:
    launcher = LocalLauncher(tmp_path / "runs", TOYS, fork=False)
    code = code_version(CODE["ai_text_detector"])
    changed = {"kind": "ai_text_detector", "code_version": code}
    request = toy(tmp_path, "a").model_copy(update=changed)
    handle = launcher.submit(request)
    assert wait(launcher, handle).state is State.DONE
    assert Artifact(request.output).manifest.kind == "ai_text_detector"
    launcher.close()


def test_the_command_line_refuses_a_bad_request(tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    path.write_text('{"name": "x"}')
    command = [sys.executable, "-m", "hillclimb.stages", "problems", "--request", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert str(path) in done.stderr
    assert "fingerprint" in done.stderr
