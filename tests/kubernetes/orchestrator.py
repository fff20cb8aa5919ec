"""An orchestrator in a process of its own: `orchestrator.py COMPUTE REQUEST TOLD`.

It submits the stage that REQUEST holds, or attaches to it, follows it to its end, and writes to
TOLD, a line each: "begin", every message, every new outcome, and at last "end". KUBECONFIG says
where the cluster is.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from hillclimb.launcher import State
from hillclimb.launcher.kubernetes import KubernetesLauncher
from hillclimb.recipe.compute import Compute
from hillclimb.stages.request import Request

BEAT, LATE = 0.05, 60.0


def main(compute: str, request: str, told: str) -> None:
    """Submit, follow, tell."""
    launcher = KubernetesLauncher(
        Compute.model_validate_json(Path(compute).read_text()), beat=BEAT, patience=60.0
    )
    with open(told, "a", buffering=1) as out:
        print(json.dumps("begin"), file=out)
        handle = launcher.submit(Request.read(request))
        seen, offset, closed, ended = None, 0, False, 0.0
        while not closed or not ended:
            outcome = launcher.poll(handle)
            if outcome != seen:
                seen = outcome
                print(json.dumps({"state": seen.state.value, "reason": seen.reason}), file=out)
            found, offset = launcher.messages(handle, offset)
            for message in found:
                print(json.dumps(message), file=out)
                closed = message["method"] == "closed"
            ended = ended or (time.monotonic() if outcome.ended else 0.0)
            if ended and (outcome.state is not State.DONE or time.monotonic() - ended > LATE):
                break
            time.sleep(BEAT)
        print(json.dumps("end"), file=out)


if __name__ == "__main__":
    main(*sys.argv[1:])
