"""vLLM in this process, as an engine. Imported in vLLM's own environment alone."""

from __future__ import annotations

import hashlib
import tempfile
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import torch
import vllm
from safetensors.torch import save_file
from torch import Tensor
from vllm.sampling_params import RequestOutputKind

from hillclimb.model.configuration import MaiConfig
from hillclimb.rollout.engine import Completion, SamplingParams, undrawn
from hillclimb.rollout.nuclei import Nuclei
from hillclimb.rollout.soundness import PROMPT_TOKENS, fixed_prompt, require_sound
from hillclimb.rollout.vllm_model import MaiForCausalLM
from hillclimb.rollout.vllm_plugin import ARCHITECTURE, register
from hillclimb.rollout.vllm_sampling import DRAW

ONE_GROUP = 16_384


@dataclass
class _Call:
    """One `generate`: its requests, and what is drawn of them."""

    prompts: Sequence[list[int]]
    params: SamplingParams
    seed: int
    result: Future[list[Completion]] = field(default_factory=Future)
    names: list[str] = field(default_factory=list)
    done: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Load:
    """New weights; they wait for the calls before them."""

    weights: dict[str, Tensor]
    version: int
    result: Future[None] = field(default_factory=Future)


class _Interrupt:
    """End what was asked for before."""


class _Sink(list[Any]):
    """Where vLLM leaves what it has of a request that is aborted."""

    put = list.append


class LocalVllm:
    """vLLM's engine behind `RolloutEngine`; calls of several threads are drawn together.

    One thread, the one that makes it, owns vLLM: in `run` it does what others ask for, between two
    tokens. After each load the log-probabilities of a fixed prompt are held against those of
    `reference`: an engine that is wrong draws nothing until a load is right.

    Args:
        folder: a Hugging Face folder with the start, version 0.
        reference: the same network on the CPU; takes each version's weights.
        options: arguments for `vllm.LLM` before those that it has here: `dtype`, of weights and
            products; `max_model_len`, of prompt and answer together, where answers are cut.

    Raises:
        RuntimeError: if the engine computes something else than `reference`.
    """

    def __init__(self, folder: Path, reference: Any, options: dict[str, Any]) -> None:
        # By its name alone, a process of its own would import vLLM to look at the network.
        vllm.ModelRegistry.register_model(ARCHITECTURE, MaiForCausalLM)
        register()
        self._reference, self._config = reference, reference.config
        self._routed = isinstance(self._config, MaiConfig) and torch.cuda.is_available()
        arguments = _arguments(self._routed, options)
        self._dtype, self._context = arguments["dtype"], arguments["max_model_len"]
        self._alone = arguments.get("tensor_parallel_size", 1) == 1
        self._llm = vllm.LLM(str(folder), **arguments)
        self._engine = self._llm.llm_engine
        self._inbox: SimpleQueue[_Call | _Load | _Interrupt] = SimpleQueue()
        self._orders: deque[_Call | _Load] = deque()
        self._live: dict[str, _Call] = {}
        self._version, self._calls, self._wrong = 0, 0, ""
        self._scratch = tempfile.TemporaryDirectory(prefix="hillclimb-weights-")
        self._check()

    @property
    def version(self) -> int:
        """Version of the weights in use."""
        return self._version

    def load_weights(self, weights: dict[str, Tensor], version: int) -> None:
        """Change the weights after the calls under way, forget cached prefixes, and check.

        Raises:
            RuntimeError: if the engine then computes something else than the network.
        """
        load = _Load(weights, version)
        self._inbox.put(load)
        load.result.result()

    def generate(
        self, prompts: Sequence[list[int]], params: SamplingParams, seed: int
    ) -> list[Completion]:
        """One completion a prompt; the seed and a prompt's place decide its draws.

        Raises:
            ValueError: for a prompt that is empty or leaves no room, naming its position.
            RuntimeError: if the engine is wrong since the last load.
        """
        for index, prompt in enumerate(prompts):
            if not prompt:
                raise ValueError(f"prompt {index} is empty: a completion needs at least one token")
            if len(prompt) >= self._context:
                raise ValueError(
                    f"prompt {index} has {len(prompt)} tokens and leaves no room for an answer in "
                    f"the engine's context of {self._context}: raise max_model_len"
                )
        call = _Call(prompts, params, seed)
        self._inbox.put(call)
        return call.result.result()

    def interrupt(self) -> None:
        """Let calls that were made by now return soon with what they have."""
        self._inbox.put(_Interrupt())

    def close(self) -> None:
        """Let go of the weights on disk."""
        self._scratch.cleanup()

    def run(self) -> None:
        """Do what is asked for, for as long as vLLM can.

        Raises:
            Exception: where vLLM itself fails; callers then wait for ever, so the process must end.
        """
        while True:
            self._listen()
            while self._orders and not (self._live and isinstance(self._orders[0], _Load)):
                self._begin(self._orders.popleft())
            if self._live:
                self._finish(self._engine.step())

    def _listen(self) -> None:
        """Read what was asked for; wait for it where there is nothing else to do."""
        with suppress(Empty):
            order = self._inbox.get(block=not self._live and not self._orders)
            while True:
                if isinstance(order, _Interrupt):
                    self._end_all()
                else:
                    self._orders.append(order)
                order = self._inbox.get_nowait()

    def _begin(self, order: _Call | _Load) -> None:
        try:
            if isinstance(order, _Load):
                self._load(order)
                order.result.set_result(None)
            elif self._wrong:
                raise RuntimeError(self._wrong)
            elif not order.prompts or not order.params.max_tokens:
                order.result.set_result([self._nothing("length") for _ in order.prompts])
            else:
                self._add(order)
        except (RuntimeError, ValueError) as error:
            order.result.set_exception(error)

    def _load(self, load: _Load) -> None:
        self._reference.load_state_dict(load.weights, strict=False)
        if self._alone and all(tensor.is_cuda for tensor in load.weights.values()):
            given: dict[str, Any] = {"weights_iterator": list(load.weights.items())}
        else:
            save_file(load.weights, f"{self._scratch.name}/model.safetensors")
            given = {"weights_path": self._scratch.name}
        self._llm.collective_rpc("reload_weights", kwargs=given)
        self._llm.collective_rpc("hillclimb_repack")
        self._llm.reset_prefix_cache()
        self._version = load.version
        self._check()

    def _add(self, call: _Call) -> None:
        self._calls += 1
        for place, prompt in enumerate(call.prompts):
            name = f"{self._calls}-{place}"
            call.names.append(name)
            self._live[name] = call
            asked = self._asked(call.params, prompt, name, _seed(call.seed, place))
            self._engine.add_request(name, {"prompt_token_ids": list(prompt)}, asked)

    def _asked(self, params: SamplingParams, prompt: list[int], name: str, seed: int) -> Any:
        asked = name, None if params.greedy else seed, params.temperature, params.top_p
        return vllm.SamplingParams(
            max_tokens=min(params.max_tokens, self._context - len(prompt)),
            temperature=0.0,
            stop_token_ids=list(params.stop),
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args={DRAW: asked},
        )

    def _end_all(self) -> None:
        """Give each call what it has: nothing, where it waits for a load."""
        sink = _Sink()
        for state in self._engine.output_processor.request_states.values():
            state.queue = sink
        self._engine.abort_request(list(self._live))
        self._finish(sink)
        for order in [order for order in self._orders if isinstance(order, _Call)]:
            self._orders.remove(order)
            order.result.set_result([self._nothing("interrupted") for _ in order.prompts])

    def _finish(self, outputs: Sequence[Any]) -> None:
        for output in outputs:
            call = self._live.pop(output.request_id)
            call.done[output.request_id] = output.outputs[0]
            if len(call.done) == len(call.names):
                call.result.set_result(self._collect(call))

    def _collect(self, call: _Call) -> list[Completion]:
        outputs = [call.done[name] for name in call.names]
        lengths = [len(output.token_ids) for output in outputs]
        drawn = self._llm.collective_rpc("hillclimb_drawn", args=(call.names, lengths))[0]
        return [
            self._completion(output, nucleus, logprobs, call.params)
            for output, (nucleus, logprobs) in zip(outputs, drawn, strict=True)
        ]

    def _completion(
        self, output: Any, nucleus: Nuclei, logprobs: np.ndarray, params: SamplingParams
    ) -> Completion:
        finish = output.finish_reason if output.finish_reason in ("stop", "length") else None
        return Completion(
            list(output.token_ids),
            logprobs,
            nucleus,
            finish or "interrupted",
            self._version,
            self._routes(output) if params.routes else None,
        )

    def _routes(self, output: Any) -> np.ndarray | None:
        """The MoE layers' experts; vLLM has a row for every layer, and none of an aborted one."""
        every = getattr(output, "routed_experts", None)
        if every is None or not self._routed:
            return None
        layers = [i for i in range(self._config.num_hidden_layers) if self._config.is_moe(i)]
        return np.ascontiguousarray(every[:, layers], np.uint16)

    def _nothing(self, finish: Any) -> Completion:
        return replace(undrawn(self._version), finish=finish)

    def _check(self) -> None:
        """Hold the engine against the network on a fixed prompt."""
        prompt = fixed_prompt(self._config.vocab_size, min(PROMPT_TOKENS, self._context - 1))
        params = vllm.SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        self._engine.add_request("check", {"prompt_token_ids": prompt}, params)
        found: list[Any] = []
        while not found:
            found = self._engine.step()
        rows = found[0].prompt_logprobs[1:]
        engine = [row[token].logprob for row, token in zip(rows, prompt[1:], strict=True)]
        self._wrong = ""
        try:
            require_sound(self._reference, prompt, engine, self._dtype, self._version)
        except RuntimeError as wrong:
            self._wrong = str(wrong)
            raise


