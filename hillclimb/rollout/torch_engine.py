"""The in-process engine: static cache, large batches, shared prompt prefixes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hillclimb.model.attention import KVCache
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.rollout.engine import BATCH_ROWS, Completion, SamplingParams, batches
from hillclimb.rollout.nuclei import Nuclei
from hillclimb.rollout.route_log import RouteLog
from hillclimb.rollout.sampling import draw

Step = tuple[Tensor, Tensor, Tensor, Nuclei]


class TorchEngine:
    """Generates with a copy of the model in this process, on the model's device.

    Args:
        batch_size: most prompts that are drawn together.
        dtype: what it computes in.
    """

    def __init__(
        self, model: MaiForCausalLM, batch_size: int = BATCH_ROWS,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.model = MaiForCausalLM(model.config)
        self.model.load_state_dict(model.state_dict())
        self.model.to(device=model.embed.weight.device, dtype=dtype)  # type: ignore[call-arg]
        self.model.eval().requires_grad_(False)
        self.batch_size = batch_size
        self._version = self._interrupts = 0

    @property
    def version(self) -> int:
        """Version of the weights in use."""
        return self._version

    def load_weights(self, weights: dict[str, Tensor], version: int) -> None:
        """Copy new weights in."""
        self.model.load_state_dict(weights)
        self._version = version

    def interrupt(self) -> None:
        """End the call under way in another thread before its next token."""
        self._interrupts += 1

    def close(self) -> None:
        """Nothing is held."""

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[list[int]], params: SamplingParams, seed: int
    ) -> list[Completion]:
        """One completion a prompt, `batch_size` rows at a time; the seed decides the draws.

        Raises:
            ValueError: for an empty prompt, naming its position.
            FloatingPointError: if the weights give logits that are not finite.
        """
        done: list[Completion] = []
        interrupts = self._interrupts
        for batch in batches(prompts, seed, self.batch_size):
            generator = torch.Generator().manual_seed(batch.seed)
            with RouteLog(self.model, params.routes) as routes:
                found = self._batch(batch.prompts, params, generator, routes, interrupts)
                done += routes.put(found, batch.prompts)
        return done

    def _batch(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        generator: torch.Generator,
        routes: RouteLog,
        interrupts: int,
    ) -> list[Completion]:
        """Draw until all rows end, or for no longer than `interrupts` stays as it is."""
        if interrupts != self._interrupts:
            return self._collect([], len(prompts), params)
        cache, logits, starts = self._prefill(prompts, params.max_tokens, routes)
        rows = torch.arange(len(prompts))
        stops = torch.tensor(params.stop, dtype=torch.long)
        steps: list[Step] = []
        alive = torch.ones(len(prompts), dtype=torch.bool)
        for step in range(params.max_tokens):
            tokens, logprobs, kept = self._choose(logits, params, generator)
            steps.append((rows, tokens, logprobs, kept))
            alive &= ~torch.isin(tokens, stops)
            if step + 1 == params.max_tokens or not bool(alive.any()):
                break
            if interrupts != self._interrupts:
                break
            if int(alive.sum()) <= 0.75 * len(alive):
                keep = alive.nonzero()[:, 0]
                cache, rows, starts = cache.select(keep), rows[keep], starts[keep]
                tokens, alive = tokens[keep], alive[keep]
            logits = self._logits(tokens[:, None], cache, starts)
            routes.fed(rows)
        return self._collect(steps, len(prompts), params)

    def _logits(self, ids: Tensor, cache: KVCache, starts: Tensor) -> Tensor:
        """What follows the last column of the tokens, (B, V) on the host."""
        device = self.model.embed.weight.device
        hidden = self.model.hidden(ids.to(device), cache=cache, starts=starts.to(device))
        logits = self.model.logits(hidden[:, -1]).cpu()
        if not bool(logits.isfinite().all()):
            told = f"the weights of version {self._version} give NaN or infinite logits"
            raise FloatingPointError(told)
        return logits

    @staticmethod
    def _choose(
        logits: Tensor, params: SamplingParams, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Nuclei]:
        if params.greedy:
            best = logits.log_softmax(-1).max(-1)
            return best.indices, best.values, Nuclei.free(len(logits))
        tokens, logprobs, kept = draw(logits, params.temperature, params.top_p, generator)
        whole = params.top_p >= 1.0
        return tokens, logprobs, Nuclei.free(len(kept)) if whole else Nuclei.of_mask(kept.numpy())

    def _prefill(
        self, prompts: Sequence[list[int]], room: int, routes: RouteLog
    ) -> tuple[KVCache, Tensor, Tensor]:
        """Run every different prompt once, left-padded, then spread the cache over its group."""
        distinct: dict[tuple[int, ...], int] = {}
        owner = torch.tensor([distinct.setdefault(tuple(p), len(distinct)) for p in prompts])
        width = max(map(len, distinct))
        ids = torch.zeros(len(distinct), width, dtype=torch.long)
        starts = torch.zeros(len(distinct), dtype=torch.long)
        for prompt, row in distinct.items():
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            starts[row] = width - len(prompt)
        like = self.model.embed.weight
        cache = KVCache.empty(self.model.config, len(distinct), width + room, like)
        logits = self._logits(ids, cache, starts)
        routes.began(owner, starts)
        return cache.select(owner), logits[owner], starts[owner]

    def _collect(self, steps: list[Step], count: int, params: SamplingParams) -> list[Completion]:
        length = len(steps)
        tokens = np.full((count, length), -1, np.int64)
        logprobs = np.zeros((count, length), np.float32)
        for step, (rows, drawn, chances, _) in enumerate(steps):
            index = rows.numpy()
            tokens[index, step], logprobs[index, step] = drawn.numpy(), chances.numpy()
        ends = np.isin(tokens, params.stop)
        after = ends.argmax(1) + 1 if length else 0
        sizes = np.where(ends.any(1), after, (tokens >= 0).sum(1))
        return [
            Completion(
                tokens[i, :n].tolist(),
                logprobs[i, :n].copy(),
                kept[:n],
                "stop" if ends[i].any() else "length" if n == params.max_tokens else "interrupted",
                self._version,
            )
            for i, (n, kept) in enumerate(zip(sizes, _by_row(steps, count), strict=True))
        ]


def _by_row(steps: list[Step], count: int) -> list[Nuclei]:
    """The nuclei of each row, in the order of its steps."""
    rows = np.concatenate([np.zeros(0, np.int64), *(rows.numpy() for rows, *_ in steps)])
    kept = Nuclei.joined([kept for *_, kept in steps])
    return kept[rows.argsort(kind="stable")].split(np.bincount(rows, minlength=count).cumsum())
