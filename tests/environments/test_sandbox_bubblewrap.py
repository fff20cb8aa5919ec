"""What is particular to the bubblewrap sandbox: how it starts, refuses and ends."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hillclimb.environments import sandbox as package
from hillclimb.environments.sandbox import (
    BubblewrapProvider,
    BubblewrapSandbox,
    SandboxDied,
    SandboxLimits,
    SandboxUnavailable,
    check_sandbox,
)

SOURCES = Path(package.__file__).parent
CHECK = """
import sys
sys.path.insert(0, {root!r})
from hillclimb.environments.sandbox import SandboxUnavailable, BubblewrapProvider, check_sandbox
try:
    check_sandbox()
    with BubblewrapProvider().start() as sandbox:
        print(sandbox.run("echo inside as $(id -u)").stdout)
except SandboxUnavailable as error:
    print("refused:", error)
"""


def marked_processes(marker: str) -> list[str]:
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in listing.stdout.splitlines() if f"sleep {marker}" in line]


@pytest.fixture
def public_copy() -> Iterator[Path]:
    """The sandbox package alone, where every user may read it."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    target = root / "hillclimb" / "environments" / "sandbox"
    shutil.copytree(SOURCES, target, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in (root / "hillclimb", root / "hillclimb" / "environments"):
        (folder / "__init__.py").touch()
    yield root
    shutil.rmtree(root)


def test_check_passes_here() -> None:
    check_sandbox()


def test_without_bubblewrap_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match="apt-get install bubblewrap"):
        check_sandbox()


def test_where_user_namespaces_are_refused_nothing_runs(public_copy: Path) -> None:
    """Inside a sandbox no further namespace may be made: a real place that refuses."""
    with BubblewrapProvider().start() as outer:
        for file in sorted(public_copy.rglob("*.py")):
            outer.write(str(file.relative_to(public_copy)), file.read_text())
        outer.write("check.py", CHECK.format(root="/work"))
        done = outer.run("python3 check.py", timeout_s=60)
    assert done.stdout.startswith("refused: bubblewrap cannot isolate here"), done
    assert "user namespaces" in done.stdout
    assert "inside" not in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user runs every test as one already")
@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="no Python for every user")
def test_an_ordinary_user_gets_the_same_sandbox(public_copy: Path) -> None:
    check = public_copy / "check.py"
    check.write_text(CHECK.format(root=str(public_copy)))
    identity = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"]
    done = subprocess.run(
        [*identity, "/usr/bin/python3", "-B", str(check)],
        capture_output=True, text=True, cwd="/", timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "inside as 65534", done


def test_a_killed_host_process_takes_its_sandbox_with_it() -> None:
    marker = f"9{uuid.uuid4().int % 10**12}"
    program = (
        "from hillclimb.environments.sandbox import BubblewrapSandbox\n"
        "sandbox = BubblewrapSandbox()\n"
        "print('started', flush=True)\n"
        f"sandbox.run('sleep {marker}', timeout_s=600)\n"
    )
    host = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert host.stdout is not None
    assert host.stdout.readline() == b"started\n"
    while not marked_processes(marker):
        time.sleep(0.02)
    host.send_signal(signal.SIGKILL)
    host.wait()
    host.stdout.close()
    deadline = time.monotonic() + 5
    while marked_processes(marker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not marked_processes(marker)


def test_after_stop_nothing_runs() -> None:
    sandbox = BubblewrapSandbox()
    sandbox.stop()
    with pytest.raises(SandboxDied):
        sandbox.run("echo hello")


def test_a_forgotten_sandbox_ends() -> None:
    sandbox = BubblewrapSandbox()
    supervisor = os.dup(sandbox._tree.pidfd)
    assert not select.select([supervisor], [], [], 0)[0]
    del sandbox
    assert select.select([supervisor], [], [], 0)[0]  # readable: the process is gone
    os.close(supervisor)


def test_no_descriptor_is_left_open() -> None:
    with BubblewrapProvider().start():
        pass
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with BubblewrapProvider().start() as sandbox:
            sandbox.run("true")
    assert len(os.listdir("/proc/self/fd")) == before


def test_many_sandboxes_at_once_from_threads() -> None:
    def episode(number: int) -> str:
        with BubblewrapProvider(SandboxLimits(processes=16)).start() as sandbox:
            sandbox.write("number", str(number))
            return sandbox.run("sleep 0.05; cat number").stdout

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(episode, range(24))) == [str(number) for number in range(24)]


def test_a_start_is_cheap() -> None:
    durations = []
    for _ in range(9):
        started = time.monotonic()
        with BubblewrapProvider().start():
            durations.append(time.monotonic() - started)
    assert sorted(durations)[4] < 0.25
