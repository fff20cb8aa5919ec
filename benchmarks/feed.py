"""Whether a GPU waits for its rows: `python benchmarks/feed.py`.

Made-up documents in parquet shards, rows of 16,384 tokens packed into micro-batches as in training,
from a local disk and from a slow HTTP server (each request waits, each connection is narrow). Read
ahead, as in training, against the same code that reads only when it is asked.

rate: tokens/s that come when nothing else is done. waits: share of the time that a consumer waits
which takes 150,000 tokens/s, as one H200 does in training (docs/results/model_speed.md), from its
second step on. first: seconds until the first step's rows. Shards are 32 times smaller than a
mixture's, so a block ends every 14 seconds at that pace instead of every 7 minutes, and what it
costs to open files weighs 32 times as much.
"""

from __future__ import annotations

import argparse
import http.server
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hillclimb.training import feed as feed_module
from hillclimb.training.batches import TokenBatch
from hillclimb.training.feed import Feed, prefetch
from hillclimb.training.mixture import Budget
from hillclimb.training.sampling import Plan
from hillclimb.training.shards import Shards

LENGTH = 16_384
BATCH_ROWS = 4
PACE = 150_000
SHARDS = 10
SHARD_TOKENS = 2**19
LATENCY = 0.2
BANDWIDTH = 4e6


class SlowServer(http.server.SimpleHTTPRequestHandler):
    """Files with byte ranges; every request waits, and every answer trickles."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        """Say how long a file is."""
        self._answer(body=False)

    def do_GET(self) -> None:
        """Give a range of a file."""
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        time.sleep(LATENCY)
        data = Path(self.translate_path(self.path)).read_bytes()
        start, end = 0, len(data)
        if asked := self.headers.get("Range"):
            first, last = asked.removeprefix("bytes=").split("-")
            start, end = int(first), min(int(last or end) + 1, end)
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.end_headers()
        for at in range(start, end if body else start, 65_536):
            piece = data[at : min(at + 65_536, end)]
            self.wfile.write(piece)
            time.sleep(len(piece) / BANDWIDTH)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def serve(folder: str, port: multiprocessing.Queue[int]) -> None:
    """Serve a folder from a process of its own."""

    def handler(*args: object) -> SlowServer:
        return SlowServer(*args, directory=folder)  # type: ignore[arg-type]

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    port.put(server.server_address[1])
    server.serve_forever()


class OnDemand:
    """In place of an executor: work is done when its result is asked for."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> OnDemand:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, work: Callable[..., object], *args: object) -> OnDemand:
        """Keep the work for later."""
        self = OnDemand()
        self.work, self.done = lambda: work(*args), None
        return self

    def result(self) -> object:
        """Do it, once."""
        self.done = self.done or self.work()
        return self.done


def make(folder: Path) -> np.ndarray:
    """Write the shards; returns the documents' lengths."""
    rng, lengths = np.random.default_rng(0), []
    for number in range(SHARDS):
        sizes = rng.lognormal(6.5, 1.0, SHARD_TOKENS // 1100).astype(np.int32) + 1
        tokens = rng.zipf(1.2, int(sizes.sum())).clip(1, 200_018).astype(np.int32)
        offsets = pa.array(np.concatenate(([0], np.cumsum(sizes))), pa.int32())
        column = pa.ListArray.from_arrays(offsets, pa.array(tokens))
        ids = pa.array([f"document-{number}-{i}" for i in range(len(sizes))])
        table = pa.table({"id": ids, "tokens": column})
        pq.write_table(table, folder / f"tokens-{number:05d}.parquet", compression="zstd")
        lengths.append(sizes)
    return np.stack(lengths)


def steps(root: str, lengths: np.ndarray, ahead: bool) -> Iterator[list[TokenBatch]]:
    """Micro-batches of every step, read ahead or on demand."""
    shards = Shards(
        [f"{root}/tokens-{i:05d}.parquet" for i in range(SHARDS)], [lengths.shape[1]] * SHARDS,
        lengths.ravel(), np.zeros(lengths.size, np.int32), ("made",),
    )  # fmt: skip
    total = int(lengths.sum())
    feed = Feed(
        Plan(shards, {"made": Budget(total, total, total)}, 1), LENGTH, 0, BATCH_ROWS, 10**9
    )

    def batches() -> Generator[list[TokenBatch]]:
        for rows in feed.batches(0):
            yield [TokenBatch.of(rows[i : i + 1], 1, pinned=False) for i in range(len(rows))]

    return prefetch(batches(), 2) if ahead else batches()


def run(root: str, lengths: np.ndarray, ahead: bool, pace: float | None) -> tuple[float, ...]:
    """Take all steps; returns tokens/s, share waited after the first step, seconds to it."""
    with mock.patch.object(
        feed_module, "ThreadPoolExecutor", feed_module.ThreadPoolExecutor if ahead else OnDemand
    ):
        started = time.perf_counter()
        source, waited, count = steps(root, lengths, ahead), 0.0, 0
        next(source)
        first = time.perf_counter() - started
        began = time.perf_counter()
        while True:
            asked = time.perf_counter()
            if next(source, None) is None:
                break
            waited += time.perf_counter() - asked
            count += 1
            if pace:
                time.sleep(BATCH_ROWS * LENGTH / pace)
        seconds = time.perf_counter() - began
    return count * BATCH_ROWS * LENGTH / seconds, waited / seconds, first


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lengths = make(Path(folder))
        port: multiprocessing.Queue[int] = multiprocessing.Queue()
        server = multiprocessing.Process(target=serve, args=(folder, port), daemon=True)
        server.start()
        remote = f"http://127.0.0.1:{port.get()}"
        run(folder, lengths, True, None)
        print(
            f"{lengths.sum():,} tokens in {SHARDS} shards, {BATCH_ROWS} rows of {LENGTH:,} a step"
        )
        print("| shards | read | tokens/s | of the pace | waits | first s |")
        print("|---|---|---:|---:|---:|---:|")
        for name, root in (("local", folder), ("slow server", remote)):
            shares = {}
            for ahead in (False, True):
                rate, _, _ = run(root, lengths, ahead, None)
                _, shares[ahead], first = run(root, lengths, ahead, PACE)
                how = "ahead" if ahead else "on demand"
                speed = f"{rate:,.0f} | {rate / PACE:.1f}x"
                print(f"| {name} | {how} | {speed} | {shares[ahead]:.2%} | {first:.2f} |")
            print(f"{name}: waiting on demand / ahead = {shares[False] / shares[True]:.0f}x")
        server.terminate()


if __name__ == "__main__":
    main()
