"""Components through Beam against scipy, networks of hard shapes, memory and failures."""

from __future__ import annotations

import collections
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
import hypothesis
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.metrics import MetricsFilter
from hypothesis import strategies as st
from scipy.cluster.hierarchy import DisjointSet

from h01_beam.agglomeration import components, contraction
from h01_beam.agglomeration.components import ConnectedComponents
from h01_beam.agglomeration.messages import Message
from h01_beam.options import Options

TWO_PROCESSES = ['--direct_running_mode=multi_processing', '--direct_num_workers=2']
Batch = Mapping[str, Any]


def ids(values: Iterable[int]) -> np.ndarray:
    return np.asarray(list(values), np.uint64)


def batches_of(a: np.ndarray, b: np.ndarray, count: int) -> list[Batch]:
    pairs = zip(np.array_split(a, count), np.array_split(b, count), strict=True)
    return [{'a': x, 'b': y} for x, y in pairs]


def run(
    batches: list[Any], transform: ConnectedComponents, folder: Any, options: Iterable[str] = ()
) -> tuple[dict[int, tuple[np.ndarray, np.ndarray]], int]:
    """Runs the transform: (node, root) of every partition, and the rounds that had work."""

    def save(partition: int, batch: Batch) -> None:
        path = folder / f'{partition}.npy'
        assert not path.exists(), 'a partition came twice'
        np.save(path, np.stack([batch['node'], batch['root']]))

    folder.mkdir()
    pipeline = beam.Pipeline(options=Options(options))
    _ = pipeline | beam.Create(batches, reshuffle=False) | transform | beam.MapTuple(save)
    result = pipeline.run()
    result.wait_until_finish()
    counters = result.metrics().query(MetricsFilter().with_namespace(components.METRICS))
    used = [c for c in counters['counters'] if c.key.metric.name.startswith('nodes')]
    return {
        int(path.stem): (node, root)
        for path in folder.glob('*.npy')
        for node, root in [np.load(path)]
    }, sum(c.committed > 0 for c in used)


def flatten(partitions: dict[int, tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    node, root = (np.concatenate(c) for c in zip(*partitions.values(), strict=True))
    order = np.argsort(node)
    return node[order], root[order]


def assert_components(
    partitions: dict[int, tuple[np.ndarray, np.ndarray]], a: np.ndarray, b: np.ndarray
) -> None:
    node, root = flatten(partitions)
    expected_node, expected_root = contraction.connected_components(a, b)
    np.testing.assert_array_equal(node, expected_node)
    np.testing.assert_array_equal(root, expected_root)


@pytest.fixture
def folder(tmp_path: Any) -> Callable[[], Any]:
    names = iter(range(1000))
    return lambda: tmp_path / str(next(names))


def test_the_pure_twin_equals_a_disjoint_set() -> None:
    a, b = np.random.default_rng(0).integers(1, 300, (2, 250), dtype=np.uint64)
    sets = DisjointSet(np.unique(np.r_[a, b]).tolist())
    for pair in zip(a.tolist(), b.tolist(), strict=True):
        sets.merge(*pair)
    node, root = contraction.connected_components(a, b)
    assert root.tolist() == [min(sets.subset(n)) for n in node.tolist()]


@hypothesis.given(st.lists(st.integers(0, 2**64 - 1), max_size=50), st.integers(0, 40))
def test_priorities_are_a_bijection(values: list[int], round_: int) -> None:
    array = ids(values)
    priorities = contraction.priority(array, round_)
    np.testing.assert_array_equal(contraction.from_priority(priorities, round_), array)


@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 100)), max_size=60), st.integers(1, 150)
)
def test_merged_shards_fit(shards: list[tuple[int, int]], capacity: int) -> None:
    merged = contraction.pack_shards(shards, capacity)
    single = dict.fromkeys(merged, 0)
    for shard, rows in shards:
        single[shard] += rows
    total: dict[int, int] = {}
    for shard, into in merged.items():
        total[into] = total.get(into, 0) + single[shard]
    for into, rows in total.items():
        assert rows <= capacity or list(merged.values()).count(into) == 1
    if sum(single.values()) <= capacity:
        assert len(total) <= 1
    assert len(total) <= 2 * sum(single.values()) // capacity + 1


