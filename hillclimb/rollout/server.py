"""A rollout server: the in-process engine over HTTP, for a climb on another machine.

    python -m hillclimb.rollout.server --checkpoint URI --fingerprint HEX --port 29600

It computes on the CPUs of its machine. It answers once it has loaded the climb's start:

    GET  /health                      200; which weights it holds
    PUT  /weights/<version>/<sha256>  take these weights, safetensors of the start's shapes
    PUT  /shared-weights/<v>/<sha256> a child: the same, from its owner's `SharedBuffer` as JSON
    POST /generate                    draw one batch (`wire.Ask`); 409 where it holds other weights
    POST /interrupt                   200; batches that are accepted by now come back as they are

What the second and the third accept they answer 200 at once, with a dot every few seconds while
they work or wait for their turn, so that silence means death; then `=` and the result, or `!` and
a sentence.

Whoever reaches the port can use the server: on a cluster a NetworkPolicy lets in the pods of
stages alone. What arrives is bounded in size and runs no code, and no path comes from the network.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from types import FrameType
from typing import cast

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from hillclimb.artifacts import Artifact, ArtifactError
from hillclimb.model.folder import MODEL, read_network
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.rollout.engine import RolloutEngine, undrawn
from hillclimb.rollout.replicas import UNREACHED
from hillclimb.rollout.shared_weights import PLACE, opened
from hillclimb.rollout.soundness import unshared
from hillclimb.rollout.torch_engine import TorchEngine
from hillclimb.rollout.wire import Ask, Weights, pack

MAX_ASK = 256 * 2**20
MAX_TABLE = 2**20
BEAT = 5.0
TERMINATED = 128 + signal.SIGTERM
_PR_SET_PDEATHSIG = 1


class Refused(Exception):
    """A request that is not carried out, with the HTTP status that says why."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class RolloutServer(ThreadingHTTPServer):
    """One engine; its calls run one after the other, or `calls` at a time.

    Args:
        address: where to listen; port 0 is any free one.
        model: the climb's start, version 0.
        beat: seconds between two signs of life.
        engine: draws with the start's weights; the in-process engine where there is none.
        calls: how many the engine takes at a time.
        shares: whether it opens memory of its owner's GPU for weights.
    """

    daemon_threads = True

    def __init__(
        self, address: tuple[str, int], model: PreTrainedModel, beat: float = BEAT,
        engine: RolloutEngine | None = None, calls: int = 1, shares: bool = False,
    ) -> None:  # fmt: skip
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.work = ThreadPoolExecutor(calls)
        super().__init__(address, _Handler)
        self.beat = beat
        self.interrupts, self.shares, self._taking = 0, shares, threading.Lock()
        self._engine = engine or TorchEngine(cast(MaiForCausalLM, model))
        tensors = unshared(model.state_dict())
        self._shapes, self._vocabulary = _shapes(tensors), model.config.vocab_size
        start = Weights.of(tensors, 0)
        self.holds, self.size = (0, start.sha256), len(start.body)

    def server_close(self) -> None:
        """Stop listening, and begin no further call."""
        super().server_close()
        self.work.shutdown(wait=False, cancel_futures=True)

    def server_bind(self) -> None:
        """Without the name of the address, for which a DNS server may let one wait."""
        TCPServer.server_bind(self)

    def check(self, sha256: str, body: bytes, shared: bool) -> dict[str, Tensor]:
        """The weights in `body`, or, where they are `shared`, those that it tells of.

        Raises:
            Refused: if they are not those of the digest, or do not fit the start.
        """
        if hashlib.sha256(body).hexdigest() != sha256:
            raise Refused(422, "the weights are not those of the digest: send them again")
        try:
            weights = opened(body) if shared else load(body)
        except SafetensorError as error:
            raise Refused(400, f"the weights are no safetensors: {error}") from error
        except ValueError as error:
            raise Refused(UNREACHED, str(error)) from error
        own, given = self._shapes, _shapes(weights)
        for name in sorted(own.keys() | given.keys()):
            expected, found = own.get(name, "nothing"), given.get(name, "nothing")
            if expected != found:
                raise Refused(400, f"{name} should be {expected}, found {found}")
        return weights

    def take(self, weights: dict[str, Tensor], version: int, sha256: str) -> bytes:
        """Change the weights, unless another call brought the same."""
        with self._taking:
            if self.holds != (version, sha256):
                self._engine.load_weights(weights, version)
                self.holds = (version, sha256)
        print(f"took the weights of version {version}", flush=True)
        return b""

    def interrupt(self) -> None:
        """Have what is accepted by now come back as it is."""
        self.interrupts += 1
        self._engine.interrupt()

    def generate(self, ask: Ask, interrupts: int) -> bytes:
        """Draw one batch; nothing of it where `interrupts` have grown since it was accepted.

        Raises:
            Refused: with 409 where the weights are others by now.
        """
        self.require(ask)
        if interrupts != self.interrupts:
            return pack([undrawn(self.holds[0])] * len(ask.prompts))
        started = time.perf_counter()
        done = self._engine.generate(ask.prompts, ask.params, ask.seed)
        tokens, seconds = sum(len(c.tokens) for c in done), time.perf_counter() - started
        print(f"drew {len(done)} answers, {tokens} tokens, in {seconds:.2f} s", flush=True)
        return pack(done)

    def require(self, ask: Ask) -> None:
        """Refuse what the server cannot draw with the weights it holds."""
        if (ask.version, ask.weights) != self.holds:
            raise Refused(409, f"version {self.holds[0]} is here, not {ask.version}: send it")
        vocabulary = self._vocabulary
        for index, prompt in enumerate(ask.prompts):
            if max(prompt) >= vocabulary:
                raise Refused(
                    400,
                    f"prompt {index} has the token {max(prompt)} of a vocabulary of {vocabulary}",
                )


