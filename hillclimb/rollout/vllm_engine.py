"""vLLM in a child process with an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from hillclimb.rollout.local_server import LocalServer
from hillclimb.rollout.replicas import Away, Failed, Unreached
from hillclimb.rollout.shared_weights import SharedBuffer
from hillclimb.rollout.soundness import unshared
from hillclimb.rollout.vllm_options import arguments
from hillclimb.rollout.vllm_servers import Slot, VllmServers
from hillclimb.rollout.wire import Weights

PYTHON = "HILLCLIMB_VLLM_PYTHON"
PATIENCE = 300.0
_ROOT = Path(__file__).resolve().parents[2]
_FIND = "import importlib.util as u, sys; sys.exit(u.find_spec('vllm') is None)"


class VllmEngine(VllmServers):
    """Draws with vLLM: on the GPU where there is one, in BF16; else on the CPU, in FP32.

    The child lives and dies with this process and is started anew where it dies itself; what it
    was drawing is drawn again. It has the last of the GPUs, and shares the learner's where there is
    one alone. It is given each version's weights at once, from GPU to GPU where they are on one,
    and checks that it computes what the network computes; calls under way come back interrupted.
    A call's seed decides its draws, which are not those of `TorchEngine`.

    Args:
        model: the start: ours, or a causal language model of transformers that vLLM knows.
        options: arguments of `vllm.LLM`, before those of `HILLCLIMB_VLLM_OPTIONS` (a JSON object).
        patience: seconds without a sound child after which a call gives up.
        log: told when the child goes away or comes back.

    Raises:
        RuntimeError: if there is no vLLM, or it does not start with this model.
        ValueError: if `HILLCLIMB_VLLM_OPTIONS` is no JSON object.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        options: dict[str, Any] | None = None,
        patience: float = PATIENCE,
        log: Callable[[str], None] = print,
    ) -> None:
        python, given = vllm_python(), arguments(json.dumps(options or {}))
        self._folder = tempfile.TemporaryDirectory(prefix="hillclimb-vllm-")
        tensors = write_model(model, Path(self._folder.name))
        self._types = {name: tensor.dtype for name, tensor in tensors.items()}
        words = [
            python, "-m", "hillclimb.rollout.vllm_worker", "--model", self._folder.name,
            "--options", json.dumps(given),
        ]  # fmt: skip
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {"PYTHONPATH": os.pathsep.join(paths), "TMPDIR": self._folder.name}
        self.server = LocalServer(words, environment | own_gpus(given), log)
        super().__init__([self.server.url], model, patience, log)
        shared = all(tensor.is_cuda for tensor in tensors.values())
        self._buffer = SharedBuffer(tensors) if shared else None

    def load_weights(self, weights: dict[str, Tensor], version: int) -> None:
        """Give the child new weights; one that is away gets them when it is back.

        Raises:
            RuntimeError: if the engine is wrong with them.
        """
        own = {name: weights[name].to(dtype) for name, dtype in self._types.items()}
        if self._buffer is not None:
            try:
                self._bring(partial(self._buffer.write, own, version))
                return
            except Unreached as why:
                self._log(f"vLLM does not read the learner's memory, and gets copies: {why}")
                self._buffer = None
        self._bring(partial(Weights.of, own, version))

    def _bring(self, make: Callable[[], Weights]) -> None:
        """From now on these are drawn with; what is under way does not hold them up."""
        slot = self._replicas[0]
        assert isinstance(slot, Slot)
        with slot.sending:
            self._weights = make()
            self.interrupt()
            try:
                slot.send(self._weights)
            except Failed as failed:
                told = f"vLLM did not take version {self.version}: {failed}"
                raise RuntimeError(told) from failed
            except Unreached:
                raise
            except Away:
                return  # it gets them when it is back

    def close(self) -> None:
        """End the child."""
        super().close()
        self.server.close()
        self._folder.cleanup()


def vllm_python() -> str:
    """The interpreter that has vLLM.

    Raises:
        RuntimeError: if it is not there, or has none.
    """
    default = _ROOT / ".venv-vllm" / "bin" / "python"
    python = os.environ.get(PYTHON, str(default))
    try:
        found = subprocess.run([python, "-c", _FIND], capture_output=True).returncode == 0
    except OSError:
        found = False
    if not found:
        raise RuntimeError(
            f"{python} is no Python with vLLM: run `make vllm`, or set {PYTHON} to one that has it"
        )
    return python


def own_gpus(options: dict[str, Any]) -> dict[str, str]:
    """What lets the child see the last GPUs, as many as it computes on; nothing for one GPU."""
    count = torch.cuda.device_count()
    if count < 2:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    wanted = options.get("tensor_parallel_size", 1) * options.get("pipeline_parallel_size", 1)
    return {"CUDA_VISIBLE_DEVICES": ",".join(visible[-wanted:])}


def write_model(model: PreTrainedModel, folder: Path) -> dict[str, Tensor]:
    """Write a Hugging Face folder; returns the tensors in it."""
    config = model.config.to_diff_dict() | {"architectures": [type(model).__name__]}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = unshared(model.state_dict())
    save_file(
        {name: t.detach().cpu().contiguous() for name, t in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return tensors
