"""Make one artifact: `python -m hillclimb.stages KIND --request FILE-or-URI`.

Exit codes: 0 made (or already made), 1 failed by circumstances that another attempt may not meet,
2 refused (request, input, config or code is wrong), 75 another process is at it, 143 stopped by
SIGTERM. An attempt that ends early leaves its checkpoints to go on from.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from pydantic import ValidationError

from hillclimb.artifacts import Artifact, ArtifactError
from hillclimb.artifacts.fingerprint import code_version
from hillclimb.artifacts.store import MANIFEST, ArtifactWriter
from hillclimb.recipe.graph import CODE
from hillclimb.stages.context import Context
from hillclimb.stages.process import Busy, Terminated, exclusive, raise_on_sigterm, run_ranks
from hillclimb.stages.registry import KINDS, stage_function
from hillclimb.stages.reporting import PipesReporter, SilentReporter, open_reporter
from hillclimb.stages.request import Request

FAILED, REFUSED, BUSY = 1, 2, 75
CIRCUMSTANCES = (OSError, RuntimeError, MemoryError)
MESSAGES, ERRORS = "messages.jsonl", "rank-{rank}.error"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage and return the exit code."""
    args = _parser().parse_args(argv)
    try:
        request = Request.read(args.request)
    except OSError as error:
        print(f"the request {args.request} cannot be read: {error}", file=sys.stderr)
        return FAILED
    except ValidationError as error:
        return _refuse(f"the request {args.request} cannot be used: {error}")
    if request.kind != args.kind:
        return _refuse(f"{args.request} asks for the kind {request.kind}, not {args.kind}")
    folder = Path(args.run) if args.run else Path(args.request).resolve().parent
    if not folder.is_dir():
        return _refuse(f"{folder} is not a local folder: say with --run where messages go")
    raise_on_sigterm()
    try:
        with exclusive(request.output):
            return run_ranks(request.ranks, lambda rank: _run_rank(request, folder, rank))
    except Busy as error:
        print(error, file=sys.stderr)
        return BUSY


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hillclimb.stages", description=__doc__)
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--request", required=True, help="JSON file or fsspec URI")
    parser.add_argument("--run", help="local folder for messages.jsonl (default: the request's)")
    return parser


def _refuse(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return REFUSED


def _run_rank(request: Request, folder: Path, rank: int) -> int:
    raise_on_sigterm()
    _limit_threads(request.threads)
    try:
        with _reporter(request, folder, rank) as reporter:
            try:
                _make(request, reporter, rank)
            except BaseException as error:
                reporter.error(_sentence(request, error))
                raise
    except Terminated as ended:
        return int(ended.code or 0)
    except Exception as error:
        traceback.print_exc()
        return FAILED if isinstance(error, CIRCUMSTANCES) else REFUSED
    return 0


def _reporter(
    request: Request, folder: Path, rank: int
) -> AbstractContextManager[PipesReporter | SilentReporter]:
    if rank:
        return nullcontext(SilentReporter(folder / ERRORS.format(rank=rank)))
    return open_reporter(request, folder / MESSAGES)


def _make(request: Request, reporter: PipesReporter | SilentReporter, rank: int) -> None:
    _require_its_code(request)
    if ArtifactWriter(request.output).exists(MANIFEST):
        reporter.log(f"{request.name} is already made: {request.output}")
    else:
        stage_function(request.kind)(Context(request, reporter, rank))
    if rank:
        return
    if not ArtifactWriter(request.output).exists(MANIFEST):
        raise RuntimeError(f"the stage {request.kind} ended without committing {request.output}")
    reporter.made(Artifact(request.output).manifest)


def _require_its_code(request: Request) -> None:
    """Refuse to make with this code what other code was asked for: its fingerprint would lie."""
    if (path := CODE.get(request.kind)) and (here := code_version(path)) != request.code_version:
        raise ValueError(
            f"{request.name} was asked for with the code {request.code_version} of {path}, but "
            f"{here} is installed here: run it with the version that asks, on a cluster the image "
            "of the same commit"
        )


def _sentence(request: Request, error: BaseException) -> str:
    if isinstance(error, Terminated):
        return f"{request.name} was stopped; it goes on from its last checkpoint when asked again"
    text = str(error).strip()
    if isinstance(error, ValueError | ArtifactError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _limit_threads(threads: int) -> None:
    """OpenMP's threads, also where a warm process has imported torch before."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)


if __name__ == "__main__":
    sys.exit(main())
