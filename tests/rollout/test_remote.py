"""Rollout servers that refuse, fall silent, die and come back; what a climb sees of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest
import torch
from rollout_support import as_bytes, serving, tiny_network, write_checkpoint

from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.rollout.engine import Batch, SamplingParams
from hillclimb.rollout.remote import RemoteEngine
from hillclimb.rollout.server import RolloutServer, main
from hillclimb.rollout.torch_engine import TorchEngine
from hillclimb.rollout.wire import Ask, Weights, pack, unpack

PROMPTS = [[1, 2, 3], [9, 8, 7, 6, 5], [4]] * 8
PARAMS = SamplingParams(24)
FINGERPRINT = "ab" * 32


def asked(url: str, method: str, path: str, body: bytes = b"") -> tuple[int, str]:
    connection = HTTPConnection(url.removeprefix("http://"), timeout=20)
    connection.request(method, path, body)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(errors="replace")


def said_raw(url: str, head: str, header: str, body: str = "") -> str:
    """What a server says to a request that no decent client would send."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as link:
        link.sendall(f"{head} HTTP/1.1\r\n{header}\r\n\r\n{body}".encode())
        link.shutdown(socket.SHUT_WR)
        return link.makefile().read()


def ask(network: MaiForCausalLM, **changes: object) -> bytes:
    made = Ask.of(Batch([[1, 2]], 0), SamplingParams(4), Weights.of(network.state_dict(), 0))
    return json.dumps({**json.loads(made.model_dump_json()), **changes}).encode()


@pytest.fixture(scope="module")
def start() -> MaiForCausalLM:
    return tiny_network()


@pytest.fixture(scope="module")
def url(start: MaiForCausalLM) -> Iterator[str]:
    with serving(start) as where:
        yield where


