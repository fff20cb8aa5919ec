"""A whole experiment in the real artifact formats, with made-up numbers, in well under a second."""

from __future__ import annotations

import io
import json
import math
import random
import struct
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hillclimb.artifacts import ArtifactWriter, InputRef, Manifest, Store
from hillclimb.recipe.climb import SPECIALISTS
from hillclimb.recipe.graph import StageSpec, identify, stage_specs
from hillclimb.recipe.schema import Recipe

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=2'>"
TRAINED = ("base_phase", "student", "consolidation", "climb")
SCORES = {"mai_base_16k": 0.31, "mai_base_64k": 0.36, "mai_base_256k": 0.4}


def recipe() -> Recipe:
    """A small recipe with one self-distillation a specialist."""
    rate = {"type": "cosine", "peak": 2e-3, "floor": 2e-4}
    phase = {"tokens": 400_000, "schedule": rate}
    climb = {
        "learning_rate": 3e-4, "lengths": [{"max_tokens": 64, "steps": 30}, {"max_tokens": 96,
        "steps": 60}], "batch_groups": 8, "prompts_per_update": 12, "micro_batch_tokens": 8192,
    }  # fmt: skip
    sft = {"micro_batch_tokens": 8192, "sequence_length": 512, "batch_sequences": 16}
    weights = {"code": 0.5, "stem": 0.3, "dialogue": 0.2}
    specialist = {
        "problems": {"train": 400, "held_out": 200, "kinds": {"sum": 0.6, "rule": 0.4}},
        "climbs": [climb, climb],
        "traces": {"traces": 300},
        "student": sft,
    }
    return Recipe.model_validate(
        {
            "name": "test",
            "corpus": {
                "sources": [
                    {"type": "python_stdlib", "name": "stdlib"},
                    {"type": "installed_packages", "name": "packages", "category": "tools",
                     "kind": "documentation"},
                    {"type": "worksheets", "name": "worksheets", "category": "stem", "count": 500,
                     "kinds": ["sum"]},
                ]
            },
            "tokenizer": {"vocab_size": 512},
            "pretraining_mixture": {"weights": weights},
            "midtraining_mixture": {"weights": weights},
            "model": {"layers": 6, "hidden": 96, "dense_ffn": 192, "latent": 48, "expert_ffn": 128,
                      "query_heads": 3, "kv_heads": 3, "head_dim": 32, "experts": 8,
                      "experts_per_token": 2, "window": 64},
            "base": {
                "batch_tokens": 4096, "micro_batch_tokens": 4096,
                "phase_16k": {"sequence_length": 256, **phase},
                "phase_64k": {"sequence_length": 512, **phase},
                "phase_256k": {"sequence_length": 1024, **phase},
            },
            "specialists": dict.fromkeys(SPECIALISTS, specialist),
            "consolidation": {"shares": {"stem": 0.56, "agentic": 0.11, "helpfulness": 0.33},
                              "traces": 900, "sft": sft},
            "final": {"climb": climb, "shares": {"stem": 0.2, "agentic": 0.1, "helpfulness": 0.7}},
            "evaluation": {"max_tokens": 96},
        }
    )  # fmt: skip


