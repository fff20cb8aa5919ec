"""Where model-written commands and programs run: isolated, limited, or not at all."""

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
]
