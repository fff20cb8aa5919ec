"""The feed: its order, its streams, resume, bad shards, bounds on memory, caps."""

from __future__ import annotations

import itertools
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_feed import budget_of, feed_of, table_of, write_shards
from reference_packing import TokenTable, pack, sample_documents

from hillclimb.training.feed import Feed, prefetch
from hillclimb.training.mixture import Budget, phase_budgets
from hillclimb.training.packing import Packed
from hillclimb.training.sampling import BLOCK_SHARDS, Plan
from hillclimb.training.shards import ShardError, Shards

NAMES = ("a", "b", "c")
RNG = np.random.default_rng(1)
MANY = table_of(RNG.integers(0, 60, 240).tolist(), RNG.integers(0, 3, 240).tolist(), NAMES)
BUDGETS = {"a": budget_of(4000), "b": budget_of(900), "c": budget_of(2500)}
COLUMNS = ("tokens", "segments", "sources", "documents")


def together(parts: list[Packed]) -> list[np.ndarray]:
    """Everything that packed rows hold, one after another."""
    return [np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS]


def same(left: list[Packed], right: list[Packed]) -> bool:
    return all(map(np.array_equal, together(left), together(right)))


def interleaved(streams: list[list[Packed]]) -> list[Packed]:
    """Global batches from those of each stream."""
    found = []
    for parts in zip(*streams, strict=True):
        arrays = []
        for column in zip(*(together([part]) for part in parts), strict=True):
            whole = np.empty((sum(map(len, column)), column[0].shape[1]), column[0].dtype)
            for rank, rows in enumerate(column):
                whole[rank :: len(parts)] = rows
            arrays.append(whole)
        found.append(Packed(*arrays))
    return found


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """240 documents in 19 shards, which are five blocks."""
    return write_shards(str(tmp_path_factory.mktemp("shards")), MANY, 19)


@pytest.mark.parametrize(("count", "kind"), [(1, "parquet"), (BLOCK_SHARDS, "arrow")])
def test_one_block_has_the_order_of_sampling_and_packing_in_memory(tmp_path, count, kind):
    feed = feed_of(write_shards(str(tmp_path), MANY, count, kind), BUDGETS, seed=11)
    wanted = {name: budget.drawn for name, budget in BUDGETS.items()}
    packed = pack(MANY, sample_documents(MANY, wanted, 11), 16, 0)
    assert feed.steps == len(packed) // 8 > 50
    assert same(list(feed.batches(0)), [packed[: feed.steps * 8]])


@pytest.mark.parametrize("streams", [2, 4])
def test_streams_share_the_same_global_batches(many, streams):
    alone = list(feed_of(many, BUDGETS).batches(0))
    shared = [list(feed_of(many, BUDGETS, data=(r, streams)).batches(0)) for r in range(streams)]
    assert same(interleaved(shared), alone)


def test_a_feed_goes_on_at_any_step(many):
    whole = list(feed_of(many, BUDGETS).batches(0))
    assert len({part.tokens.tobytes() for part in whole}) == len(whole)
    for first in range(0, len(whole), 7):
        assert same(list(feed_of(many, BUDGETS).batches(first)), whole[first:])


def test_resuming_reads_nothing_of_what_came_before(tmp_path):
    shards = write_shards(str(tmp_path), MANY, 19)
    feed = feed_of(shards, {name: budget_of(700) for name in NAMES})
    whole = list(feed.batches(0))
    late = feed.plan.visit(feed.plan.at(feed.steps * 8 * 17 - 1))
    for shard in set(range(19)) - set(np.searchsorted(shards.firsts, late.order, "right") - 1):
        Path(shards.uris[shard]).unlink()
    assert same(list(feed.batches(feed.steps - 1)), whole[-1:])
    with pytest.raises(ShardError, match=r"tokens-000\d\d.parquet is missing"):
        list(feed.batches(0))


def test_blocks_keep_the_mixture_and_give_every_document_alike(many):
    sizes = np.bincount(MANY.sources, weights=MANY.lengths()).astype(int)
    budgets = {name: budget_of(3 * int(size)) for name, size in zip(NAMES, sizes, strict=True)}
    plan = feed_of(many, budgets).plan
    assert (len(plan.blocks), plan.rounds) == (5, 3)
    orders = [plan.visit(number).order for number in range(15)]
    assert np.array_equal(np.bincount(np.concatenate(orders)), [3] * 240)
    for start in (0, 5, 10):
        order = np.concatenate(orders[start : start + 5])
        given = np.bincount(MANY.sources[order], weights=MANY.lengths()[order])
        assert np.allclose(given / given.sum(), sizes / sizes.sum(), atol=0.05)


def test_another_seed_gives_another_order(many):
    first = next(feed_of(many, BUDGETS, seed=1).batches(0))
    assert not same([first], [next(feed_of(many, BUDGETS, seed=2).batches(0))])


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_remote_shards_are_read_where_they_lie(many, kind):
    remote = write_shards("memory://feed/remote", MANY, 19, kind)
    assert same(list(feed_of(remote, BUDGETS).batches(0)), list(feed_of(many, BUDGETS).batches(0)))


