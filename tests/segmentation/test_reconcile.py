"""Matching against brute force, its symmetries, and the objects that leave and come back."""

from __future__ import annotations

from collections import Counter
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from h01_beam.segmentation import reconcile
from h01_beam.segmentation.reconcile import MatchConfig, match_overlap, match_painted

Edges = set[tuple[int, int, int, int, int]]


def edges_of(matches: reconcile.Overlaps) -> Edges:
    return set(zip(*(column.tolist() for column in matches.columns().values()), strict=True))


def swapped(edges: Edges) -> Edges:
    return {(b, a, overlap, size_b, size_a) for a, b, overlap, size_a, size_b in edges}


MUTUAL = MatchConfig(rule='mutual', min_overlap=1)
CONTAINED = MatchConfig(min_overlap=1)


def brute_force(labels_a: np.ndarray, labels_b: np.ndarray, config: MatchConfig) -> Edges:
    """The rules, one voxel and one pair at a time."""
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
        if n >= config.min_overlap
        and (
            (best(0, a) == b and best(1, b) == a)
            or (
                config.rule == 'contained'
                and (
                    n > config.contained_fraction * size_a[a]
                    or n > config.contained_fraction * size_b[b]
                )
            )
        )
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
    contained_fraction=st.floats(0.5, 0.99),
    min_overlap=st.integers(1, 4),
)


@hypothesis.given(slabs(), CONFIGS)
def test_the_rules_equal_brute_force(
    pair: tuple[np.ndarray, np.ndarray], config: MatchConfig
) -> None:
    assert edges_of(match_overlap(*pair, config)) == brute_force(*pair, config)


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
    edges = edges_of(match_overlap(*pair, CONTAINED))
    assert edges_of(match_overlap(*renamed, CONTAINED)) == {
        (99 - a, 99 - b, *rest) for a, b, *rest in edges
    }


@hypothesis.given(slabs())
def test_an_id_has_one_mutual_match_at_most(pair: tuple[np.ndarray, np.ndarray]) -> None:
    matches = match_overlap(*pair, MUTUAL)
    assert len(set(matches.a.tolist())) == len(set(matches.b.tolist())) == len(matches)


@hypothesis.given(slabs(), CONFIGS)
def test_an_id_joins_its_best_match_and_what_it_is_contained_in(
    pair: tuple[np.ndarray, np.ndarray], config: MatchConfig
) -> None:
    """Containment only adds, and at most one container for each id."""
    mutual = edges_of(match_overlap(*pair, MatchConfig(rule='mutual', min_overlap=1)))
    contained = edges_of(match_overlap(*pair, CONTAINED))
    assert mutual <= contained
    containers = Counter(('a', a) for a, _, n, size, _ in contained if 2 * n > size)
    containers += Counter(('b', b) for _, b, n, _, size in contained if 2 * n > size)
    assert max(containers.values(), default=0) <= 1


def rows(*runs: tuple[int, int]) -> np.ndarray:
    """A slab of one row: (label, voxels) one after the other."""
    return np.concatenate([np.full(n, label, np.uint64) for label, n in runs])[None, None]


def test_an_object_that_leaves_and_comes_back() -> None:
    """In A its two parts meet beyond the block; B sees them joined."""
    a, b = rows((1, 30), (0, 5), (2, 20)), rows((9, 55))
    assert edges_of(match_overlap(a, b, MUTUAL)) == {(1, 9, 30, 30, 55)}
    assert edges_of(match_overlap(a, b, CONTAINED)) == {(1, 9, 30, 30, 55), (2, 9, 20, 20, 55)}


def test_an_object_that_touches_another_is_not_joined_to_it() -> None:
    """Of id 2 in A, just half lies in B's 9: not for the most part."""
    a, b = rows((1, 30), (2, 20)), rows((9, 40), (0, 10))
    assert edges_of(match_overlap(a, b, CONTAINED)) == {(1, 9, 30, 30, 40)}
    a, b = rows((1, 30), (2, 20)), rows((9, 41), (0, 9))
    assert edges_of(match_overlap(a, b, CONTAINED)) == {(1, 9, 30, 30, 41), (2, 9, 11, 20, 41)}


def test_ties_go_to_the_smaller_id() -> None:
    assert edges_of(match_overlap(rows((3, 8)), rows((7, 4), (5, 4)), MUTUAL)) == {(3, 5, 4, 8, 4)}


def test_unlabelled_voxels_match_nothing_but_count_as_size() -> None:
    a, b = rows((0, 10), (4, 10)), rows((6, 5), (0, 10), (6, 5))
    assert edges_of(match_overlap(a, b, CONTAINED)) == {(4, 6, 5, 10, 10)}
    assert not edges_of(match_overlap(a, np.zeros_like(b), CONTAINED))


@pytest.mark.parametrize(('least', 'kept'), [(5, 1), (6, 0)])
def test_too_small_an_overlap_is_none(least: int, kept: int) -> None:
    a, b = rows((4, 10), (0, 5)), rows((0, 5), (6, 10))
    assert len(match_overlap(a, b, MatchConfig(min_overlap=least))) == kept


def test_empty_slabs_and_large_ids() -> None:
    empty = np.zeros((1, 0, 4), np.uint64)
    assert not len(match_overlap(empty, empty))
    top = 2**64 - 1
    assert edges_of(match_overlap(rows((top, 3)), rows((2**63, 3)), CONTAINED)) == {
        (top, 2**63, 3, 3, 3)
    }


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'rule': 'all'}, r"match\.rule is 'all'"),
        ({'min_overlap': 0}, r'match\.min_overlap is 0'),
        ({'min_painted': 0}, r'match\.min_painted is 0'),
        ({'painted_fraction': 1.0}, r'match\.painted_fraction is 1\.0'),
        ({'contained_fraction': 0.4}, r'match\.contained_fraction is 0\.4'),
        ({'contained_fraction': 1.0}, r'match\.contained_fraction is 1\.0'),
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


def test_objects_painted_over_each_other_are_one_if_the_smaller_is_covered():
    overlaps = {
        'a': np.array([1, 1, 2, 3], np.uint64),
        'b': np.array([2, 3, 3, 4], np.uint64),
        'overlap': np.array([71, 70, 71, 9]),
        'size_a': np.array([100, 100, 5000, 10]),
        'size_b': np.array([900, 900, 100, 900]),
    }
    found = match_painted(overlaps, MatchConfig(min_painted=10, painted_fraction=0.7))
    assert found['a'].tolist() == [1, 2] and found['b'].tolist() == [2, 3]
    assert found.keys() == overlaps.keys()
    assert not len(match_painted(overlaps, MatchConfig(min_painted=10))['a'])
