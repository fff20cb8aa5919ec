"""Print the manifests of a warm pool of sandboxes, for `kubectl apply -f -`.

    HILLCLIMB_SANDBOX_NAMESPACE=hillclimb-sandboxes HILLCLIMB_SANDBOX_IMAGE=python:3.12-slim \
    HILLCLIMB_SANDBOX_WARM_POOL=warm python -m hillclimb.environments.sandbox.warm_pool 64

The variables are those of the stages. The cluster needs agent-sandbox with its extensions.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence

from hillclimb.environments.sandbox.base import SandboxLimits, SandboxUnavailable
from hillclimb.environments.sandbox.pod_spec import PodSettings, warm_pool_manifests


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> str | int:
    """Print them; what is missing comes back as a sentence."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("replicas", type=int, help="sandboxes that wait; 64 are used at once")
    replicas = parser.parse_args(argv).replicas
    try:
        settings = PodSettings.from_environment(environ)
    except SandboxUnavailable as error:
        return str(error)
    if not settings.warm_pool:
        return "HILLCLIMB_SANDBOX_WARM_POOL is not set: it names the pool"
    items = warm_pool_manifests(settings, SandboxLimits(), replicas)
    print(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
