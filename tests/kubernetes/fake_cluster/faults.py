"""Faults of the API that are waiting for a request, and the requests seen."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True)
class Seen:
    """One answered request: verb and kind in Kubernetes' words; status 0 is a lost answer."""

    verb: str
    kind: str
    name: str
    status: int


@dataclass
class Fault:
    """What happens to the next `times` requests of a verb and kind; None is any."""

    times: int
    verb: str | None = None
    kind: str | None = None
    status: int = 0
    seconds: float = 0.0
    lost: bool = False
    message: str = ""


class Faults:
    """The faults that wait, first come first served."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """Let a fault wait for its requests."""
        with self._lock:
            self._waiting.append(fault)

    def strike(self, verb: str, kind: str) -> Fault | None:
        """The fault that hits this request, or None."""
        with self._lock:
            for fault in self._waiting:
                if fault.times and fault.verb in (None, verb) and fault.kind in (None, kind):
                    fault.times -= 1
                    return fault
        return None