class _Handler(BaseHTTPRequestHandler):
    """One request a connection."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    server: RolloutServer

    def do_GET(self) -> None:
        if self.path != "/health":
            self._say(404, f"there is no {self.path}")
            return
        version, sha256 = self.server.holds
        self._say(200, json.dumps({"version": version, "weights": sha256}))

    def do_PUT(self) -> None:
        self._answer(self._weights)

    def do_POST(self) -> None:
        if self.path == "/interrupt":
            self.server.interrupt()
            self._say(200, "")
        else:
            self._answer(self._batch)

    def log_message(self, format: str, *args: object) -> None:
        """Only what the engine does is worth a line."""

    def _weights(self) -> Callable[[], bytes]:
        match self.path.split("/"):
            case ["", "weights" | "shared-weights" as kind, version, sha256] if version.isdecimal():
                shared = kind == PLACE
                if shared and not self.server.shares:
                    raise Refused(UNREACHED, "this server opens no memory of others")
                body = self._body(max(self.server.size, MAX_TABLE))
                weights = self.server.check(sha256, body, shared)
                return lambda: self.server.take(weights, int(version), sha256)
        raise Refused(404, f"there is no {self.path}")

    def _batch(self) -> Callable[[], bytes]:
        if self.path != "/generate":
            raise Refused(404, f"there is no {self.path}")
        interrupts = self.server.interrupts
        try:
            ask = Ask.model_validate_json(self._body(MAX_ASK))
        except ValidationError as error:
            raise Refused(400, f"the request cannot be read: {error}") from error
        self.server.require(ask)
        return lambda: self.server.generate(ask, interrupts)

    def _body(self, limit: int) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise Refused(411, "the request does not say how long it is")
        if int(length) > limit:
            raise Refused(413, f"the request has {length} bytes, more than {limit}")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise Refused(400, f"the request ends after {len(body)} of {length} bytes")
        return body

    def _answer(self, read: Callable[[], Callable[[], bytes]]) -> None:
        """Read a request and have it carried out; a client that goes away is let go."""
        try:
            self._carry_out(read())
        except Refused as refusal:
            self._say(refusal.status, str(refusal))
        except OSError as gone:
            self.close_connection = True
            print(f"{self.client_address[0]} went away: {gone}", flush=True)

    def _carry_out(self, do: Callable[[], bytes]) -> None:
        """Wait for the turn and the result, and show life meanwhile."""
        future = self.server.work.submit(do)
        try:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.send_header("Connection", "close")
            self.end_headers()
            while not wait([future], self.server.beat).done:
                self._chunk(b".")
            if error := future.exception():
                self._chunk(f"!{type(error).__name__}: {error}".encode())
            else:
                self._chunk(b"=")
                self._chunk(future.result())
            self.wfile.write(b"0\r\n\r\n")
        finally:
            future.cancel()

    def _chunk(self, data: bytes) -> None:
        if data:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _say(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM, then end with 143: a Job whose pod says 0 would not bring it back."""
    signal.signal(signal.SIGTERM, end)
    args = parser().parse_args(argv)
    if args.owner:
        end_with(args.owner)
    try:
        model = load_start(args.checkpoint, args.fingerprint)
        server = RolloutServer((args.host, args.port), model, shares=args.owner is not None)
    except (ArtifactError, OSError, ValueError) as error:
        print(f"the rollout server cannot start: {error}", file=sys.stderr, flush=True)
        return 1
    with server:
        print(f"serving at {args.host}:{server.server_address[1]}", flush=True)
        server.serve_forever()
    return 0


def load_start(uri: str, fingerprint: str) -> MaiForCausalLM:
    """The network of a checkpoint.

    Raises:
        ArtifactError: if it is absent, damaged or another one.
        ValueError: if its weights do not fit its configuration.
    """
    return read_network(start_folder(uri, fingerprint))


def start_folder(uri: str, fingerprint: str) -> Path:
    """The Hugging Face folder of a checkpoint.

    Raises:
        ArtifactError: if it is absent, damaged or another one.
    """
    artifact = Artifact(uri)
    if artifact.fingerprint != fingerprint:
        raise ArtifactError(
            f"{uri} has the fingerprint {artifact.fingerprint[:12]}, not {fingerprint[:12]}"
        )
    artifact.require_intact()
    return artifact.local(MODEL)


def _shapes(weights: dict[str, Tensor]) -> dict[str, str]:
    return {name: f"{tensor.dtype} {tuple(tensor.shape)}" for name, tensor in weights.items()}


def parser() -> argparse.ArgumentParser:
    """The words that the command takes."""
    parser = argparse.ArgumentParser(prog="python -m hillclimb.rollout.server")
    parser.add_argument("--checkpoint", required=True, help="URI of the climb's start")
    parser.add_argument("--fingerprint", required=True, help="of the checkpoint")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen at (default: any)")
    parser.add_argument("--port", type=int, required=True, help="0 is any free one")
    parser.add_argument("--owner", type=int, help="process id of the parent, to end with it")
    return parser


def end_with(owner: int) -> None:
    """Be killed when the thread that started this process ends, and so when its process does."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != owner:
        os._exit(TERMINATED)


def end(signum: int, frame: FrameType | None) -> None:
    """There is nothing to save; a call in progress is drawn anew elsewhere."""
    os._exit(TERMINATED)


if __name__ == "__main__":
    sys.exit(main())
