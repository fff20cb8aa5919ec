"""Graders that misbehave, for the tests of the pool."""

from __future__ import annotations

import os
import subprocess
import time

from hillclimb.rewards.graded import Graded


def fine(value: float) -> Graded:
    print("a library that prints")
    return Graded(value, "fine")


def sleeps(marker: str) -> Graded:
    subprocess.run(["sleep", marker], check=False)
    return Graded(1.0)


def hangs() -> Graded:
    """A hang that no signal handler in Python interrupts."""
    return Graded(float(9 ** (9**8) % 7))


def raises() -> Graded:
    raise ValueError("no idea")


def dies() -> Graded:
    os._exit(3)


def eats_memory() -> Graded:
    return Graded(float(len(bytearray(1 << 40))))


def floods() -> Graded:
    for _ in range(1000):
        os.write(1, b"x" * (1 << 20))
    return Graded(1.0, "flooded")


def naps(seconds: float) -> Graded:
    time.sleep(seconds)
    return Graded(1.0, str(os.getpid()))


def waits(path: str) -> Graded:
    while not os.path.exists(path):
        time.sleep(0.01)
    return Graded(1.0, "went on")