class Maker:
    """Writes the artifacts of `recipe` under `root`; `groups` of 8 rollouts a gradient step."""

    def __init__(self, root: str, recipe_: Recipe, seed: int = 0, groups: int = 3) -> None:
        self.specs = stage_specs(recipe_, seed)
        self.fingerprints = identify(self.specs)
        self.store, self.groups = Store(root), groups

    def make(self, wanted: Callable[[StageSpec], bool] = lambda spec: True) -> None:
        """Write every artifact for which `wanted` holds."""
        for index, (name, spec) in enumerate(self.specs.items()):
            if wanted(spec):
                out = ArtifactWriter(self.store.uri(name, self.fingerprints[name]))
                rng = random.Random(name)
                metrics = getattr(self, spec.kind, self.plain)(out, spec, rng)
                if spec.kind in TRAINED:
                    write_goodput(out)
                self.commit(out, spec, metrics, 10.0 + index)

    def commit(
        self, out: ArtifactWriter, spec: StageSpec, metrics: dict[str, float], seconds: float
    ) -> None:
        """Write the manifest."""
        inputs = {
            role: InputRef(
                name=source,
                fingerprint=self.fingerprints[source],
                uri=self.store.uri(source, self.fingerprints[source]),
            )
            for role, source in spec.inputs.items()
        }
        out.commit(
            Manifest(
                name=spec.name, kind=spec.kind, fingerprint=self.fingerprints[spec.name],
                code_version="0" * 12, seed=spec.seed, inputs=inputs, config=spec.config, files=[],
                metrics=metrics, summary=summary_of(spec),
                run={"seconds": seconds, "ranks": 1, "pid": 1},
            )
        )  # fmt: skip

    def plain(self, out: ArtifactWriter, spec: StageSpec, rng: random.Random) -> dict[str, float]:
        """An artifact that the report does not look into."""
        return {"rows": 12.0}

    def problems(
        self, out: ArtifactWriter, spec: StageSpec, rng: random.Random
    ) -> dict[str, float]:
        """The sizes of both sides."""
        return {"train": 400.0, "held_out": 200.0}

    def tokenizer(
        self, out: ArtifactWriter, spec: StageSpec, rng: random.Random
    ) -> dict[str, float]:
        """The vocabulary's size."""
        return {"vocab_size": 512.0}

    def fine_tuned(
        self, out: ArtifactWriter, spec: StageSpec, rng: random.Random
    ) -> dict[str, float]:
        """A student or the consolidated model."""
        rows = [{"step": i, "loss": 2 - i / 50, "learning_rate": 1e-5, "grad_norm": 1.0,
                 "balance_loss": 1.0} for i in range(40)]  # fmt: skip
        write_rows(out, rows)
        write_model(out)
        return {"loss": rows[-1]["loss"], "tokens": 50_000.0, "traces": 300.0}

    student = consolidation = fine_tuned

    def traces(self, out: ArtifactWriter, spec: StageSpec, rng: random.Random) -> dict[str, float]:
        """Which rollouts were picked."""
        selection = {"rollouts": 1440, "kept": 300, "prompts": 120, "checkpoints": 6}
        out.write_json("selection.json", {**selection, "refused": {"repeats": 7, "language": 2}})
        return {key: float(value) for key, value in selection.items()}

    def filtered_corpus(
        self, out: ArtifactWriter, spec: StageSpec, rng: random.Random
    ) -> dict[str, float]:
        """Funnel, documents and quarantine."""
        steps, left = [], 12_000
        drops = {"extraction": 120, "language": 940, "blocklist": 13, "quality": 3100,
                 "ai_text": 410, "deduplication": 1900, "decontamination": 36}  # fmt: skip
        for name, dropped in drops.items():
            left -= dropped
            example = {
                "id": "d1",
                "source": "packages",
                "reason": f"{name}_rule",
                "detail": "0.31 of 0.65",
                "excerpt": f"An example of {name}. {HOSTILE}",
            }
            steps.append(
                {"name": name, "kept": left, "dropped": dropped, "chars_in": 4000 * left + 9,
                 "chars_out": 4000 * left, "reasons": {f"{name}_rule": dropped},
                 "examples": [example], "notes": {}}
            )  # fmt: skip
        sources = {"stdlib": 5000, "packages": 6500, "worksheets": 500}
        read = {s: {"documents": n, "chars": n * 4000} for s, n in sources.items()}
        kept = {s: {"documents": n // 2, "chars": n * 2000} for s, n in sources.items()}
        funnel = {"steps": steps, "read": read, "kept": kept, "by_category": {}}
        out.write_json("funnel.json", {**funnel, "quarantined": {"broken gzip": 2}})
        bad = [{"source": "packages", "locator": f"file{i}", "reason": "broken gzip",
                "sample": HOSTILE} for i in range(2)]  # fmt: skip
        write_parquet(out, "quarantine-00000.parquet", bad)
        documents = [
            {"id": f"{s}{i}", "text": f"text {i}", "source": s, "category": "code", "kind": "k",
             "licence": "PSF-2.0" if i % 2 else "MIT", "language": "en",
             "provenance": json.dumps({"generated": s == "worksheets"})}
            for s in sources for i in range(4)
        ]  # fmt: skip
        write_parquet(out, "documents-00000.parquet", documents)
        return {"documents": float(left)}

    def mixture(self, out: ArtifactWriter, spec: StageSpec, rng: random.Random) -> dict[str, float]:
        """What each source gave."""
        sources = {
            name: {"category": category, "tokens_available": 300_000, "weight": weight,
                   "tokens_used": int(1_000_000 * weight), "epochs": 1e6 * weight / 3e5,
                   "epoch_cap": 8.0, "memorised_share": 0.02}
            for name, category, weight in (("stdlib", "code", 0.5), ("packages", "tools", 0.3),
                                           ("worksheets", "stem", 0.2))
        }  # fmt: skip
        out.write_json("mixture.json", {"sources": sources, "categories": {}})
        return {"tokens": 1e6}

    def base_phase(
        self, out: ArtifactWriter, spec: StageSpec, rng: random.Random
    ) -> dict[str, float]:
        """Loss falling, one spike."""
        start = {"mai_base_16k": 0, "mai_base_64k": 100, "mai_base_256k": 200}[spec.name]
        rows = []
        for step in range(100):
            loss = 1.1 + 4.5 * math.exp(-(start + step) / 40) + rng.gauss(0, 0.04)
            loss += 1.6 * (step == 40)
            rows.append(
                {"step": step, "tokens": 4096 * (step + 1), "loss": loss, "learning_rate": 2e-3,
                 "grad_norm": 1 + rng.random(), "balance_loss": 1.02 + 0.1 * rng.random(),
                 "router_max_share": 0.2 + 0.05 * rng.random(), "router_entropy": 2.0,
                 "tokens_per_second": 9000 + 500 * rng.random(), "spike": int(step == 40)}
            )  # fmt: skip
        write_rows(out, rows)
        spike = {"step": 40, "loss": rows[40]["loss"], "mean": 1.4, "sources": {"stdlib": 0.8}}
        out.write_json("spikes.json", [spike])
        held = {c: {"nll": 2 - start / 400, "bpb": 0.9 - start / 900, "tokens": 20_000}
                for c in ("code", "stem", "dialogue")}  # fmt: skip
        out.write_json("held_out.json", held)
        positions = [{"start": first, "end": 2 * first or 64, "nll": 2 - (start + first) / 400,
                      "tokens": 9000, "documents": 90} for first in (0, 64, 128)]  # fmt: skip
        out.write_json("positions.json", positions)
        out.write_json("memorisation.json", {"stdlib": 0.02, "packages": 0.01})
        write_model(out)
        return {"loss": rows[-1]["loss"], "tokens": 409_600.0}

    def climb(self, out: ArtifactWriter, spec: StageSpec, rng: random.Random) -> dict[str, float]:
        """Pass rate rising, entropy at its target, and every rollout."""
        start = 0.25 + 0.3 * spec.config["round"] + 0.35 * (spec.name == "mai_thinking")
        rows, rollouts, k = [], [], 0.0
        for step in range(60):
            rate = min(0.98, start + 0.35 * (1 - math.exp(-step / 25)) + rng.gauss(0, 0.04))
            entropy = 0.3 + 0.4 * math.exp(-step / 12) + rng.gauss(0, 0.03)
            k = min(2.5, max(0.0, k + (0.25 if entropy < 0.3 else -0.25)))
            rows.append(climb_row(rng, step, rate, entropy, k))
            rollouts += self.rollouts(spec, rng, step, rate)
        write_rows(out, rows)
        sentence = "the pass rate gained less than 0.02 in 50 steps"
        out.write_json("stop.json", {"reason": "plateau", "sentence": sentence, "step": 59})
        half = len(rollouts) // 2
        write_parquet(out, "rollouts/part-00000.parquet", rollouts[:half])
        write_parquet(out, "rollouts/part-00001.parquet", rollouts[half:])
        learnt = [row for row in rollouts if row["status"] == "trained" and row["graded"]]
        write_parquet(out, "tokens/part-00000.parquet", [tokens_of(row) for row in learnt])
        write_model(out)
        return {"sampled_tokens": 360_000.0, "learned_tokens": 240_000.0}

    def rollouts(
        self, spec: StageSpec, rng: random.Random, step: int, rate: float
    ) -> list[dict[str, Any]]:
        """The groups of one step."""
        domain = spec.group if spec.group in SPECIALISTS else rng.choice(SPECIALISTS)
        out = []
        for group in range(self.groups):
            a, b = rng.randrange(100), rng.randrange(100)
            prompt = f"<|user|>\nWhat is {a} + {b}? Think, then answer.\n<|assistant|>\n<think>"
            status = rng.choice(["trained", "trained", "trained", "early_exit", "filtered"])
            for sample in range(8):
                passed = rng.random() < rate
                answer = a + b if passed else a + b + rng.choice([-10, -1, 1, 10])
                work = " ".join(f"{rng.randrange(1000)}" for _ in range(rng.randrange(4, 40)))
                response = (
                    f"{a} and {b}: {work} so it is {answer}.</think>\n<answer>{answer}</answer>"
                )
                hostile = not (step or group or sample)
                graded = rng.random() > 0.01
                out.append(
                    {"update": step // 5, "version": step // 5, "specialist": domain,
                     "problem_id": f"sum-{a:02d}{b:02d}", "kind": rng.choice(["sum", "rule"]),
                     "group": step * self.groups + group, "sample": sample, "prompt": prompt,
                     "response": HOSTILE if hostile else response, "response_tokens": len(response),
                     "reward": (passed + 0.5 - 0.1 * rng.random()) if graded else None,
                     "task": float(passed) if graded else None, "language": 1.0,
                     "length": 0.1 * rng.random(), "graded": graded,
                     "reason": HOSTILE if hostile else f"answer {answer}, expected {a + b}",
                     "truncated": rng.random() < 0.02, "status": status, "turns": 1,
                     "logprob": -rng.random(), "question": f"What is {a} + {b}?"}
                )  # fmt: skip
        return out

    def scorecard(
        self, out: ArtifactWriter, spec: StageSpec, rng: random.Random
    ) -> dict[str, float]:
        """Scores that rise."""
        scores = {}
        for name in self.specs:
            kind = self.specs[name].kind
            if kind not in ("base_phase", "climb", "student", "consolidation"):
                continue
            scores[name] = {}
            for domain in SPECIALISTS:
                rate = SCORES.get(name, 0.45)
                if domain in name:
                    rate = 0.7 + 0.12 * ("round_1" in name) + 0.03 * ("climb" in name)
                rate = {"consolidated_model": 0.8, "mai_thinking": 0.875}.get(name, rate)
                scores[name][domain] = {"pass_at_1": rate, "greedy": rate + 0.06, "n": 200}
        out.write_json("scorecard.json", scores)
        return {"final": 0.875}


def tokens_of(rollout: dict[str, Any]) -> dict[str, Any]:
    """What engine and learner say of a rollout's tokens; the fifth and sixth are an observation."""
    rng = random.Random(f"{rollout['group']} {rollout['sample']}")
    text = rollout["response"]
    pieces = [text[i : i + 3] for i in range(0, len(text), 3)]
    drawn = [i not in (4, 5) for i in range(len(pieces))]
    logprobs = [-rng.random() if d else None for d in drawn]
    gaps = [0.3 * rng.random() ** 6 - 0.3 * rng.random() ** 6 for _ in pieces]
    return {
        **{name: rollout[name] for name in ("update", "group", "sample")},
        "learner_version": rollout["update"], "learner_steps": 0,
        "tokens": list(range(len(pieces))),
        "pieces": pieces, "drawn": drawn, "version": [rollout["version"]] * len(pieces),
        "logprob": logprobs,
        "learner_logprob": [p if p is None else p + g for p, g in zip(logprobs, gaps, strict=True)],
    }  # fmt: skip


def summary_of(spec: StageSpec) -> dict[str, Any]:
    """One climb raised an alarm; its other signals, and those of the others, were quiet."""
    if spec.kind != "climb":
        return {}
    steps = 2 * (spec.name == "agentic/round_0/climb")
    gradient = {
        "signal": "gradient", "halts": False, "steps": steps, "first": 21 if steps else None,
        "sentence": "the gradient's norm is 31 times its running median, over 20",
    }  # fmt: skip
    entropy = {"signal": "entropy", "halts": True, "steps": 0, "first": None, "sentence": "quiet"}
    return {"alarms": [gradient, entropy]}


def climb_row(
    rng: random.Random, step: int, rate: float, entropy: float, k: float
) -> dict[str, float]:
    """One gradient step."""
    return {
        "step": step, "update": step // 5, "pass_rate": rate, "entropy": entropy, "k": k,
        "response_tokens": 40 + step / 3 + rng.gauss(0, 2), "reward": rate + 0.45,
        "reward_task": rate, "reward_language": 0.98, "reward_length": 0.4,
        "trust_clip_share": 0.03 * rng.random(), "outer_clip_share": 0.0,
        "mismatch": 4e-6 * (1 + rng.random()), "truncated_share": 0.05 * rng.random(),
        "ungraded": rng.choice([0, 0, 0, 1]), "grad_norm": 0.5 + 0.4 * rng.random(),
        "grad_norm_ratio": 1.0, "hacked_share": 0.01 * rng.random(), "judged": 40,
        "disagreement": 0.02, "balance_loss": 1.03, "groups_kept": 8,
        "groups_early_exit": rng.randrange(4), "groups_filtered": rng.randrange(3),
        "groups_stale": 0,
        "max_tokens": 64 if step < 30 else 96, "age": step % 5 / 5, "age_mean": step % 5 / 9,
        "learner_waited": 0.7, "generation_waited": 0.2, "sampled_per_second": 900.0,
        "learned_per_second": 700.0, "sampled_tokens": 6000,
        "learned_tokens": 4000, "seconds_sampling": (step % 5 == 0) * (2.5 + rng.random()),
        "seconds_grading": (step % 5 == 0) * 0.2, "seconds_learning": 0.7 + 0.1 * rng.random(),
    }  # fmt: skip


def write_goodput(out: ArtifactWriter) -> None:
    """A stage that was killed twice on its way: 80 % goodput."""
    names = ("start", "restart", "lost_steps", "data", "checkpoint", "slow_steps", "held_out",
             "finish", "other")  # fmt: skip
    seconds = (4.0, 9.0, 3.0, 0.5, 0.5, 1.0, 0.4, 1.5, 0.1)
    out.write_json(
        "goodput.json",
        {"goodput": 0.8, "actual_seconds": 100.0, "ideal_seconds": 80.0, "steps": 100,
         "stalls": dict(zip(names, seconds, strict=True)), "attempts": 3, "steps_again": 4,
         "even_steps": True, "data_seconds_of_other_ranks": []},
    )  # fmt: skip


def write_rows(out: ArtifactWriter, rows: list[dict[str, Any]]) -> None:
    """`metrics.jsonl`."""
    out.write_text("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(out: ArtifactWriter, path: str, rows: list[dict[str, Any]]) -> None:
    """Rows as parquet."""
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    out.write_bytes(path, stream.getvalue())


def write_model(out: ArtifactWriter) -> None:
    """A safetensors file of 653,000 zeros in one tensor of half precision, and its config."""
    header = {"weight": {"dtype": "F16", "shape": [653, 1000], "data_offsets": [0, 1_306_000]}}
    head = json.dumps(header).encode()
    data = struct.pack("<Q", len(head)) + head + bytes(1_306_000)
    out.write_bytes("model/model.safetensors", data)
    out.write_json("model/config.json", {"model_type": "mai"})
