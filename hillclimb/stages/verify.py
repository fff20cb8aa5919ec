"""Problems verified before they are used: the reference passes, doing nothing does not."""

from __future__ import annotations

from collections.abc import Sequence

from hillclimb.environments.files import lay_out
from hillclimb.environments.sandbox import Sandbox, SandboxProvider
from hillclimb.environments.tasks import Problem
from hillclimb.rewards.instructions import Instruction, grade_instructions


def verify_problems(problems: Sequence[Problem], provider: SandboxProvider) -> list[str]:
    """One sentence for every problem whose hidden check does not tell right from wrong.

    Files are checked in a sandbox: the check fails before the reference change and holds after it.
    Instructions are checked on their reference answer, functions on their tests.

    Raises:
        SandboxUnavailable: for problems with files where nothing can be isolated.
    """
    found = [fault for p in problems if "files" not in p.task and (fault := _faulty(p))]
    if with_files := [p for p in problems if "files" in p.task]:
        with provider.start() as sandbox:
            found += [fault for p in with_files if (fault := _faulty_files(p, sandbox))]
    return found


def _faulty(problem: Problem) -> str | None:
    task = problem.task
    if task["grader"] == "rules":
        rules = [Instruction(**rule) for rule in task["rules"]]
        if grade_instructions(task["answer"], rules).score != 1.0:
            return f"{problem.id}: its own answer {task['answer']!r} breaks its rules"
    if task["grader"] == "code":
        start, a, b = map(int, problem.key.split())
        if any(a * x + b * y + start != value for (x, y), value in task["tests"]):
            return f"{problem.id}: its tests do not fit its answer"
    if task["grader"] == "math" and sum(map(int, problem.key.split())) != int(task["answer"]):
        return f"{problem.id}: {problem.question} is not {task['answer']}"
    return None


def _faulty_files(problem: Problem, sandbox: Sandbox) -> str | None:
    task = problem.task
    if task["grader"] == "answer":
        word = problem.key.split()[0]
        found = sandbox.run(f"{lay_out(task['files'])}; grep -l {word} *").stdout.strip()
        return None if found == task["answer"] else f"{problem.id}: {word} is in {found!r}"
    old, new = problem.key.split()
    changed = {path: text.replace(old, new) for path, text in task["files"].items()}
    check = f"( {task['check']} ); echo $?"
    done = sandbox.run(f"{lay_out(task['files'])}; {check}; {lay_out(changed)}; {check}")
    before, after = done.stdout.split()
    if before == "0":
        return f"{problem.id}: the check holds before anything was done"
    return None if after == "0" else f"{problem.id}: the check fails after the right change"