@pytest.mark.parametrize("folder", ["local", "memory://feed/bad"])
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.95])
def test_a_truncated_shard_is_named(tmp_path, folder, kind, share):
    folder = str(tmp_path) if folder == "local" else folder
    shards = write_shards(folder, MANY, 3, kind)
    fs, path = fsspec.core.url_to_fs(shards.uris[1])
    data = fs.cat_file(path)
    fs.pipe_file(path, data[: int(share * len(data))])
    with pytest.raises(ShardError, match=f"tokens-00001.{kind} is truncated or damaged"):
        list(prefetch(feed_of(shards, BUDGETS).batches(0), 2))


def test_a_shard_of_other_documents_is_named(tmp_path):
    shards = write_shards(str(tmp_path), MANY, 2)
    swapped = Shards(
        shards.uris[::-1], np.diff(shards.firsts)[::-1], shards.lengths(), MANY.sources, NAMES
    )
    with pytest.raises(ShardError, match=r"00001.parquet .*documents of other lengths"):
        list(feed_of(swapped, BUDGETS).batches(0))


def test_memory_holds_two_blocks_and_not_the_corpus(tmp_path):
    table = table_of([20_000] * 320, [0] * 320, ("a",))
    shards = write_shards(str(tmp_path), table, 40)
    corpus = 4 * int(table.offsets[-1])
    feed = feed_of(shards, {"a": budget_of(10**9, corpus // 4)}, length=4096, batch_rows=4)
    del table
    tracemalloc.start()
    rows = sum(len(part) for part in prefetch(feed.batches(0), 2))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows * 4096 * 4 > 0.9 * corpus
    assert 0.1 * corpus < peak < 0.35 * corpus


@given(
    documents=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2)), min_size=1, max_size=40),
    huge=st.integers(0, 2000),
    shares=st.tuples(*[st.integers(0, 300)] * 3),
    cap=st.floats(0.1, 4),
    shards=st.integers(1, 9),
    part=st.floats(0.05, 1),
)
@settings(max_examples=150, deadline=None)
def test_no_source_passes_its_cap_and_what_it_gave_is_counted(
    documents, huge, shares, cap, shards, part
):
    lengths = [*(length for length, _ in documents), huge]
    sources = np.array([*(source for _, source in documents), 2], np.int32)
    size = np.bincount(sources, weights=lengths, minlength=4).astype(int)
    mixture = {
        name: {"tokens_used": share, "tokens_available": int(size[i]), "epoch_cap": cap}
        for i, (name, share) in enumerate(zip("abc", shares, strict=True))
    }
    budgets = phase_budgets(mixture, int(part * sum(shares)))
    counts = [len(x) for x in np.array_split(sources, shards)]
    uris = [f"memory://none/{i}.parquet" for i in range(shards)]
    names = (*NAMES, "empty")
    index = Shards(uris, counts, np.array(lengths, np.int32), sources, names)
    plan = Plan(index, {**budgets, "empty": Budget(50, 50, 0)}, 3)
    order = np.concatenate([plan.visit(n).order for n in range(len(plan.turns))])
    assert len(plan) == sum(lengths[i] + 1 for i in order)
    whole = np.bincount(sources[order], weights=np.array(lengths)[order], minlength=4)
    for i, name in enumerate("abc"):
        assert whole[i] <= cap * size[i]
        if budgets[name].cap >= budgets[name].drawn + max(lengths):
            assert budgets[name].drawn * (size[i] > 0) <= whole[i]
            assert whole[i] < budgets[name].drawn + max(*lengths, 1)
    stream = np.repeat(sources[order], np.array(lengths)[order] + 1)
    body = np.concatenate([[], *([1] * lengths[i] + [0] for i in order)]).astype(int)
    for end in {0, len(plan) // 3, len(plan)}:
        tokens, begun = plan.given(end)
        assert np.array_equal(tokens, np.bincount(stream[:end], weights=body[:end], minlength=4))
        starts = np.cumsum([0, *(lengths[i] + 1 for i in order)])[:-1]
        assert np.array_equal(begun, np.bincount(sources[order[starts < end]], minlength=4))


def test_what_was_given_is_what_the_rows_hold(many):
    feed = feed_of(many, BUDGETS)
    for steps in (0, 3, feed.steps):
        rows = together(list(itertools.islice(feed.batches(0), steps))) if steps else None
        tokens, documents = feed.given(steps)
        body = rows[0] != 0 if rows else None
        held = np.bincount(rows[2][body], minlength=3) if rows else np.zeros(3)
        assert np.array_equal(tokens, held)
        assert documents.sum() <= feed.plan.starts[-1]


def test_prefetching_stays_a_few_items_ahead_and_ends_with_its_consumer():
    made: list[int] = []
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            for number in range(1000):
                made.append(number)
                yield number
        finally:
            closed.set()

    ahead = prefetch(items(), 3)
    assert [next(ahead) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(made) <= 5 + 3 + 1
    ahead.close()
    assert closed.wait(10)
    assert len(made) <= 5 + 3 + 2


def test_an_error_of_the_feed_reaches_the_consumer_in_its_place():
    def items() -> Iterator[int]:
        yield 1
        raise ShardError("the shard x is truncated")

    ahead = prefetch(items(), 4)
    assert next(ahead) == 1
    with pytest.raises(ShardError, match="the shard x"):
        next(ahead)


def test_an_empty_mixture_has_no_steps(tmp_path):
    empty = TokenTable(np.empty(0, np.int32), np.zeros(1, np.int64), np.empty(0, np.int32), ())
    feed: Feed = feed_of(write_shards(str(tmp_path), empty, 1), {})
    assert feed.steps == 0
    assert list(feed.batches(0)) == []
