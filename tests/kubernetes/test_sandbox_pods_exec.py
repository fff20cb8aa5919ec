"""Commands in pods whose connection, API or pod is lost meanwhile, and programs through pods."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from fake_cluster import FakeCluster
from kubernetes import client
from sandbox_cluster import NAMESPACE, prepare, provider, sandboxes

from hillclimb.environments.episodes import start_episode
from hillclimb.environments.sandbox import (
    Completed,
    Sandbox,
    SandboxDied,
    SandboxLimits,
    SandboxProvider,
)
from hillclimb.environments.sandbox.pod_api import ExecLost
from hillclimb.environments.sandbox.pod_guard import ANSWER, REQUEST, seal, unseal
from hillclimb.environments.sandbox.pod_programs import SandboxPrograms, program_runner
from hillclimb.environments.sandbox.pod_sandbox import PodSandbox
from hillclimb.environments.sandbox.programs import CallResult, ProgramLimits, ProgramRun
from hillclimb.environments.tasks import Problem
from hillclimb.rewards.code import CallTest, grade_function

MIB = 2**20
LIMITS = SandboxLimits(memory=512 * MIB, processes=32, work=16 * MIB, file=8 * MIB)
STRANGER = """
import os, socket
for junk in (b"", b"\\0" * 8, (200).to_bytes(8, "big") + b"x" * 200, b"\\xff" * 64):
    guard = socket.socket(socket.AF_UNIX)
    guard.connect("\\0hillclimb-guard")
    guard.sendall(junk)
    if junk:
        guard.setblocking(False)
print("tried")
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeCluster]:
    with FakeCluster(tmp_path_factory.mktemp("cluster")) as made:
        prepare(made)
        yield made


@pytest.fixture(scope="module")
def pods(cluster: FakeCluster) -> SandboxProvider:
    return provider(cluster, LIMITS, patience_s=5.0)


@pytest.fixture
def sandbox(pods: SandboxProvider) -> Iterator[PodSandbox]:
    with pods.start() as started:
        assert isinstance(started, PodSandbox)
        yield started


@pytest.fixture(scope="module")
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


def asleep(thread: ThreadPoolExecutor, sandbox: Sandbox, then: str = "true") -> Future[Completed]:
    """A command that is known to sleep, for as long as a file is not there, in another thread."""
    marker = f"7{uuid.uuid4().int % 10**12}"
    command = f"until [ -e go ]; do sleep 0.05; done; {then} # {marker}"
    found = thread.submit(sandbox.run, command, 20)
    deadline = time.monotonic() + 10
    while not any(marker in command for command in commands()):
        assert time.monotonic() < deadline, "it does not begin"
        time.sleep(0.02)
    return found


def commands() -> Iterator[str]:
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield place.read_text(errors="replace")
        except OSError:
            continue


def test_a_command_whose_connection_breaks_runs_once_and_its_result_is_whole(
    cluster: FakeCluster, sandbox: PodSandbox, thread: ThreadPoolExecutor
) -> None:
    before = len([seen for seen in cluster.requests if seen.name == sandbox.pod])
    running = thread.submit(sandbox.run, "echo began >> f; sleep 0.8; echo ended >> f; cat f", 20)
    time.sleep(0.4)
    cluster.down()
    time.sleep(0.1)
    cluster.up()
    assert running.result(30) == Completed("began\nended\n", "", 0)
    assert len([seen for seen in cluster.requests if seen.name == sandbox.pod]) > before + 2
    assert sandbox.run("cat f").stdout == "began\nended\n"


def test_a_program_that_cannot_be_started_is_started_again(
    cluster: FakeCluster, sandbox: PodSandbox
) -> None:
    cluster.answer(500, times=2, verb="exec")
    assert sandbox.run("echo once >> f; cat f").stdout == "once\n"


def test_an_api_that_stays_away_ends_the_sandbox(cluster: FakeCluster) -> None:
    with provider(cluster, LIMITS, patience_s=0.2).start() as sandbox:
        cluster.down()
        try:
            with pytest.raises(SandboxDied, match="ran a command: the Kubernetes API is away"):
                sandbox.run("true", timeout_s=0.1)
            with pytest.raises(SandboxDied, match="was stopped"):
                sandbox.run("true")
        finally:
            cluster.up()
    left = client.CoreV1Api(client.ApiClient(cluster.configuration()))
    left.delete_namespaced_pod(sandbox.pod, NAMESPACE)  # type: ignore[attr-defined]


def test_a_lost_pod_is_a_lost_sandbox(
    cluster: FakeCluster, pods: SandboxProvider, thread: ThreadPoolExecutor
) -> None:
    with pods.start() as sandbox:
        running = asleep(thread, sandbox)
        pod = cluster.get("Pod", sandbox.pod, NAMESPACE)  # type: ignore[attr-defined]
        assert pod is not None
        with cluster.store.lock:
            cluster.kubelet.kill_for_memory(pod)
        with pytest.raises(SandboxDied, match="its pod was killed for its memory"):
            running.result(30)
    with pods.start() as sandbox:
        running = asleep(thread, sandbox)
        core = client.CoreV1Api(client.ApiClient(cluster.configuration()))
        core.delete_namespaced_pod(sandbox.pod, NAMESPACE)  # type: ignore[attr-defined]
        with pytest.raises(SandboxDied, match=r"its pod (was deleted|is gone)"):
            running.result(30)
    assert sandboxes(cluster) == []


