"""`hillclimb live`: the page of a climb that is running, on loopback."""

from __future__ import annotations

import contextlib
import signal

from rich.console import Console

from hillclimb.cli.experiments import Target
from hillclimb.cli.failures import Exit, Failure
from hillclimb.report.live import LiveClimbs
from hillclimb.report.live_server import LiveServer


def serve(console: Console, target: Target, port: int) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Raises:
        Failure: if the port is taken.
    """
    try:
        server = LiveServer(LiveClimbs(target.root, target.recipe, target.seed), port)
    except OSError as error:
        sentence = f"port {port} cannot be used ({error.strerror}): choose one with --port"
        raise Failure(sentence, Exit.USAGE) from None
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console.print(f"{target.experiment} live at {server.url}", soft_wrap=True)
    console.print("Ctrl-C ends it", style="dim")
    with server, contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
