"""What each command prints, refuses and returns."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import SCORES, SMALL, Cli

from hillclimb.artifacts import Store
from hillclimb.cli import preflight
from hillclimb.cli.failures import Failure
from hillclimb.cli.states import stage_states
from hillclimb.environments.sandbox import SandboxUnavailable
from hillclimb.recipe.load import load_recipe
from hillclimb.scaling.plan import plan_recipe


def small(root: Path) -> tuple[str, ...]:
    return ("--root", str(root), "--recipe", str(SMALL))


def test_plan_prints_the_recipe_the_graph_and_the_figures() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hillclimb.cli.main", "plan", "--recipe", "mai-thinking-1"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "962B parameters in all, 34.7B active per token" in done.stdout
    assert "zero_init_attention: true" in done.stdout
    assert "mai_base_64k ← mai_base_16k" in done.stdout.replace(
        "tokenizer, midtraining_mixture, ", ""
    )
    row = next(line for line in done.stdout.splitlines() if line.startswith("mai_base_16k"))
    for cell in ("30T", "6.8e24", "19.1 days × 8,192", "962B (34.7B)", "3.5 TiB (10.5 TiB)"):
        assert cell in row
    assert done.stderr == ""


def test_plan_refuses_what_cannot_fit(cli: Cli) -> None:
    done = cli("plan", "--recipe", SMALL, "--set", "compute.accelerator.memory_gib=0.05")
    assert done.exit_code == 2
    assert "needs 0.16" in done.stderr
    assert "a cpu-core has 0.05 GiB" in done.stderr
    assert "specialists.stem.climbs.1.micro_batch_tokens" in done.stderr


def test_plan_prints_the_ladder(cli: Cli) -> None:
    rows = [line.split() for line in cli("plan", "--ladder").stdout.splitlines()]
    assert ["MAI-Base-1", "34.66B", "962.15B"] in [row[:3] for row in rows]


def test_every_command_has_its_options_and_teaches_by_example(cli: Cli) -> None:
    commands = ("plan", "climb", "status", "scorecard", "lineage", "report", "chat", "verify", "ui")
    for command in commands:
        text = cli(command, "--help").stdout
        assert f"$ hillclimb {command}" in text
        for option in ("--root", "--recipe", "--seed"):
            assert option in text
    assert "Exit codes" in cli("--help").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["plan", "--recipe", "toi"], 2, "neither a preset nor a file"),
        (["plan", "--set", "model.layerz=1"], 2, "did you mean layers"),
        (["plan", "--seed", "-1"], 2, "--seed"),
        (["plan", "--nonsense"], 2, "No such option"),
        (["climb", "--set", "model.layers=12"], 2, "name it with --experiment"),
        (["climb", "--experiment", "Bad Name"], 2, "lower-case"),
        (["climb", "--select", "mai_base"], 2, "there is no stage mai_base"),
        (["climb", "--root", "memory://somewhere"], 2, "needs a local --root"),
        (["chat", "nothing"], 2, "neither a folder nor a checkpoint"),
        (["lineage", "nothing"], 2, "there is no asset nothing"),
        (["verify"], 2, "there are no artifacts"),
        (["scorecard"], 1, "`hillclimb climb` makes it"),
        (["chat", "mai_thinking"], 1, "is not made"),
    ],
)
def test_errors_are_sentences_with_an_exit_code(
    cli: Cli, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    if "--root" not in arguments:
        arguments = [*arguments, "--root", str(tmp_path / "none")]
    done = cli(*arguments)
    assert done.exit_code == code
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.output
    assert not (tmp_path / "none").exists()


def test_debug_lets_the_error_through(cli: Cli) -> None:
    assert type(cli("--debug", "plan", "--recipe", "toi").exception).__name__ == "RecipeError"


def test_an_interrupt_is_130(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hillclimb.cli.status.show", interrupted)
    done = cli("status", *small(tmp_path))
    assert done.exit_code == 130
    assert "goes on from what is made" in done.stderr


def test_scorecard_as_table_and_as_json(cli: Cli, made_root: Path) -> None:
    assert json.loads(cli("scorecard", "--json", *small(made_root)).stdout) == SCORES
    lines = cli("scorecard", *small(made_root)).stdout.splitlines()
    models = [line.split()[0] for line in lines if "0.250 / 0.500" in line]
    assert models == ["mai_base_256k", "stem/round_1/climb", "mai_thinking"]
    assert "200 problems a domain" in lines[-1]


def test_verify_names_a_flipped_byte_and_a_changed_manifest(cli: Cli, made_root: Path) -> None:
    done = cli("verify", "--root", made_root)
    assert (done.exit_code, done.stderr) == (0, "")
    [notes] = made_root.glob("artifacts/tokenizer/*/notes.txt")
    data = bytearray(notes.read_bytes())
    data[3] ^= 1
    notes.write_bytes(data)
    [manifest] = made_root.glob("artifacts/mai_thinking/*/manifest.json")
    manifest.write_text(manifest.read_text().replace('"outer": 50.0', '"outer": 51.0'))
    [missing] = made_root.glob("artifacts/model_card/*/notes.txt")
    missing.unlink()
    done = cli("verify", "--root", made_root)
    assert done.exit_code == 1
    assert f"{notes} is not what was written" in done.stderr
    assert f"{manifest} does not describe" in done.stderr
    assert f"{missing} is missing" in done.stderr
    assert len(done.stderr.splitlines()) == 3


def test_a_changed_reward_makes_exactly_what_follows_stale(made_root: Path) -> None:
    assert {s.state for s in stage_states(str(made_root), load_recipe(SMALL), 0)} == {"made"}
    recipe = load_recipe(SMALL, ["specialists.stem.climbs.1.rewards.length=0.5"])
    states = {s.name: s for s in stage_states(str(made_root), recipe, 0)}
    stale = {name for name, state in states.items() if state.state == "stale"}
    assert stale == {
        "stem/round_1/climb", "stem/round_1/traces", "consolidated_model", "mai_thinking",
        "scorecard", "model_card",
    }  # fmt: skip
    assert states["stem/round_1/climb"].why == "climb.rewards.length: 0.25 → 0.5"
    assert states["consolidated_model"].why == "stem/round_1/traces is another"
    assert {s.state for n, s in states.items() if n not in stale} == {"made"}


def test_another_seed_is_missing_and_not_stale(made_root: Path) -> None:
    states = {s.name: s.state for s in stage_states(str(made_root), load_recipe(SMALL), 1)}
    assert states["tokenizer"] == "made"
    assert states["mai_base_16k"] == states["mai_thinking"] == "missing"


def test_status_tells_begun_and_running_stages(cli: Cli, made_root: Path) -> None:
    [manifest] = made_root.glob("artifacts/mai_base_16k/*/manifest.json")
    manifest.unlink()
    [other] = made_root.glob("artifacts/tokenizer/*")
    shutil.rmtree(other)
    other.with_name(f"{other.name}.lock").write_text(str(os.getpid()))
    rows = {
        line.split()[0]: line.split()[1:]
        for line in cli("status", *small(made_root)).stdout.splitlines()
        if line.strip()
    }
    assert rows["mai_base_16k"][0] == "partial"
    assert rows["tokenizer"][0] == "running"
    assert rows["tokenizer"][-2:] == ["process", str(os.getpid())]
    assert rows["mai_base_64k"][0] == "made"
    assert rows["mai_base_64k"][-1] == "88%"
    assert "88%" not in rows["stem_problems"]


def test_too_little_disk_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_recipe(load_recipe(SMALL))
    preflight.require_room(str(tmp_path / "not" / "there"), plan)
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(Failure, match=r"has 1\.0 MiB free.*needs about") as caught:
        preflight.require_room(str(tmp_path), plan)
    assert caught.value.code == 3


def missing_sandbox() -> None:
    raise SandboxUnavailable("the sandbox needs `bwrap`, which is missing: install it")


def test_without_a_sandbox_and_without_root_nothing_starts(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "check_sandbox", missing_sandbox)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    done = cli("climb", *small(tmp_path / "root"))
    assert done.exit_code == 3
    assert done.stderr == "the sandbox needs `bwrap`, which is missing: install it\n"
    assert not (tmp_path / "root").exists()


def test_root_installs_the_sandbox_with_apt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`apt-get` is a script that notes what it was asked; afterwards the sandbox is there."""
    asked = tmp_path / "asked"
    apt = tmp_path / "apt-get"
    apt.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    apt.chmod(apt.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(
        preflight, "check_sandbox", lambda: None if asked.exists() else missing_sandbox()
    )
    said: list[str] = []
    preflight.require_sandbox(said.append)
    assert "bubblewrap" in said[0]
    assert [line.split()[0] for line in asked.read_text().splitlines()] == ["update", "install"]


def test_reports_are_written_for_what_is_made(cli: Cli, tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    done = cli("report", "--output", target, *small(tmp_path))
    assert done.stdout.strip() == str(target)
    assert target.read_text().startswith("<!doctype html>")


def test_the_store_of_an_empty_root_is_all_missing(tmp_path: Path) -> None:
    states = stage_states(str(tmp_path), load_recipe(SMALL), 0)
    assert {state.state for state in states} == {"missing"}
    assert Store(str(tmp_path)).artifacts() == []
