"""One rollout server as a climb sees it: asked, sent the weights it lacks, given time."""

from __future__ import annotations

import time
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from urllib.parse import urlsplit

from hillclimb.rollout.engine import Completion
from hillclimb.rollout.wire import Ask, Weights, unpack

_CONNECT = 5.0
_FIRST, _SLOWEST = 0.5, 15.0
_OURS = (400, 413)
UNREACHED = 424


class Away(Exception):
    """The server gave no answer that can be used; says why."""


class Failed(Away):
    """The server tried and could not; says why."""


class Unreached(Away):
    """The server cannot read weights where they are; says why."""


class Replica:
    """A server at `url`, http://HOST:PORT; used by one thread at a time, but for `interrupt`.

    Args:
        silence: seconds without a sign of life after which a server that is asked counts as dead.

    Attributes:
        misses: failures since it last drew a batch.
        why: the last failure.
        asleep_until: when it may be asked again, on the monotonic clock.
    """

    def __init__(self, url: str, silence: float) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None or parts.port is None:
            raise ValueError(f"{url} is no http://HOST:PORT")
        self.url, self.misses, self.why, self.asleep_until = url, 0, "", 0.0
        self._host, self._port, self._silence = parts.hostname, parts.port, silence

    def wake(self) -> None:
        """See whether a server that failed is there again.

        Raises:
            Away: if it is not; it is left alone for a while.
        """
        try:
            self._call("GET", "/health", b"", _CONNECT)
        except Away as away:
            self._missed(away)
            raise

    def draw(self, ask: Ask, weights: Weights) -> list[Completion]:
        """The completions of a batch; weights that the server does not hold are sent first.

        Raises:
            Away: if the server is, or answers with something else; it is left alone for a while.
            ValueError: if it refuses the request for what is in it.
        """
        try:
            body = ask.model_dump_json().encode()
            answer = self._call("POST", "/generate", body, self._silence)
            if answer is None:
                self.send(weights)
                answer = self._call("POST", "/generate", body, self._silence)
            if answer is None:
                raise Away("it holds other weights than it was just sent: who else uses it?")
            done = _whole(answer, ask)
        except Away as away:
            self._missed(away)
            raise
        self.misses = 0
        return done

    def send(self, weights: Weights) -> None:
        """Have the server take weights.

        Raises:
            Away: if the server is; `Failed` if it cannot; `Unreached` if it does not get at them.
            ValueError: if it refuses what is in them.
        """
        place = f"/{weights.place}/{weights.version}/{weights.sha256}"
        self._call("PUT", place, weights.body, self._silence)

    def interrupt(self) -> None:
        """Have the batch that is being drawn come back as it is; a server that is away has none."""
        with suppress(Away):
            self._call("POST", "/interrupt", b"", _CONNECT)

    def _missed(self, away: Away) -> None:
        pause = min(_SLOWEST, _FIRST * 2 ** min(self.misses, 9))
        self.misses, self.why = self.misses + 1, str(away)
        self.asleep_until = time.monotonic() + pause

    def _call(self, method: str, path: str, body: bytes, silence: float) -> bytes | None:
        """One request; None where the server holds other weights."""
        connection = HTTPConnection(self._host, self._port, timeout=_CONNECT)
        try:
            connection.connect()
            connection.sock.settimeout(silence)
            connection.request(method, path, body)
            response = connection.getresponse()
            return self._read(response, method)
        except (OSError, HTTPException) as error:
            raise Away(f"{type(error).__name__}: {error}") from error
        finally:
            connection.close()

    def _read(self, response: HTTPResponse, method: str) -> bytes | None:
        if response.status == 409:
            return None
        if response.status != 200:
            sentence = response.read().decode(errors="replace")
            if response.status in _OURS:
                raise ValueError(f"{self.url} refuses what it is sent: {sentence}")
            kind = Unreached if response.status == UNREACHED else Away
            raise kind(f"it answers {response.status}: {sentence}")
        if response.headers.get("Transfer-Encoding") != "chunked":
            return response.read()
        while (mark := response.read(1)) == b".":
            continue
        rest = response.read()
        if mark == b"!":
            why = rest.decode(errors="replace")
            raise ValueError(f"{self.url}: {why}") if why.startswith("ValueError") else Failed(why)
        if mark != b"=":
            raise Away("it stopped in the middle of its answer")
        return rest


def _whole(answer: bytes, ask: Ask) -> list[Completion]:
    try:
        done = unpack(answer)
    except ValueError as error:
        raise Away(str(error)) from error
    if len(done) != len(ask.prompts):
        raise Away(f"it gave {len(done)} completions for {len(ask.prompts)} prompts")
    return done
