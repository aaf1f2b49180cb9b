"""Matching against brute force, its symmetries, and the objects that leave and come back."""

from __future__ import annotations

from collections import Counter
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from h01_beam.agglomeration import contraction
from h01_beam.segmentation import reconcile
from h01_beam.segmentation.reconcile import MatchConfig, ObjectSizes, match_overlap

Edges = set[tuple[int, int, int, int, int]]


def edges_of(matches: reconcile.Overlaps) -> Edges:
    return set(zip(*(column.tolist() for column in matches.columns().values()), strict=True))


def swapped(edges: Edges) -> Edges:
    return {(b, a, overlap, size_b, size_a) for a, b, overlap, size_a, size_b in edges}


def brute_force(labels_a: np.ndarray, labels_b: np.ndarray) -> Edges:
    """The published rule, one voxel and one pair at a time."""
    pairs = Counter(
        (a, b)
        for a, b in zip(labels_a.ravel().tolist(), labels_b.ravel().tolist(), strict=True)
        if a and b
    )
    size_a, size_b = Counter(labels_a.ravel().tolist()), Counter(labels_b.ravel().tolist())

    def best(row: int, own: int) -> int:
        options = [(-n, pair[1 - row]) for pair, n in pairs.items() if pair[row] == own]
        return min(options)[1]

    return {
        (a, b, n, size_a[a], size_b[b])
        for (a, b), n in pairs.items()
        if best(0, a) == b and best(1, b) == a
    }


