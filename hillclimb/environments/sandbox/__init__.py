"""Where model-written commands and programs run: isolated, limited, or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping

from hillclimb.environments.sandbox.base import (
    Completed,
    Sandbox,
    SandboxDied,
    SandboxFileError,
    SandboxLimits,
    SandboxProvider,
    SandboxUnavailable,
)
from hillclimb.environments.sandbox.bubblewrap import (
    BubblewrapProvider,
    BubblewrapSandbox,
    check_sandbox,
)

__all__ = [
    "BubblewrapProvider",
    "BubblewrapSandbox",
    "Completed",
    "Sandbox",
    "SandboxDied",
    "SandboxFileError",
    "SandboxLimits",
    "SandboxProvider",
    "SandboxUnavailable",
    "check_sandbox",
    "provider_for",
]


def provider_for(
    environ: Mapping[str, str] = os.environ, limits: SandboxLimits | None = None
) -> SandboxProvider:
    """The sandboxes of this process: bubblewrap, or pods where HILLCLIMB_SANDBOX says so.

    Raises:
        SandboxUnavailable: inside a pod where the variable is not set, because bubblewrap does not
            nest there; for another value of it; for pods without their settings.
    """
    wanted = environ.get("HILLCLIMB_SANDBOX", "")
    if wanted == "pods":
        from hillclimb.environments.sandbox.pod_spec import PodSettings
        from hillclimb.environments.sandbox.pods import PodProvider

        return PodProvider(PodSettings.from_environment(environ), limits)
    if wanted not in ("", "bubblewrap"):
        raise SandboxUnavailable(f"HILLCLIMB_SANDBOX is {wanted!r}: set it to bubblewrap or pods")
    if not wanted and "KUBERNETES_SERVICE_HOST" in environ:
        raise SandboxUnavailable(
            "this is a pod, and HILLCLIMB_SANDBOX is not set: set it to pods, with "
            "HILLCLIMB_SANDBOX_NAMESPACE and HILLCLIMB_SANDBOX_IMAGE, because a pod may not make "
            "the namespaces that bubblewrap needs (bubblewrap where this one may)"
        )
    return BubblewrapProvider(limits)
