"""Loading recipes: presets, overrides, round trips, and all mistakes at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hillclimb.recipe.errors import RecipeError
from hillclimb.recipe.graph import stage_specs
from hillclimb.recipe.load import (
    dump_recipe,
    experiment_name,
    load_recipe,
    parse_recipe,
    presets,
)
from hillclimb.scaling.plan import plan_recipe

SMALL = Path(__file__).with_name("small.yaml")
TEXT = SMALL.read_text()
FILES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def mistakes(text: str) -> dict[str, str]:
    """Field to sentence."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "small.yaml")
    return {problem.field: str(problem) for problem in caught.value.problems}


def changed(*pairs: tuple[str, str]) -> str:
    text = TEXT
    for before, after in pairs:
        assert before in text, before
        text = text.replace(before, after, 1)
    return text


@pytest.mark.parametrize("name", [*presets(), *FILES], ids=str)
def test_every_recipe_here_dumps_and_loads_to_itself_and_fits(name: str | Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == Path(name).stem
    plan_recipe(recipe).require_fit()
    assert parse_recipe(dump_recipe(recipe)) == recipe
    assert len(stage_specs(recipe)) > 20


def test_anchors_merge_and_their_sections_disappear() -> None:
    recipe = load_recipe(SMALL)
    first, second = recipe.specialists["stem"].climbs
    assert (first.learning_rate, second.learning_rate) == (2e-4, 1e-4)
    assert first.groups == second.groups


def test_ten_different_mistakes_are_ten_errors() -> None:
    found = mistakes(
        changed(
            ("layers: 6", "layers: 7"),
            ("experts_per_token: 2", "expert_per_token: 2"),
            ("vocab_size: 2048", "vocab_size: many"),
            ("type: jsonl", "type: json"),
            ("peak: 2e-3, floor", "peak: -1, floor"),
            ("{type: constant, peak: 1e-4}", "{type: constant}"),
            ("  learning_rate: 2e-4", "  learning_rate: 2e-4\n  top_p: 0.9"),
            ("stem: 0.56", "stam: 0.56"),
            ("evaluation: {max_tokens: 64}", "evaluation: {max_tokens: 640}"),
            ("kinds: {find: 1}", "kinds: {}"),
        )
    )
    expected = {
        "model": "layers=7 must be a multiple of global_every=6",
        "model.expert_per_token": "write experts_per_token",
        "tokenizer.vocab_size": "must be a whole number, but is 'many'",
        "corpus.sources.1.type": "write jsonl",
        "base.phase_16k.schedule.peak": "must be above 0.0, but is -1",
        "base.phase_256k.schedule.peak": "is missing",
        "specialists.stem.climbs.0.top_p": "write it as sampling.top_p",
        "consolidation.shares.stam": "write stem",
        "evaluation.max_tokens": "trained to 512 tokens",
        "specialists.agentic.problems.kinds": "needs at least 1",
    }
    assert found.keys() == expected.keys()
    for field, words in expected.items():
        assert words in found[field]
        assert "Fix: " in found[field]
        assert found[field].startswith("line ")


def test_a_mistake_in_an_anchor_is_told_once() -> None:
    found = mistakes(changed(("batch_groups: 8", "batch_groups: 0")))
    assert list(found) == ["specialists.stem.climbs.0.batch_groups"]
    assert "5 more times" in found["specialists.stem.climbs.0.batch_groups"]


def test_validators_run_beside_wrong_fields() -> None:
    found = mistakes(changed(("early: 4, full: 8", "early: 16, full: 8, earl: 3")))
    assert "early=16 must not exceed full=8" in found["specialists.stem.climbs.0.groups"]
    assert "write early" in found["specialists.stem.climbs.0.groups.earl"]


@pytest.mark.parametrize(
    ("before", "after", "field", "words"),
    [
        ("layers: 6", "layers: '6'", "model.layers", "must be a whole number, but is '6'"),
        ("layers: 6", "layers: yes", "model.layers", "must be a whole number, but is 'yes'"),
        ("layers: 6", "layers: true", "model.layers", "must be a whole number, but is true"),
        ("layers: 6", "layers: 6.5", "model.layers", "must be a whole number, but is 6.5"),
        ("layers: 6", "layers: .nan", "model.layers", "must be a whole number"),
        ("peak: 1e-3", "peak: .inf", "specialists.stem.student.peak", "finite"),
        ("name: small", "name: Small One", "name", "must match"),
        ("name: small", "", "name", "add text"),
        ("tokenizer: {vocab_size: 2048}", "tokenizer: 7", "tokenizer", "must be a section"),
        ("tokenizer: {vocab_size: 2048}", "tokeniser: {vocab_size: 9}", "tokeniser", "tokenizer"),
        ("type: constant", "typ: constant", "base.phase_256k.schedule.type", "cosine, constant"),
        ("window: 64", "window: 640", "model.window", "at most 128"),
        ("warmup_tokens: 20_000", "warmup_tokens: 20e6", "base.phase_16k.schedule.warmup_tokens",
         "below 400000"),
        ("{code: 0.3, stem: 0.3", "{web: 0.3, stem: 0.3", "midtraining_mixture.weights.web",
         "no source"),
        ("base_ranks: 2", "base_ranks: 3", "base.phase_16k.sequence_length", "does not divide"),
        ("micro_batch_tokens: 1024\n  phase", "micro_batch_tokens: 100\n  phase",
         "base.micro_batch_tokens", "too few"),
        ("helpfulness: 0.33", "helpfulness: -1", "consolidation.shares.helpfulness", "is -1"),
        ("max_tokens: 32, steps", "max_tokens: 32, step",
         "specialists.stem.climbs.0.lengths.0.step", "write steps"),
    ],
)  # fmt: skip
def test_one_mistake_names_its_field_and_its_fix(
    before: str, after: str, field: str, words: str
) -> None:
    found = mistakes(changed((before, after)))
    assert field in found
    assert words in found[field]


def test_repeated_keys_and_broken_yaml_are_refused() -> None:
    assert (
        "lines 30 and 31"
        in mistakes(changed(("  layers: 6\n", "  layers: 6\n  layers: 12\n")))["model.layers"]
    )
    with pytest.raises(RecipeError, match="not readable as YAML"):
        parse_recipe("name: [")
    with pytest.raises(RecipeError, match="not a mapping"):
        parse_recipe("- a")


def test_overrides_change_one_field_and_keep_special_defaults() -> None:
    base = load_recipe(SMALL)
    recipe = load_recipe(
        SMALL,
        [
            "specialists.stem.climbs.0.rewards.length=0.1",
            "specialists.stem.student.optimizer.grad_clip=0.5",
            "base.phase_64k.schedule={type: constant, peak: 1e-5}",
        ],
    )
    assert recipe.specialists["stem"].climbs[0].rewards.length == 0.1
    assert recipe.specialists["stem"].climbs[1] == base.specialists["stem"].climbs[1]
    before, after = (r.specialists["stem"].student.optimizer for r in (base, recipe))
    assert after == before.model_copy(update={"grad_clip": 0.5})
    assert recipe.base.phase_64k.schedule.type == "constant"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.layers", "section.field=value"),
        ("model.layerz=12", "did you mean layers"),
        ("modle.layers=12", "did you mean model"),
        ("specialists.stem.climbs.9.learning_rate=1", "list ends at 1"),
        ("name.first=x", "single value"),
        ("model.layers=[", "unreadable"),
        ("model.layers=13", "multiple of global_every"),
    ],
)
def test_wrong_overrides_are_explained(override: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe(SMALL, [override])


def test_an_unknown_recipe_names_the_nearest_preset() -> None:
    with pytest.raises(RecipeError, match=r"did you mean mai-thinking-1\?"):
        load_recipe("mai-thinking")


def test_experiment_names() -> None:
    assert experiment_name("toy", 0) == "toy-seed0"
    assert experiment_name("toy", 1, "no-entropy-control") == "toy-no-entropy-control-seed1"
    with pytest.raises(ValueError, match="lower-case"):
        experiment_name("toy", 0, "No Entropy")


numbers = st.floats(min_value=1e-9, max_value=0.9, allow_nan=False)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rate=numbers,
    length=numbers,
    shares=st.tuples(numbers, numbers, numbers),
    tokens=st.integers(30_000, 10**15),
    words=st.lists(st.text(max_size=20), max_size=4),
)
def test_any_recipe_survives_dump_and_load(
    rate: float,
    length: float,
    shares: tuple[float, float, float],
    tokens: int,
    words: list[str],
) -> None:
    data = load_recipe(SMALL).model_dump()
    data["specialists"]["stem"]["climbs"][0]["learning_rate"] = rate
    data["final"]["climb"]["rewards"]["length"] = length
    data["consolidation"]["shares"] = dict(zip(data["specialists"], shares, strict=True))
    data["base"]["phase_16k"]["tokens"] = tokens
    data["corpus"]["blocklist"]["words"] = words
    recipe = type(load_recipe(SMALL)).model_validate(data)
    assert parse_recipe(dump_recipe(recipe)) == recipe