def test_a_server_says_which_weights_it_holds(url, start):
    status, said = asked(url, "GET", "/health")
    weights = Weights.of(start.state_dict(), 0)
    assert (status, json.loads(said)) == (200, {"version": 0, "weights": weights.sha256})


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        ({"version": 5}, 409, "version 0 is here, not 5"),
        ({"weights": "0" * 64}, 409, "version 0"),
        ({"prompts": [[1], [2, 40]]}, 400, "prompt 1 has the token 40 of a vocabulary of 40"),
        ({"prompts": [[1], [-1]]}, 400, "prompts.1.0"),
        ({"prompts": [[1]] * 513}, 400, "512"),
        ({"temperature": 0.0}, 400, "temperature"),
        ({"path": "/etc/passwd"}, 400, "path"),
        ({"seed": "1"}, 400, "seed"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_a_sentence(url, start, changes, status, says):
    found, sentence = asked(url, "POST", "/generate", ask(start, **changes))
    assert found == status, sentence
    assert says in sentence


def test_a_broken_body_changes_nothing(url, start):
    before = asked(url, "GET", "/health")
    weights = Weights.of({k: v * 2 for k, v in start.state_dict().items()}, 1)
    place = f"/weights/1/{weights.sha256}"
    flipped = bytes([*weights.body[:-1], weights.body[-1] ^ 1])
    assert asked(url, "PUT", place, flipped)[0] == 422
    other = Weights.of({**start.state_dict(), "norm.weight": torch.ones(3)}, 1)
    status, said = asked(url, "PUT", f"/weights/1/{other.sha256}", other.body)
    assert (status, said) == (
        400, "norm.weight should be torch.float32 (96,), found torch.float32 (3,)"
    )  # fmt: skip
    assert asked(url, "PUT", f"/weights/../{weights.sha256}", b"{")[0] == 404
    assert asked(url, "POST", "/generate", b"{")[0] == 400
    assert asked(url, "POST", "/elsewhere", b"{}")[0] == 404
    assert asked(url, "GET", "/etc/passwd")[0] == 404
    for head in (f"PUT {place}", "POST /generate"):
        assert "ends after 1 of 1000 bytes" in said_raw(url, head, "Content-Length: 1000", "{")
        assert " 413 " in said_raw(url, head, f"Content-Length: {2**40}")
        assert " 411 " in said_raw(url, head, "Transfer-Encoding: chunked")
    assert asked(url, "GET", "/health") == before


def test_half_of_an_answer_is_no_answer(start):
    body = pack(TorchEngine(start).generate(PROMPTS, PARAMS, 1))
    assert as_bytes(unpack(body)) == as_bytes(TorchEngine(start).generate(PROMPTS, PARAMS, 1))
    for broken in (body[:-1], body[:40], b"", b"pickle"):
        with pytest.raises(ValueError, match="not whole"):
            unpack(broken)


def test_a_batch_that_is_refused_ends_the_call_at_once(url, start):
    engine = RemoteEngine([url], start)
    with pytest.raises(ValueError, match=r"refuses what it is sent: prompt 0 has the token 99"):
        engine.generate([[99]], PARAMS, 0)
    assert engine.generate([[9]], PARAMS, 0)
    engine.close()


def test_a_call_waits_for_servers_that_are_late(start):
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    told: list[str] = []
    engine = RemoteEngine([f"http://127.0.0.1:{port}"], start, log=told.append)
    found: list[object] = []
    call = threading.Thread(target=lambda: found.extend(engine.generate(PROMPTS, PARAMS, 1)))
    call.start()
    while not engine._replicas[0].misses:
        time.sleep(0.01)
    with serving(start, port):
        call.join()
    engine.close()
    assert as_bytes(found) == as_bytes(TorchEngine(start).generate(PROMPTS, PARAMS, 1))
    assert len(told) == 2
    assert "is away: ConnectionRefusedError" in told[0]
    assert told[1].endswith("is back")


def test_a_call_without_any_server_gives_up_and_names_them(start):
    urls = ["http://127.0.0.1:9", "http://rollout-0.nowhere.invalid:9"]
    engine = RemoteEngine(urls, start, patience=0.4, log=lambda note: None)
    with pytest.raises(RuntimeError, match="no rollout server has drawn anything") as given_up:
        engine.generate(PROMPTS, PARAMS, 1)
    assert all(where in str(given_up.value) for where in urls)
    engine.close()


@pytest.mark.parametrize("urls", [[], ["rollout-0:80"], ["https://rollout-0:80"], ["http://a"]])
def test_an_address_of_another_form_is_refused(urls, start):
    with pytest.raises(ValueError):
        RemoteEngine(urls, start)


def test_dots_keep_a_server_alive_while_it_works(start):
    told: list[str] = []
    with serving(start, beat=0.1, busy=2.5) as slow:
        engine = RemoteEngine([slow], start, silence=1, log=told.append)
        assert len(engine.generate(PROMPTS, PARAMS, 1)) == len(PROMPTS)
        engine.close()
    assert not told


def test_a_server_of_another_checkpoint_does_not_start(tmp_path, start, capsys):
    where = write_checkpoint(tmp_path / "start", start, FINGERPRINT)
    words = ["--checkpoint", where, "--port", "0", "--fingerprint"]
    assert main([*words, "cd" * 32]) == 1
    assert "has the fingerprint abababababab, not cdcdcdcdcdcd" in capsys.readouterr().err
    weights = tmp_path / "start" / "model" / "model.safetensors"
    weights.write_bytes(bytes([*weights.read_bytes()[:-1], 1]))
    assert main([*words, FINGERPRINT]) == 1
    assert "is not what was written" in capsys.readouterr().err


class Process:
    """A server as a cluster runs it: killed at any time, begun anew at the same address."""

    def __init__(self, checkpoint: str, log: Path) -> None:
        self.checkpoint, self.log, self.port = checkpoint, log, 0
        self.begin()

    def begin(self) -> None:
        self.log.write_text("")
        with self.log.open("a") as output:
            self.running = subprocess.Popen(
                [sys.executable, "-m", "hillclimb.rollout.server", "--checkpoint", self.checkpoint,
                 "--fingerprint", FINGERPRINT, "--host", "127.0.0.1", "--port", str(self.port)],
                stdout=output, stderr=output, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def wait(self, words: str = "serving at", times: int = 1) -> None:
        while self.log.read_text().count(words) < times:
            assert self.running.poll() is None, self.log.read_text()
            time.sleep(0.005)
        self.port = int(self.log.read_text().split("serving at 127.0.0.1:")[1].split()[0])

    def end(self, how: signal.Signals) -> int:
        self.running.send_signal(how)
        self.running.send_signal(signal.SIGCONT)
        return self.running.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def pair(
    start: MaiForCausalLM, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Process, Process]]:
    folder = tmp_path_factory.mktemp("servers")
    where = write_checkpoint(folder / "start", start, FINGERPRINT)
    made = Process(where, folder / "a.log"), Process(where, folder / "b.log")
    for process in made:
        process.wait()
    yield made
    for process in made:
        process.end(signal.SIGKILL)


def test_a_server_that_hangs_is_left_alone(pair, start):
    first, second = pair
    engine = RemoteEngine([first.url, second.url], start, rows=1, silence=8, log=lambda note: None)
    expected = as_bytes(engine.generate(PROMPTS[:6], PARAMS, 5))
    first.running.send_signal(signal.SIGSTOP)
    assert as_bytes(engine.generate(PROMPTS[:6], PARAMS, 5)) == expected
    assert "TimeoutError" in engine._replicas[0].why
    first.running.send_signal(signal.SIGCONT)
    engine.close()


def test_answers_do_not_depend_on_deaths(pair, start):
    """One server is killed in the middle of a call; it comes back, and then the other one goes."""
    first, second = pair
    told: list[str] = []
    engine = RemoteEngine([first.url, second.url], start, rows=1, log=told.append)
    weights = {k: v * 0.7 for k, v in start.state_dict().items()}
    engine.load_weights(weights, 3)
    alone = TorchEngine(start, batch_size=1)
    alone.load_weights(weights, 3)
    expected = as_bytes(alone.generate(PROMPTS, PARAMS, 5))

    found: list[object] = []
    call = threading.Thread(target=lambda: found.extend(engine.generate(PROMPTS, PARAMS, 5)))
    call.start()
    first.wait("drew", times=2)
    first.end(signal.SIGKILL)
    call.join()
    assert as_bytes(found) == expected
    assert [f"{first.url} is away" in note for note in told] == [True]

    first.begin()
    first.wait()
    assert second.end(signal.SIGTERM) == 143, "a Job brings back only what failed"
    assert as_bytes(engine.generate(PROMPTS, PARAMS, 5)) == expected
    assert "took the weights of version 3" in first.log.read_text()
    assert first.log.read_text().count("drew") == len(PROMPTS)
    assert any(f"{first.url} is back" in note for note in told)
    engine.close()


def test_a_port_that_is_taken_is_what_a_second_server_tells_of():
    network = tiny_network()
    with (
        RolloutServer(("127.0.0.1", 0), network) as first,
        pytest.raises(OSError, match="already in use"),
    ):
        RolloutServer(("127.0.0.1", first.server_address[1]), network)