@hypothesis.given(st.lists(st.lists(st.integers(0, 2**64 - 1), max_size=5), max_size=4))
def test_messages_survive_the_way(columns: list[list[int]]) -> None:
    message = Message(3, 2**40, tuple(ids(column) for column in columns))
    again = Message.unpack(message.pack())
    assert (again.kind, again.source) == (3, 2**40)
    assert [column.tolist() for column in again.columns] == columns


def eager(
    batches: list[Batch],
    partitions: int,
    rounds: int,
    shard_rows: int,
    rng: np.random.Generator,
    damage: Callable[[list[Any]], list[Any]] = lambda elements: elements,
) -> dict[int, Batch]:
    """The steps without Beam; a shuffle groups by key and mixes the order of everything else."""

    def outputs(step: beam.DoFn, *arguments: Any) -> dict[str | None, list[Any]]:
        sorted_: dict[str | None, list[Any]] = collections.defaultdict(list)
        for output in step.process(*arguments):
            tagged = isinstance(output, beam.pvalue.TaggedOutput)
            sorted_[output.tag if tagged else None].append(output.value if tagged else output)
        return sorted_

    def shuffle_into(
        step: beam.DoFn, elements: list[Any], *side: Any
    ) -> dict[str | None, list[Any]]:
        elements = damage(elements)
        groups = collections.defaultdict(list)
        for i in rng.permutation(len(elements)):
            groups[elements[i][0]].append(elements[i][1])
        merged: dict[str | None, list[Any]] = collections.defaultdict(list)
        for keyed in groups.items():
            for tag, values in outputs(step, keyed, *side).items():
                merged[tag] += values
        return merged

    contract = components._Contract(partitions, shard_rows)
    step: dict[str | None, list[Any]] = collections.defaultdict(list)
    for batch in batches:
        contract.start_bundle()
        for tag, values in outputs(contract, batch).items():
            step[tag] += values
        for value in contract.finish_bundle():
            tagged = isinstance(value, beam.pvalue.TaggedOutput)
            step[value.tag if tagged else None].append((value.value if tagged else value).value)
    states, answers, claims, before = [], [], [], None
    for round_ in range(rounds):
        shards, last = step['shards'], round_ == rounds - 1
        elect = components._Elect(partitions, shard_rows, round_, last)
        elected = shuffle_into(elect, step[None] + claims, shards, before)
        states.append(elected['states'])
        answers.append(elected['answers'])
        claims, before = elected['claims'], shards
        step = shuffle_into(
            components._Merge(partitions, shard_rows, round_ + 1), elected[None], shards
        )
    late: list[Any] = []
    for round_ in reversed(range(rounds - 1)):
        resolve = components._Resolve(final=round_ == 0)
        late = shuffle_into(resolve, states[round_] + answers[round_ + 1] + late)[None]
    assert len({partition for partition, _ in late}) == len(late)
    return dict(late)


@hypothesis.given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=90),
    st.integers(1, 5),
    st.integers(2, 30),
    st.integers(1, 9),
    st.integers(0, 2**32),
)
def test_any_small_graph(
    edges: list[tuple[int, int]], partitions: int, shard_rows: int, batches: int, seed: int
) -> None:
    a, b = ids(e[0] for e in edges), ids(e[1] for e in edges)
    rng = np.random.default_rng(seed)
    got = eager(batches_of(a, b, batches), partitions, 40, shard_rows, rng)
    assert_components({key: (batch['node'], batch['root']) for key, batch in got.items()}, a, b)


@pytest.mark.parametrize('copies', [0, 2])
def test_a_lost_or_repeated_message_is_noticed(copies: int) -> None:
    """Whatever the runner does: no result rather than a wrong one."""
    a, b = np.random.default_rng(6).integers(1, 400, (2, 300), dtype=np.uint64)
    seen = 0
    victim = -1

    def damage(elements: list[Any]) -> list[Any]:
        nonlocal seen
        first, seen = seen, seen + len(elements)
        kept = [[e] * (copies if first + i == victim else 1) for i, e in enumerate(elements)]
        return [e for es in kept for e in es]

    def attempt() -> None:
        eager(batches_of(a, b, 8), 3, 16, 60, np.random.default_rng(0), damage)

    attempt()
    total, undetected = seen, []
    assert total > 150
    for victim in range(total):
        seen = 0
        try:
            attempt()
        except RuntimeError:
            continue
        undetected.append(victim)
    assert not undetected