@settings(max_examples=60, deadline=None)
@given(path=st.sampled_from(["model", "base", "base.phase_16k", "evaluation", "compute"]),
       name=st.from_regex(r"[a-z_]{1,12}", fullmatch=True))  # fmt: skip
def test_no_unknown_key_is_accepted(path: str, name: str) -> None:
    section = load_recipe(SMALL)
    for part in path.split("."):
        section = getattr(section, part)
    if name in type(section).model_fields:
        return
    with pytest.raises(RecipeError) as caught:
        load_recipe(SMALL, [f"{path}.{name}=1"])
    assert [problem.field for problem in caught.value.problems] == [f"{path}.{name}"]


def test_recipes_load_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from hillclimb.recipe.load import load_recipe\n"
        "import hillclimb.scaling.plan, hillclimb.scaling.ladder, hillclimb.cli.main\n"
        "load_recipe('mai-thinking-1')\n"
        "bad = {'torch', 'transformers', 'deepspeed', 'dagster', 'mlflow'} & set(sys.modules)\n"
        "assert bad <= {'torch'} and sys.modules['torch'] is None, bad\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_context_group_must_fit_heads_and_rows() -> None:
    where = r"phase_16k\.context_parallel is "
    with pytest.raises(RecipeError, match=where + "8: it must divide model.query_heads = 4"):
        load_recipe(SMALL, ["compute.base_ranks=8", "base.phase_16k.context_parallel=8"])
    with pytest.raises(RecipeError, match=where + "3, which does not divide the sequence_length"):
        load_recipe(SMALL, ["compute.base_ranks=6", "base.phase_16k.context_parallel=3"])


def test_bf16_storage_asks_for_zero_2() -> None:
    with pytest.raises(RecipeError, match="weights=bf16 needs zero_stage=2, not 3"):
        load_recipe(SMALL, ["base.phase_16k.weights=bf16", "base.phase_16k.zero_stage=3"])
