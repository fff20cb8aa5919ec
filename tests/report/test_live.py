"""The live page over a climb that is really running, and over hostile text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request as Asked
from urllib.request import urlopen

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_experiment import HOSTILE, Maker, recipe, tokens_of

from hillclimb.artifacts import Store
from hillclimb.recipe.graph import identify, stage_specs
from hillclimb.report.live import LiveClimbs
from hillclimb.report.live_server import LiveServer
from hillclimb.report.told import Listener

sys.path.insert(0, str(Path(__file__).parent.parent / "rl"))
import climb_process

NAME = "stem/round_0/climb"
FINGERPRINT = identify(stage_specs(recipe()))[NAME]


@contextmanager
def serving(root: Path) -> Iterator[LiveServer]:
    with LiveServer(LiveClimbs(str(root), recipe(), 0), 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def get(server: LiveServer, path: str, host: str | None = None) -> tuple[int, Any, str]:
    headers = {"Host": host} if host else {}
    try:
        with urlopen(Asked(server.url + path, headers=headers), timeout=20) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except HTTPError as error:
        return error.code, error.headers, error.read().decode()


def state(server: LiveServer) -> dict[str, Any]:
    return dict(json.loads(get(server, "state")[2]))


def until(check: Callable[[], Any], seconds: float = 120.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, "it did not get there in time"
        time.sleep(0.1)
    return found


def attempt(root: Path, number: int = 1) -> Path:
    folder = root / "runs" / NAME / FINGERPRINT[:16] / f"attempt-{number}"
    folder.mkdir(parents=True)
    return folder


def said(type_: str, **fields: Any) -> str:
    payload = {"type": type_, "at": 1e9, **fields}
    return json.dumps({"method": "report_custom_message", "params": {"payload": payload}}) + "\n"


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The root of a tiny climb in a process of its own."""
    changes = {"staleness": {"steps_per_update": 2, "ahead": 0},
               "lengths": [{"max_tokens": 24, "steps": 4000}]}  # fmt: skip
    monkeypatch.setattr(climb_process, "RECIPE", {**climb_process.RECIPE, **changes})
    made = tmp_path / "made"
    made.mkdir()
    request = json.loads(climb_process.write_request(made).read_text())
    root = tmp_path / "root"
    output = Store(str(root)).uri(NAME, FINGERPRINT)
    path = attempt(root) / "request.json"
    path.write_text(json.dumps({**request, "fingerprint": FINGERPRINT, "output": output}))
    words = [sys.executable, "-m", "hillclimb.stages", "climb", "--request", str(path)]
    with open(tmp_path / "log.txt", "w") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(words, stdout=log, stderr=log, env=environment)
    try:
        yield root
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow("a climb in a process, and a browser")
def test_a_running_climb_is_shown_and_goes_on_by_itself(running: Path, browser: Any) -> None:
    with serving(running) as server:
        browser.get(server.url)
        run = browser.execute_script
        until(lambda: "No climb has begun" in run("return document.body.innerText"))
        run("window.loaded = 1")
        until(lambda: run("return document.querySelectorAll('#figures figure').length") == 12)
        said_first = run("return document.getElementById('state').innerText")
        assert "going on" in said_first
        numbers = run("return document.getElementById('numbers').innerText")
        for name in ("tokens/s sampled", "tokens/s learnt", "learner waited", "age", "mismatch"):
            assert name in numbers
        until(lambda: run("return document.getElementById('state').innerText") != said_first)
        assert run("return window.loaded") == 1

        until(lambda: run("return document.querySelectorAll('.ro-open').length"))
        run("document.querySelector('.ro-open').click()")
        until(lambda: run("return document.querySelectorAll('#ro-detail .k[data-at]').length"))
        told = run("return document.querySelector('.tok-told').innerText")
        assert "gap" in told
        assert "engine" in told
        assert "learner" in told
        assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []
        rows = [json.loads(line) for line in _messages(running) if '"metrics", "at"' in line]
        assert len(rows) >= 4


