"""vLLM in this process, as an engine. Imported in vLLM's own environment alone."""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import vllm
from safetensors.torch import save_file
from torch import Tensor
from vllm.sampling_params import RequestOutputKind

from hillclimb.model.configuration import MaiConfig
from hillclimb.rollout.engine import Completion, SamplingParams
from hillclimb.rollout.soundness import PROMPT_TOKENS, fixed_prompt, require_sound
from hillclimb.rollout.vllm_plugin import register
from hillclimb.rollout.vllm_sampling import NUCLEUS, REQUEST


@dataclass
class _Call:
    """One `generate`: its requests, and what is drawn of them."""

    prompts: Sequence[list[int]]
    params: SamplingParams
    names: list[str]
    done: dict[str, Any] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        return len(self.done) == len(self.names)


class _Sink(list[Any]):
    """Where vLLM leaves what it has of a request that is aborted."""

    put = list.append


class LocalVllm:
    """vLLM's engine behind `RolloutEngine`; calls of several threads are drawn together.

    Whoever waits for a call steps the engine for all. New weights wait for the calls under way.
    After each load the log-probabilities of a fixed prompt are held against those of `reference`:
    an engine that is wrong draws nothing until a load is right.

    Args:
        folder: a Hugging Face folder with the start, version 0.
        reference: the same network on the CPU; takes each version's weights.
        options: arguments for `vllm.LLM` before those that it has here: `dtype`, of weights and
            products; `max_model_len`, of prompt and answer together, where answers are cut.

    Raises:
        RuntimeError: if the engine computes something else than `reference`.
    """

    def __init__(self, folder: Path, reference: Any, options: dict[str, Any]) -> None:
        register()
        self._reference, self._config = reference, reference.config
        self._routed = isinstance(self._config, MaiConfig) and torch.cuda.is_available()
        arguments = self._arguments() | options
        self._dtype, self._context = arguments["dtype"], arguments["max_model_len"]
        self._llm = vllm.LLM(str(folder), **arguments)
        self._engine = self._llm.llm_engine
        self._turn = threading.Condition()
        self._live: dict[str, _Call] = {}
        self._version, self._calls, self._loading, self._wrong = 0, 0, False, ""
        self._scratch = tempfile.TemporaryDirectory(prefix="hillclimb-weights-")
        self._check()

    def _arguments(self) -> dict[str, Any]:
        gpu = torch.cuda.is_available()
        routed = {"enable_return_routed_experts": True} if self._routed else {}
        return routed | {
            "dtype": "bfloat16" if gpu else "float32",
            "max_model_len": 8192,
            "max_num_seqs": 512 if gpu else 256,
            "block_size": 16 if gpu else 32,
            "enforce_eager": not gpu,
            "gpu_memory_utilization": 0.4,
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
            "logprobs_mode": "processed_logprobs",
            "logits_processors": ["hillclimb.rollout.vllm_sampling:NucleusRecorder"],
            "worker_extension_cls": "hillclimb.rollout.vllm_sampling.Worker",
            "async_scheduling": False,
            "enable_prefix_caching": True,
            "disable_log_stats": True,
            "seed": 0,
        }

    @property
    def version(self) -> int:
        """Version of the weights in use."""
        return self._version

    def load_weights(self, weights: dict[str, Tensor], version: int) -> None:
        """Change the weights, forget cached prefixes, and check.

        Raises:
            RuntimeError: if the engine then computes something else than the network.
        """
        with self._turn:
            self._turn.wait_for(lambda: not self._loading)
            self._loading = True
            try:
                self._turn.wait_for(lambda: not self._live)
                self._reference.load_state_dict(weights, strict=False)
                save_file(weights, f"{self._scratch.name}/model.safetensors")
                self._llm.collective_rpc(
                    "reload_weights", kwargs={"weights_path": self._scratch.name}
                )
                self._llm.collective_rpc("hillclimb_repack")
                self._llm.reset_prefix_cache()
                self._version = version
                self._check()
            finally:
                self._loading = False
                self._turn.notify_all()

    def close(self) -> None:
        """Let go of the weights on disk."""
        self._scratch.cleanup()

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
        if not prompts or not params.max_tokens:
            return [self._nothing() for _ in prompts]
        call = self._begin(prompts, params, seed)
        while not call.over:
            with self._turn:
                if not call.over:
                    self._take(self._engine.step())
        return self._collect(call)

    def interrupt(self) -> None:
        """Let calls under way return soon with what they have."""
        with self._turn:
            names = list(self._live)
            sink = _Sink()
            for state in self._engine.output_processor.request_states.values():
                state.queue = sink
            self._engine.abort_request(names)
            self._take(sink)

    def _begin(self, prompts: Sequence[list[int]], params: SamplingParams, seed: int) -> _Call:
        with self._turn:
            self._turn.wait_for(lambda: not self._loading)
            if self._wrong:
                raise RuntimeError(self._wrong)
            self._calls += 1
            call = _Call(prompts, params, [f"{self._calls}-{i}" for i in range(len(prompts))])
            for place, (name, prompt) in enumerate(zip(call.names, prompts, strict=True)):
                self._live[name] = call
                asked = self._asked(params, prompt, name, _seed(seed, place))
                self._engine.add_request(name, {"prompt_token_ids": list(prompt)}, asked)
        return call

    def _asked(self, params: SamplingParams, prompt: list[int], name: str, seed: int) -> Any:
        kept = {} if params.greedy else {NUCLEUS: params.top_p, REQUEST: name}
        return vllm.SamplingParams(
            max_tokens=min(params.max_tokens, self._context - len(prompt)),
            temperature=0.0 if params.greedy else params.temperature,
            seed=None if params.greedy else seed,
            stop_token_ids=list(params.stop),
            ignore_eos=True,
            detokenize=False,
            logprobs=0,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=kept,
        )

    def _take(self, outputs: Sequence[Any]) -> None:
        for output in outputs:
            self._live.pop(output.request_id).done[output.request_id] = output.outputs[0]
        if outputs:
            self._turn.notify_all()

    def _collect(self, call: _Call) -> list[Completion]:
        outputs = [call.done[name] for name in call.names]
        lengths = [len(output.token_ids) for output in outputs]
        if call.params.greedy:
            masks = [self._nothing().nucleus] * len(outputs)
        else:
            with self._turn:
                masks = self._llm.collective_rpc("hillclimb_masks", args=(call.names, lengths))[0]
        return [
            self._completion(output, mask, call.params)
            for output, mask in zip(outputs, masks, strict=True)
        ]

    def _completion(self, output: Any, mask: np.ndarray, params: SamplingParams) -> Completion:
        tokens = list(output.token_ids)
        chances = [at[token].logprob for token, at in zip(tokens, output.logprobs, strict=True)]
        finish = output.finish_reason if output.finish_reason in ("stop", "length") else None
        return Completion(
            tokens, np.array(chances, np.float32), mask, finish or "interrupted", self._version,
            self._routes(output) if params.routes else None,
        )  # fmt: skip

    def _routes(self, output: Any) -> np.ndarray | None:
        """The MoE layers' experts; vLLM has a row for every layer, and none of an aborted one."""
        every = getattr(output, "routed_experts", None)
        if every is None or not self._routed:
            return None
        layers = [i for i in range(self._config.num_hidden_layers) if self._config.is_moe(i)]
        return np.ascontiguousarray(every[:, layers], np.uint16)

    def _nothing(self) -> Completion:
        width = (self._config.vocab_size + 7) // 8
        none = np.zeros(0, np.float32), np.zeros((0, width), np.uint8)
        return Completion([], *none, "length", self._version)

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


def _seed(seed: int, place: int) -> int:
    """A seed of its own for each answer of a call."""
    return int.from_bytes(hashlib.sha256(f"{seed} {place}".encode()).digest()[:7])
