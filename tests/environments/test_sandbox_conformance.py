"""What every sandbox must do, whatever it is made of: one list of tests over all providers.

A provider that cannot start here fails these tests; they never skip.
"""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hillclimb.environments.sandbox import (
    BubblewrapProvider,
    Sandbox,
    SandboxFileError,
    SandboxLimits,
    SandboxProvider,
)

MIB = 2**20
LIMITS = SandboxLimits(memory=256 * MIB, processes=32, work=16 * MIB, file=8 * MIB)
TRACER = """
import ctypes, os
print("tried")
libc = ctypes.CDLL(None, use_errno=True)
for entry in os.listdir("/proc"):
    if entry.isdigit() and int(entry) != os.getpid():
        if libc.ptrace(0x4206, int(entry), None, None) == 0:
            print("traces", open(f"/proc/{entry}/cmdline").read())
        try:
            open(f"/proc/{entry}/mem", "rb").close()
            print("looks into", open(f"/proc/{entry}/cmdline").read())
        except OSError:
            pass
"""
SIGNALS = "HUP INT QUIT ABRT USR1 USR2 PIPE ALRM TERM PROF XCPU XFSZ STOP CHLD KILL"


@pytest.fixture(params=["bubblewrap", "pods"])
def provider(request: pytest.FixtureRequest) -> SandboxProvider:
    if request.param == "bubblewrap":
        return BubblewrapProvider(LIMITS)
    made: SandboxProvider = request.getfixturevalue("pods")(LIMITS)
    return made


@pytest.fixture
def sandbox(provider: SandboxProvider) -> Iterator[Sandbox]:
    with provider.start() as started:
        yield started


def host_processes(marker: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if marker.encode() in command:
                found.append(int(entry.name))
    return found


def eventually_none(marker: str) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not host_processes(marker):
            return True
        time.sleep(0.02)
    return False


def test_exit_codes(sandbox: Sandbox) -> None:
    for code in (0, 1, 77, 126, 255):
        assert sandbox.run(f"exit {code}").exit_code == code
    assert sandbox.run("").exit_code == 0


def test_streams_come_apart(sandbox: Sandbox) -> None:
    done = sandbox.run("echo out; echo err >&2; exit 3")
    assert (done.stdout, done.stderr, done.exit_code) == ("out\n", "err\n", 3)
    assert not done.timed_out
    assert not done.truncated
    assert sandbox.run("echo a >/dev/stdout; echo b >/dev/stderr").stdout == "a\n"


def test_a_killed_command_reports_its_signal(sandbox: Sandbox) -> None:
    assert sandbox.run("kill -9 $$").exit_code == 137


def test_every_call_is_a_new_shell_over_the_same_files(sandbox: Sandbox) -> None:
    sandbox.run("mkdir d; cd d; VALUE=1; export VALUE; umask 077; echo kept > f")
    done = sandbox.run("pwd; echo [$VALUE]; cat d/f")
    assert done.stdout == "/work\n[]\nkept\n"


def test_commands_may_have_many_lines_quotes_and_any_letters(sandbox: Sandbox) -> None:
    done = sandbox.run("cat <<'END'\nit's \"ÁÈß 漢字 🙂\" \\ $HOME `x`\nEND\necho 'last'")
    assert done.stdout == 'it\'s "ÁÈß 漢字 🙂" \\ $HOME `x`\nlast\n'


def test_python_runs(sandbox: Sandbox) -> None:
    assert sandbox.run("python3 -c 'print(6*7)'").stdout == "42\n"


def test_binary_output_is_replaced_not_fatal(sandbox: Sandbox) -> None:
    done = sandbox.run(r"printf '\377\000a'")
    assert done.stdout == "\ufffd\0a"


def test_input_is_empty(sandbox: Sandbox) -> None:
    assert sandbox.run("cat; head -c 5").stdout == ""


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=400))
@example("")
@example("'\\\"\0" * 300)
def test_written_text_comes_back(sandbox: Sandbox, text: str) -> None:
    sandbox.write("folder/a file's.txt", text)
    assert sandbox.read("/work/folder/a file's.txt") == text


def test_large_text_comes_back(sandbox: Sandbox) -> None:
    text = "".join(map(chr, range(0xD800))) + "'\\\"" * 30_000
    sandbox.write("large", text)
    assert sandbox.read("large") == text


def test_file_errors_say_what_is_wrong(sandbox: Sandbox) -> None:
    sandbox.run(r"mkdir d; printf '\377' > binary")
    with pytest.raises(SandboxFileError, match="cannot read 'absent': No such file"):
        sandbox.read("absent")
    with pytest.raises(SandboxFileError, match="cannot read 'binary': it is not UTF-8"):
        sandbox.read("binary")
    with pytest.raises(SandboxFileError, match="cannot write 'd': Is a directory"):
        sandbox.write("d", "x")
    with pytest.raises(SandboxFileError, match="cannot write '/usr/x': Read-only"):
        sandbox.write("/usr/x", "x")