def _arguments(routed: bool, options: dict[str, Any]) -> dict[str, Any]:
    """What `vllm.LLM` is given; `options` win.

    vLLM's scheduler is Python, and works once for each request, block list and group of layers.
    So blocks are large, and up to `ONE_GROUP` tokens of context local layers keep the whole of it,
    as global ones do (they still attend to their window alone): there is one group then.
    """
    gpu = torch.cuda.is_available()
    routes = {"enable_return_routed_experts": True} if routed else {}
    arguments: dict[str, Any] = routes | {
        "dtype": "bfloat16" if gpu else "float32",
        "max_model_len": 8192,
        "max_num_seqs": 512 if gpu else 256,
        "block_size": 64 if gpu else 32,
        "enforce_eager": not gpu,
        "gpu_memory_utilization": 0.4,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "logits_processors": ["hillclimb.rollout.vllm_sampling:Drawer"],
        "worker_extension_cls": "hillclimb.rollout.vllm_sampling.Worker",
        "async_scheduling": False,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "seed": 0,
    }
    arguments |= options
    if arguments["max_model_len"] <= ONE_GROUP:
        arguments.setdefault("disable_hybrid_kv_cache_manager", True)
    return arguments


def _seed(seed: int, place: int) -> int:
    """A seed of its own for each answer of a call."""
    return int.from_bytes(hashlib.sha256(f"{seed} {place}".encode()).digest()[:7])