def test_only_sealed_messages_are_read() -> None:
    key, other = b"k" * 32, b"o" * 32
    message = seal(key, REQUEST, {"number": 1}, b"body\nof\0it")
    assert unseal(key, REQUEST, message) == ({"number": 1}, b"body\nof\0it")
    changed = message[:-1] + b"!"
    for bad in ((other, REQUEST, message), (key, ANSWER, message), (key, REQUEST, changed)):
        with pytest.raises(ValueError, match="seal"):
            unseal(*bad)
    with pytest.raises(ValueError, match="seal"):
        unseal(key, ANSWER, b"")


def test_a_command_cannot_ask_for_another(sandbox: PodSandbox) -> None:
    sandbox.write("stranger.py", STRANGER)
    assert sandbox.run("python3 stranger.py").stdout == "tried\n"
    assert sandbox.run("echo alive; exit 4").exit_code == 4
    first = {"number": 0, "key": (b"o" * 32).hex()}
    with pytest.raises(ExecLost, match="says nothing"):
        sandbox._carry(seal(b"o" * 32, REQUEST, first, b""), 100, 10)
    assert sandbox.run("echo alive").stdout == "alive\n"


def test_an_episode_in_a_pod(pods: SandboxProvider) -> None:
    task = {"grader": "check", "files": {"a.txt": "old"}, "check": "grep -qx new a.txt"}
    problem = Problem("p", "agentic", "edit", "old new", "Change it.", task)
    episode = start_episode(problem, pods)
    shown = episode.step("<tool_call>bash echo new > a.txt; cat a.txt</tool_call>")
    assert shown is not None
    assert "new" in shown
    assert episode.step("done") is None
    assert episode.finish().passed is True


@pytest.fixture(scope="module")
def programs(pods: SandboxProvider) -> Iterator[SandboxPrograms]:
    limits = ProgramLimits(wall_s=1.0, memory=128 * MIB)
    made = SandboxPrograms(pods, limits)
    yield made
    made.stop()


def test_programs_go_where_commands_go(pods: SandboxProvider) -> None:
    made = program_runner(pods)()
    assert isinstance(made, SandboxPrograms)


def test_calls_and_scripts(programs: SandboxPrograms) -> None:
    run = programs.call("def f(a, b): return [a / b]", "f", [(6, 3), (1, 0), (2**70, 1)])
    assert run == ProgramRun(
        "exited", 0,
        (
            CallResult([2.0]),
            CallResult(error="ZeroDivisionError: division by zero"),
            CallResult([float(2**70)]),
        ),
    )  # fmt: skip
    run = programs.script("import sys; print('hé', input()); exit(200)", "Zoë\n")
    assert (run.ending, run.stdout, run.exit_code) == ("exited", "hé Zoë\n", 127)
    run = programs.script("import sys; print(len(sys.stdin.read()))", "x" * 200_000)
    assert run.stdout == "200000\n"


def test_limits_end_programs_and_the_next_one_runs(programs: SandboxPrograms) -> None:
    killed = {
        "while True: pass": "timeout",
        "import signal\nsignal.setitimer(signal.ITIMER_REAL, 0)\nwhile True: pass": "timeout",
        "while True: print('x' * 1000)": "output",
        "x = [0] * 10**9": "killed",
        "import os; os.kill(os.getpid(), 11)": "killed",
        "import os\nwhile True: os.fork()": "killed",
    }
    for source, ending in killed.items():
        assert programs.script(source).ending == ending, source
        assert programs.script("print(1)").stdout == "1\n"


def test_programs_leave_nothing_to_each_other(programs: SandboxPrograms) -> None:
    leave = (
        "import os\nos.makedirs('/work/a/b')\nopen('/work/a/b/c', 'w').write('x')\n"
        "os.symlink('/', '/tmp/root')\nif os.fork() == 0:\n    import time; time.sleep(60)"
    )
    look = (
        "import os\nprint(os.listdir('/work'), os.listdir('/tmp'), "
        "len([p for p in os.listdir('/proc') if p.isdigit()]))"
    )
    programs.script(leave)
    assert programs.script(look).stdout == "[] [] 4\n"


def test_a_program_that_harms_its_sandbox_harms_no_other(programs: SandboxPrograms) -> None:
    harm = {
        "files": "import os\nos.makedirs('/work/a/b')\nos.chmod('/work/a', 0)",
        "limits": "import resource; resource.prlimit(1, resource.RLIMIT_NPROC, (1, 1))",
        "priority": "import os; os.setpriority(os.PRIO_PROCESS, 1, 19)",
    }
    for name, source in harm.items():
        programs.script(source)
        tests = [CallTest((1,), 2), CallTest((2,), 3)]
        grade = grade_function(programs, "def f(a): return a + 1", "f", tests)
        assert grade.score == 1.0, (name, grade)