def test_a_link_to_a_host_file_leads_nowhere(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "host").write_text("host")
    sandbox.run(f"ln -s {tmp_path}/host link; mkdir -p {tmp_path}")
    with pytest.raises(SandboxFileError):
        sandbox.read("link")
    sandbox.write("link", "inside")
    assert (tmp_path / "host").read_text() == "host"


def test_no_network(sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
        done = sandbox.run(f'python3 -c "{code}"')
        assert done.exit_code == 1
        assert "Error" in done.stderr
    interfaces = sandbox.run("tail -n +3 /proc/net/dev").stdout.split(":")[0].strip()
    assert interfaces in ("", "lo")


def test_no_variable_of_the_host(
    provider: SandboxProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = uuid.uuid4().hex
    monkeypatch.setenv("HILLCLIMB_TEST_API_KEY", secret)
    with provider.start() as sandbox:
        done = sandbox.run("env; cat /proc/*/environ 2>/dev/null")
    assert "HOME=/work" in done.stdout
    assert secret not in done.stdout
    assert "HILLCLIMB_TEST_API_KEY" not in done.stdout


def test_no_file_of_the_host(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = uuid.uuid4().hex
    (tmp_path / secret).write_text(secret)
    home = Path.home() / f".{secret}"
    home.write_text(secret)
    try:
        done = sandbox.run(
            f"ls -la /tmp /home /root /work /work/.. 2>/dev/null | grep {secret}; "
            f"cat {tmp_path}/{secret} {home} {Path(__file__)}"
        )
    finally:
        home.unlink()
    assert secret not in done.stdout
    assert done.stdout == ""
    assert sandbox.run("ls -A /home /root/.ssh /var /etc/shadow").stdout == ""


def test_no_writes_outside_its_folders(sandbox: Sandbox) -> None:
    sandbox.write(
        "probe.py",
        "import os\n"
        "for folder, names, _ in os.walk('/'):\n"
        "    if folder == '/':\n"
        "        names.remove('proc')\n"
        "    if folder.count('/') > 2:\n"
        "        names.clear()\n"
        "    try:\n"
        "        open(os.path.join(folder, '.probe'), 'w').close()\n"
        "        print(folder)\n"
        "    except OSError:\n"
        "        pass\n",
    )
    written = sandbox.run("python3 probe.py", timeout_s=60).stdout.split()
    assert sorted(written) == ["/tmp", "/work"]
    assert sandbox.run("echo x > /proc/sys/kernel/hostname").exit_code != 0


def test_no_privileges(sandbox: Sandbox) -> None:
    status = sandbox.run("cat /proc/self/status; id -u").stdout
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"].strip() == "1"
    assert status.splitlines()[-1] not in ("0", "")
    assert sandbox.run("unshare --user true").exit_code != 0
    assert sandbox.run("mount -t tmpfs none /work").exit_code != 0
    assert sandbox.run("ls /proc/self/fd").stdout.split() == ["0", "1", "2", "3"]


def test_an_infinite_loop_is_killed_in_its_limit_and_the_sandbox_goes_on(sandbox: Sandbox) -> None:
    started = time.monotonic()
    done = sandbox.run("echo begun > f; echo before; while :; do :; done", timeout_s=0.5)
    assert time.monotonic() - started < 3
    assert done.timed_out
    assert (done.stdout, done.exit_code) == ("before\n", 137)
    assert sandbox.run("cat f").stdout == "begun\n"


def test_a_fork_bomb_is_contained_and_the_sandbox_goes_on(sandbox: Sandbox) -> None:
    marker = f"bomb{uuid.uuid4().hex}"
    sandbox.write("bomb.sh", "sh bomb.sh $1 & sh bomb.sh $1 & wait\n")
    started = time.monotonic()
    done = sandbox.run(f"sh bomb.sh {marker}; sleep 60", timeout_s=1)
    assert time.monotonic() - started < 5
    assert done.timed_out or done.truncated
    assert eventually_none(marker)
    assert sandbox.run("echo alive").stdout == "alive\n"


def test_the_limit_on_processes_binds(sandbox: Sandbox) -> None:
    done = sandbox.run(
        "python3 - <<'END'\nimport os, time\nstarted = 0\ntry:\n    while started < 1000:\n"
        "        if os.fork() == 0:\n            time.sleep(60)\n        started += 1\n"
        "except BlockingIOError:\n    print(started)\nEND",
        timeout_s=20,
    )
    assert 0 < int(done.stdout) < LIMITS.processes


def test_a_gigabyte_of_output_is_cut(sandbox: Sandbox) -> None:
    started = time.monotonic()
    done = sandbox.run("head -c 1000000000 /dev/zero", timeout_s=20)
    assert time.monotonic() - started < 5
    assert done.truncated
    assert not done.timed_out
    assert (len(done.stdout), done.exit_code) == (LIMITS.output, 137)
    assert sandbox.run("yes >&2", timeout_s=20).truncated
    assert sandbox.run("echo alive").stdout == "alive\n"


def test_memory_and_disk_are_bounded(sandbox: Sandbox) -> None:
    done = sandbox.run("python3 -c 'x = bytearray(1 << 30); print(len(x))'")
    assert "MemoryError" in done.stderr
    done = sandbox.run("for i in 1 2 3 4 5; do head -c 8000000 /dev/zero > f$i; done; echo $?")
    assert "No space left" in done.stderr
    assert sandbox.run("rm -f f*; head -c 9000000 /dev/zero > f").exit_code != 0
    assert int(sandbox.run("stat -c %s f").stdout) <= LIMITS.file


def test_processes_end_with_their_call(sandbox: Sandbox) -> None:
    marker = f"7{uuid.uuid4().int % 10**12}"
    done = sandbox.run(f"setsid nohup sleep {marker} >/dev/null 2>&1 & sleep 0.2; echo done")
    assert done.stdout == "done\n"
    assert eventually_none(f"sleep\0{marker}")


def test_nothing_is_left_after_stop(provider: SandboxProvider) -> None:
    marker = f"8{uuid.uuid4().int % 10**12}"
    with provider.start() as sandbox:
        sandbox.run(f"setsid sleep {marker} & sleep {marker}", timeout_s=0.3)
        sandbox.stop()
        sandbox.stop()
    assert eventually_none(marker)


def test_two_sandboxes_see_nothing_of_each_other(provider: SandboxProvider) -> None:
    with provider.start() as first, provider.start() as second:
        first.run("echo secret > /work/f; echo secret > /tmp/f")
        assert second.run("cat /work/f /tmp/f").stdout == ""
        assert second.run("ls /work /tmp").stdout.split() == ["/tmp:", "/work:"]
        first.run("kill -9 -1")
        assert second.run("echo alive").stdout == "alive\n"
        seen = second.run("ls -d /proc/[0-9]*").stdout.split()
        assert len(seen) < 6


def test_a_command_cannot_speak_for_the_supervisor(sandbox: Sandbox) -> None:
    attack = (
        "for p in /proc/[0-9]*; do for f in $p/fd/*; do echo 0 > $f; done; "
        "cat $p/mem $p/environ; done >/dev/null 2>&1; exit 9"
    )
    assert sandbox.run(attack, timeout_s=5).exit_code == 9
    done = sandbox.run("ls /proc/1/fd || cat /proc/1/environ || exit 7")
    assert (done.stdout, done.exit_code) == ("", 7)


def test_no_signal_from_inside_ends_the_supervisor(sandbox: Sandbox) -> None:
    for target in ("1", "-- -1"):
        sandbox.run(f"for name in {SIGNALS}; do kill -$name {target}; done; sleep 0.1", 1)
        assert sandbox.run("echo alive; exit 4").exit_code == 4


def test_whoever_kills_all_others_is_not_there_for_the_next_command(sandbox: Sandbox) -> None:
    killer = "python3 -c 'import os, time\nwhile True: os.kill(-1, 9)' >/dev/null 2>&1"
    sandbox.run(f"setsid {killer} & sleep 0.3; exit 0", timeout_s=1)
    done = sandbox.run("ls -d /proc/[0-9]* | wc -l; sleep 0.2; echo alive; exit 4")
    assert int(done.stdout.split()[0]) < 6
    assert (done.stdout.split()[1:], done.exit_code) == (["alive"], 4)


def test_no_other_process_can_be_traced(sandbox: Sandbox) -> None:
    """Whoever traces the process that reports how commands end decides what it reports."""
    sandbox.write("trace.py", TRACER)
    done = sandbox.run("exec python3 trace.py")
    assert done.stdout == "tried\n"


def test_a_command_of_a_hundred_kilobytes_runs(sandbox: Sandbox) -> None:
    assert sandbox.run("echo " + "x" * 100_000 + " | wc -c").stdout == "100001\n"
    assert sandbox.run("echo " + "x" * 1_000_000).exit_code != 0
    assert sandbox.run("echo alive").stdout == "alive\n"


def test_answers_depend_on_nothing_but_the_commands(provider: SandboxProvider) -> None:
    commands = ["ls -la --time-style=+ /work /tmp", "env | sort", "cat /etc/passwd; hostname", "id"]
    seen = []
    for _ in range(2):
        with provider.start() as sandbox:
            seen.append([sandbox.run(command) for command in commands])
    assert seen[0] == seen[1]