@st.composite
def slabs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Two labellings of one slab, zyx; the second partly a copy of the first."""
    shape = draw(st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(1, 7)))
    labels = hnp.arrays(np.uint64, shape, elements=st.integers(0, 5))
    first, second = draw(labels), draw(labels)
    copied = draw(hnp.arrays(np.bool_, shape))
    return first, np.where(copied, first, second) + np.uint64(10) * (second > 0)


CONFIGS = st.builds(
    MatchConfig,
    rule=st.sampled_from(['mutual', 'contained']),
    min_overlap=st.integers(1, 4),
    min_fraction=st.floats(0, 1),
    min_iou=st.floats(0, 1),
    contained_fraction=st.floats(0.55, 1),
    large=st.integers(1, 12),
)


@hypothesis.given(slabs())
def test_the_published_rule_equals_brute_force(pair: tuple[np.ndarray, np.ndarray]) -> None:
    assert edges_of(match_overlap(*pair)) == brute_force(*pair)


@hypothesis.given(slabs(), CONFIGS)
def test_swapping_the_blocks_swaps_the_edges(
    pair: tuple[np.ndarray, np.ndarray], config: MatchConfig
) -> None:
    forward = edges_of(match_overlap(*pair, config))
    assert swapped(forward) == edges_of(match_overlap(pair[1], pair[0], config))


@hypothesis.given(slabs(), CONFIGS, st.randoms(use_true_random=False))
def test_the_place_of_a_voxel_does_not_matter(
    pair: tuple[np.ndarray, np.ndarray], config: MatchConfig, random: Any
) -> None:
    order = list(range(pair[0].size))
    random.shuffle(order)
    a, b = (labels.ravel()[order] for labels in pair)
    assert edges_of(match_overlap(a, b, config)) == edges_of(match_overlap(*pair, config))


@hypothesis.given(slabs(), CONFIGS, st.integers(1, 2**40))
def test_relabelling_in_order_changes_the_names_only(
    pair: tuple[np.ndarray, np.ndarray], config: MatchConfig, step: int
) -> None:
    """Monotonic names keep even the ties."""
    factor = np.uint64(step)
    renamed = edges_of(match_overlap(pair[0] * factor, pair[1] * factor, config))
    edges = edges_of(match_overlap(*pair, config))
    assert renamed == {(a * step, b * step, *rest) for a, b, *rest in edges}


@hypothesis.given(slabs())
def test_any_relabelling_keeps_the_edges_where_nothing_ties(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    overlap = reconcile.count_overlaps(*pair).overlap
    hypothesis.assume(len(np.unique(overlap)) == len(overlap))
    last = np.uint64(99)
    renamed = [np.where(labels, last - labels, labels) for labels in pair]
    edges = edges_of(match_overlap(*pair))
    assert edges_of(match_overlap(*renamed)) == {(99 - a, 99 - b, *rest) for a, b, *rest in edges}


@hypothesis.given(slabs())
def test_an_id_has_one_mutual_match_at_most(pair: tuple[np.ndarray, np.ndarray]) -> None:
    matches = match_overlap(*pair)
    assert len(set(matches.a.tolist())) == len(set(matches.b.tolist())) == len(matches)


@hypothesis.given(slabs(), CONFIGS)
def test_the_contained_rule_only_adds_and_never_joins_two_large(
    pair: tuple[np.ndarray, np.ndarray], config: MatchConfig
) -> None:
    options = {'min_overlap': config.min_overlap, 'min_fraction': config.min_fraction}
    mutual = edges_of(match_overlap(*pair, MatchConfig(**options)))
    contained = match_overlap(
        *pair,
        MatchConfig(
            rule='contained',
            contained_fraction=config.contained_fraction,
            large=config.large,
            **options,
        ),
    )
    assert mutual <= edges_of(contained)
    # Ids of the two sides are told apart by their parity.
    nodes_a, nodes_b = contained.a * np.uint64(2), contained.b * np.uint64(2) + np.uint64(1)
    node, root = contraction.connected_components(nodes_a, nodes_b)
    sizes = dict(zip(nodes_a.tolist(), contained.size_a.tolist(), strict=True))
    sizes |= dict(zip(nodes_b.tolist(), contained.size_b.tolist(), strict=True))
    large = Counter(
        (int(r), int(n) % 2)
        for n, r in zip(node, root, strict=True)
        if sizes[int(n)] >= config.large
    )
    assert max(large.values(), default=0) <= 1


def rows(*runs: tuple[int, int]) -> np.ndarray:
    """A slab of one row: (label, voxels) one after the other."""
    return np.concatenate([np.full(n, label, np.uint64) for label, n in runs])[None, None]


def test_an_object_that_leaves_and_comes_back() -> None:
    """In A its two parts meet beyond the block; B sees them joined."""
    a, b = rows((1, 30), (0, 5), (2, 20)), rows((9, 55))
    assert edges_of(match_overlap(a, b)) == {(1, 9, 30, 30, 55)}
    contained = MatchConfig(rule='contained', large=25)
    assert edges_of(match_overlap(a, b, contained)) == {(1, 9, 30, 30, 55), (2, 9, 20, 20, 55)}
    # Were both parts large, B might as well have merged two objects.
    assert edges_of(match_overlap(a, b, MatchConfig(rule='contained', large=15))) == {
        (1, 9, 30, 30, 55)
    }


def test_large_is_judged_by_the_whole_object_where_it_is_known() -> None:
    a, b = rows((1, 30), (2, 20)), rows((9, 50))
    config = MatchConfig(rule='contained', large=100)
    small = ObjectSizes(np.array([2, 1], np.uint64), np.array([50, 5000]))
    large = ObjectSizes(np.array([2, 1], np.uint64), np.array([4000, 5000]))
    other = ObjectSizes(np.array([9], np.uint64), np.array([9000]))
    for sizes, count in ((small, 2), (large, 1)):
        matches = match_overlap(a, b, config, object_sizes_a=sizes, object_sizes_b=other)
        assert len(matches) == count
    with pytest.raises(KeyError, match='lack'):
        match_overlap(a, b, config, object_sizes_a=other)


def test_ties_go_to_the_smaller_id() -> None:
    assert edges_of(match_overlap(rows((3, 8)), rows((7, 4), (5, 4)))) == {(3, 5, 4, 8, 4)}


def test_unlabelled_voxels_match_nothing_but_count_as_size() -> None:
    a, b = rows((0, 10), (4, 10)), rows((6, 5), (0, 10), (6, 5))
    assert edges_of(match_overlap(a, b)) == {(4, 6, 5, 10, 10)}
    assert not edges_of(match_overlap(a, np.zeros_like(b)))


@pytest.mark.parametrize(
    ('options', 'kept'),
    [
        ({}, 1),
        ({'min_overlap': 6}, 0),
        ({'min_fraction': 0.5}, 1),
        ({'min_fraction': 0.6}, 0),
        ({'min_iou': 0.3}, 1),
        ({'min_iou': 0.4}, 0),
    ],
)
def test_thresholds(options: dict[str, Any], kept: int) -> None:
    """Overlap 5, sizes 10 and 10: 0.5 of the smaller, IoU 1/3."""
    a, b = rows((4, 10), (0, 5)), rows((0, 5), (6, 10))
    assert len(match_overlap(a, b, MatchConfig(**options))) == kept


def test_empty_slabs_and_large_ids() -> None:
    empty = np.zeros((1, 0, 4), np.uint64)
    assert not len(match_overlap(empty, empty))
    top = 2**64 - 1
    assert edges_of(match_overlap(rows((top, 3)), rows((2**63, 3)))) == {(top, 2**63, 3, 3, 3)}


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'rule': 'all'}, r"match\.rule is 'all'"),
        ({'min_overlap': 0}, r'match\.min_overlap is 0'),
        ({'min_iou': 1.5}, r'match\.min_iou is 1\.5'),
        ({'contained_fraction': 0.5}, r'match\.contained_fraction is 0\.5'),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MatchConfig(**options)


def test_bad_labels_are_refused() -> None:
    labels = rows((1, 4))
    with pytest.raises(ValueError, match=r'labels_b is int64: must be uint64'):
        match_overlap(labels, labels.astype(np.int64))
    with pytest.raises(ValueError, match='same voxels'):
        match_overlap(labels, labels[..., :2])