def _messages(root: Path) -> list[str]:
    return next(root.glob("runs/**/messages.jsonl")).read_text().splitlines()


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A root whose climb says hostile things everywhere."""
    Maker(str(tmp_path), recipe()).make()
    out = Path(Store(str(tmp_path)).uri(NAME, FINGERPRINT))
    row = pq.read_table(out / "rollouts/part-00001.parquet").slice(0, 1).to_pylist()[0]
    row |= {"update": 2, "group": 0, "sample": 0, "response": HOSTILE, "reason": HOSTILE,
            "prompt": HOSTILE, "kind": HOSTILE, "status": "trained", "graded": True,
            "canary": HOSTILE, "reward": float("nan")}  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row]), out / "rollouts/part-00002.parquet")
    tokens = {**tokens_of(row), "pieces": [HOSTILE] * len(tokens_of(row)["pieces"])}
    pq.write_table(pa.Table.from_pylist([tokens]), out / "tokens/part-00002.parquet")
    lines = (out / "metrics.jsonl").read_text().splitlines()
    told = [said("metrics", step=json.loads(line)["step"], values=json.loads(line))
            for line in lines]  # fmt: skip
    (out / "manifest.json").rename(out / "manifest.gone")
    (attempt(tmp_path) / "messages.jsonl").write_text(
        "".join([json.dumps({"method": "opened"}) + "\n", *told, said("note", message=HOSTILE),
                 said("progress", done=7, total=9, note=HOSTILE), said("error", message=HOSTILE)])
    )  # fmt: skip
    return tmp_path


def test_hostile_text_is_inert(hostile: Path, browser: Any) -> None:
    with serving(hostile) as server:
        told = state(server)
        for part in (told["state"], told["numbers"], told["alarms"], *told["figures"]):
            assert "<script" not in part
            assert "<img" not in part
        browser.get(server.url)
        run = browser.execute_script
        until(lambda: run("return document.querySelectorAll('.ro-open').length"))
        run("document.querySelector('.ro-open').click()")
        until(lambda: run("return document.querySelectorAll('#ro-detail .k[data-at]').length"))
        assert HOSTILE in run("return document.getElementById('ro-detail').textContent")
        assert HOSTILE in run("return document.getElementById('state').textContent")
        assert run("return window.hacked") is None
        assert run("return document.images.length + document.scripts.length") == 1
        assert browser.get_log("browser") == []


def test_the_server_asks_and_answers_nobody_else(hostile: Path) -> None:
    with serving(hostile) as server:
        assert server.url.startswith("http://127.0.0.1:")
        status, headers, page = get(server, "")
        assert status == 200
        policy = headers["Content-Security-Policy"]
        for rule in ("default-src 'none'", "connect-src 'self'", "script-src 'sha256-"):
            assert rule in policy
        assert "'unsafe-inline'" not in policy.partition("style-src")[0]
        assert "http://" not in page
        assert "https://" not in page
        assert get(server, "state", host="rebound.example:80")[0] == 403
        assert get(server, "elsewhere")[0] == 404
        query = {"climb": NAME, "update": 2, "group": 0, "sample": 0}
        found = json.loads(get(server, "rollout?" + urlencode(query))[2])
        assert found["reward"] is None
        assert set(found["view"]["pieces"]) == {HOSTILE}
        for wrong in ({"sample": 5}, {"climb": "../../x"}, {"update": "-1"}, {"group": "x"}):
            assert get(server, "rollout?" + urlencode({**query, **wrong}))[0] == 404


def test_a_later_attempt_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    def row(step: int, pass_rate: float) -> str:
        return said("metrics", step=step, values={"pass_rate": pass_rate})

    opened = json.dumps({"method": "opened"}) + "\n"
    first = attempt(tmp_path) / "messages.jsonl"
    first.write_text(opened + row(1, 0.1) + row(2, 0.2) + row(3, 0.3)[:20])
    listener = Listener([first.parent.parent])
    assert [r["pass_rate"] for r in listener.listen().rows] == [0.1, 0.2]
    first.write_text(opened + row(1, 0.1) + row(2, 0.2) + row(3, 0.3) + said("error", message="no"))
    assert listener.listen().error == "no"
    (attempt(tmp_path, 2) / "messages.jsonl").write_text(opened + row(2, 0.25))
    told = listener.listen()
    assert [r["pass_rate"] for r in told.rows] == [0.1, 0.25]
    assert (told.attempts, told.error) == (2, "")
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "messages.jsonl").write_text(
        opened + row(1, 0.1) + row(2, 0.2) + said("error", message="no") + opened + row(2, 0.25)
    )
    told = Listener([tmp_path / "nowhere", shared]).listen()
    assert [r["pass_rate"] for r in told.rows] == [0.1, 0.25]
    assert (told.attempts, told.error) == (2, "")