def test_nothing_but_the_edges_matters(folder: Callable[[], Any]) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(1, 4000, (2, 3000), dtype=np.uint64)
    first, rounds = run(batches_of(a, b, 40), ConnectedComponents(5, 20, 300), folder())
    assert rounds > 3, 'the graph must not fit in one shard'
    assert len(first) == 5
    assert_components(first, a, b)
    order = rng.permutation(len(a))
    order = np.r_[order, order[:100]]  # and repeated edges
    variants = (
        (batches_of(b[order], a[order], 7), 300, ()),
        (batches_of(a, b, 1), 1 << 20, ()),
        (batches_of(a, b, 40), 300, TWO_PROCESSES),
    )
    for batches, shard_rows, options in variants:
        again, _ = run(batches, ConnectedComponents(5, 20, shard_rows), folder(), options)
        assert again.keys() == first.keys()
        for partition, (node, root) in first.items():
            np.testing.assert_array_equal(again[partition][0], node)
            np.testing.assert_array_equal(again[partition][1], root)


def _path_sorted(n: int) -> tuple[np.ndarray, np.ndarray]:
    nodes = np.arange(1, n + 1, dtype=np.uint64)
    return nodes[:-1], nodes[1:]


def _path_scattered(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Random ids, and no two neighbouring edges in one batch: local contraction finds nothing."""
    rng = np.random.default_rng(2)
    nodes = contraction.priority(np.arange(n, dtype=np.uint64), 77)
    order = rng.permutation(n - 1)
    return nodes[:-1][order], nodes[1:][order]


def _path_sorted_scattered(n: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(3).permutation(n - 1)
    a, b = _path_sorted(n)
    return a[order], b[order]


def _hub(n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full(n, 7, np.uint64), np.arange(10, n + 10, dtype=np.uint64)


def _hub_of_largest_id(n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full(n, 2**64 - 2, np.uint64), np.arange(1, n + 1, dtype=np.uint64)


def _tree(n: int) -> tuple[np.ndarray, np.ndarray]:
    child = np.arange(2, n + 1, dtype=np.uint64)
    order = np.random.default_rng(4).permutation(n - 1)
    return child[order], (child // np.uint64(2))[order]


@pytest.mark.parametrize(
    'shape',
    [_path_sorted, _path_scattered, _path_sorted_scattered, _hub, _hub_of_largest_id, _tree],
)
def test_hard_shapes_take_few_rounds(
    shape: Callable[[int], tuple[np.ndarray, np.ndarray]], folder: Callable[[], Any]
) -> None:
    a, b = shape(100_000)
    transform = ConnectedComponents.for_edges(len(a), shard_rows=16_384)
    partitions, rounds = run(batches_of(a, b, 50), transform, folder())
    assert len(partitions) == transform.partitions > 20
    assert_components(partitions, a, b)
    # 200,000 rows halve to a shard's 16,384 in four rounds, and two finish.
    assert rounds <= 7 < transform.rounds


@pytest.mark.parametrize('n', [1_000, 10_000, 100_000])
def test_rounds_are_logarithmic(n: int) -> None:
    """A path without any help from shards: contraction alone, as the bound counts it."""
    a, b = _path_sorted_scattered(n)
    rounds = 0
    while len(a):
        node, index = np.unique(np.r_[a, b], return_inverse=True)
        nodes = contraction.priority(node, rounds)
        ends = np.stack([index[: len(a)], index[len(a) :]])
        best = nodes[ends].min(axis=0)
        chosen, replaced = contraction.elect(ends.ravel(), np.r_[best, best], len(node), rounds)
        assert len(chosen) < 0.6 * len(node) + 20
        a, b = chosen[replaced[ends]]
        a, b = a[a != b], b[a != b]
        rounds += 1
    assert rounds <= components.rounds_bound(2 * n, 2)


def test_a_million_leaves_on_one_hub_stay_spread_out() -> None:
    """What any partition gets of a hub is one row for each batch, not its leaves."""
    a, b = _hub(1_000_000)
    step = components._Contract(partitions=16, shard_rows=1 << 16)
    step.start_bundle()
    rows = np.zeros(16, int)
    hub_rows = 0
    for batch in batches_of(a, b, 10):
        for output in step.process(batch):
            if not isinstance(output, beam.pvalue.TaggedOutput):
                node, _ = Message.unpack(output[1]).columns
                rows[output[0]] += len(node)
                hub_rows += int((node == 7).sum())
    assert rows.sum() > 900_000
    assert rows.max() < 1.1 * rows.mean()
    assert hub_rows < 40


def _peak_bytes(step: Callable[[], Iterator[Any]]) -> int:
    """Peak memory that a step allocates; its outputs leave at once, as in a pipeline."""
    tracemalloc.start()
    for _ in step():
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_of_every_step_is_bounded_by_its_rows() -> None:
    """The figure in the docstring of ConnectedComponents."""
    rng = np.random.default_rng(5)
    rows, pieces = 400_000, 40
    numbers = rng.integers(1, rows, (2, rows), dtype=np.uint64)
    node, other = contraction.priority(numbers, 99)
    count = rows // pieces
    parts = [slice(i, i + count) for i in range(0, rows, count)]
    elect = components._Elect(64, rows, 0, last=False)
    merge = components._Merge(64, rows, 1)
    contract = components._Contract(64, rows)
    contract.start_bundle()
    offers = [Message(0, i, (node[p], other[p])).pack() for i, p in enumerate(parts)]
    links = [Message(2, 0, (node[p], other[p])).pack() for p in parts]
    shards = [(i, count) for i in range(pieces)]
    key = 0  # the shard that all become
    edges = {'a': node[: rows // 2], 'b': other[: rows // 2]}
    nodes, of_node = np.unique(other, return_inverse=True)
    state = Message(3, 0, (np.sort(node), of_node, nodes)).pack()
    answers = [Message(5, 0, (part, part)).pack() for part in np.array_split(nodes, pieces)]
    requests = [Message(4, i, (np.arange(i, rows, pieces),)).pack() for i in range(pieces)]
    resolve = components._Resolve(final=False)
    peaks = {
        'contract': _peak_bytes(lambda: (*contract.process(edges), *contract.finish_bundle())),
        'elect': _peak_bytes(lambda: elect.process((0, offers), shards, None)),
        'merge': _peak_bytes(lambda: merge.process((key, links), shards)),
        'resolve': _peak_bytes(lambda: resolve.process((0, [state, *answers, *requests]))),
    }
    # And the messages themselves, which were there before.
    per_row = {name: peak / rows + 48 for name, peak in peaks.items()}
    assert max(per_row.values()) < components.BYTES_PER_ROW, per_row


def test_columns_of_arrow_and_lonely_nodes(folder: Callable[[], Any]) -> None:
    batch = pa.RecordBatch.from_pydict(
        {
            'a': pa.array([5, 9, 4], pa.uint64()),
            'b': pa.array([3, 9, 5], pa.uint64()),
            'overlap': pa.array([1, 1, 1], pa.int64()),
        }
    )
    empty = {'a': ids([]), 'b': ids([])}
    partitions, _ = run([batch, empty], ConnectedComponents(2, 3), folder())
    node, root = flatten(partitions)
    assert (node.tolist(), root.tolist()) == ([3, 4, 5, 9], [3, 3, 3, 9])


def test_no_edges_no_output(folder: Callable[[], Any]) -> None:
    assert run([{'a': ids([]), 'b': ids([])}], ConnectedComponents(2, 3), folder()) == ({}, 0)


def test_too_few_rounds_fail_loudly(folder: Callable[[], Any]) -> None:
    a, b = _path_sorted_scattered(2000)
    with pytest.raises(
        Exception, match=r'unresolved after components\.rounds=3: allow more rounds'
    ):
        run(batches_of(a, b, 20), ConnectedComponents(2, 3, shard_rows=100), folder())


@pytest.mark.parametrize(
    ('batch', 'message'),
    [
        ({'a': ids([1, 2]), 'b': ids([0, 3])}, 'column b holds the id 0'),
        ({'a': np.array([1]), 'b': ids([3])}, 'column a is int64'),
        ({'a': ids([2**64 - 1]), 'b': ids([3])}, 'no id'),
        ({'a': ids([1, 2]), 'b': ids([3])}, 'column a has 2 rows and b 1'),
    ],
)
def test_bad_edges_are_refused(batch: Batch, message: str) -> None:
    step = components._Contract(2, 100)
    step.start_bundle()
    with pytest.raises(ValueError, match=message):
        list(step.process(batch))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'partitions': 0}, r'components\.partitions is 0'),
        ({'partitions': 1, 'rounds': 1}, r'components\.rounds is 1'),
        ({'partitions': 1, 'shard_rows': 1}, r'components\.shard_rows is 1'),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConnectedComponents(**arguments)
