"""Sections in the wrong place are told, and those in the right one are not."""

import dataclasses

import cv2
import numpy as np
import pytest

from h01_beam.alignment.coarse.features import CoarseConfig, Match
from h01_beam.alignment.coarse.lookup import LookupConfig
from h01_beam.alignment.coarse.order import OrderConfig, check_order
from h01_beam.alignment.coarse.pairs import Thumbnail, find_match

# Its stack of sections takes some 15 s to match.
pytestmark = pytest.mark.slow

# Pairs further apart than FAR have no match anyway.
SECTIONS, SIDE, FAR = 14, 150, 5
CONFIG = OrderConfig()
NEIGHBOURS = CONFIG.neighbours


@pytest.fixture(scope='module')
def known() -> dict:
    """Matches of all pairs that can come near each other, by true places."""
    rng = np.random.default_rng(0)
    config = CoarseConfig(allow_mirrored=False)
    lookup = LookupConfig(side=50, fine_side=75, contrast_sigma=4.0)
    field, thumbnails = 0, []
    for _ in range(SECTIONS):
        # Tissue that is another one after some sections, turned and noisy.
        fresh = [cv2.GaussianBlur(rng.standard_normal((240, 240)), (0, 0), s) * s for s in (2, 4)]
        field = 0.8 * field + 0.6 * sum(fresh)
        turn = cv2.getRotationMatrix2D((120, 120), float(rng.uniform(0, 360)), 1.0)
        turn[:, 2] -= 45
        seen = 128 + 60 * cv2.warpAffine(field, turn, (SIDE, SIDE))
        seen = np.clip(seen + rng.normal(0, rng.uniform(5, 15), seen.shape), 1, 255)
        thumbnails.append(
            Thumbnail.of(seen.astype(np.uint8), np.ones((SIDE, SIDE), np.bool_), config)
        )
    pairs = [(a, b) for a in range(SECTIONS) for b in range(a + 1, min(SECTIONS, a + FAR + 1))]
    found = {
        (a, b): find_match(a, b, thumbnails[a], thumbnails[b], config, lookup) for a, b in pairs
    }
    return {pair: match for pair, match in found.items() if match is not None}


def stacked(known, order) -> list[Match]:
    """What a stack shows whose place n holds the section of true place order[n]."""
    result = []
    for b in range(len(order)):
        for a in range(max(0, b - NEIGHBOURS), b):
            match = known.get(tuple(sorted((order[a], order[b]))))
            if match is not None:
                result.append(dataclasses.replace(match, first=a, second=b))
    return result


def moved(section: int, to: int) -> list[int]:
    order = [z for z in range(SECTIONS) if z != section]
    return [*order[:to], section, *order[to:]]


def test_an_ordered_stack_raises_no_alarm(known):
    assert {m.by for m in known.values()} == {'features', 'correlation'}
    assert check_order(SECTIONS, stacked(known, range(SECTIONS)), CONFIG) == []
    # Nor one that lacks sections.
    gap = [*range(5), *range(6, SECTIONS)]
    assert check_order(len(gap), stacked(known, gap), CONFIG) == []


@pytest.mark.parametrize('at', [4, 6, 8])
def test_swapped_neighbours_are_told(known, at):
    (told,) = check_order(SECTIONS, stacked(known, moved(at, at + 1)), CONFIG)
    assert {told.section, told.better} == {at, at + 1}
    assert f'section {told.section} likely belongs at place {told.better}' in str(told)


@pytest.mark.parametrize(('section', 'to'), [(8, 5), (4, 7), (9, 6)])
def test_a_section_inserted_elsewhere_is_told(known, section, to):
    (told,) = check_order(SECTIONS, stacked(known, moved(section, to)), CONFIG)
    assert (told.section, told.better) == (to, section)
    # In places of the stack as given, it looks like those that it belongs between.
    true = moved(section, to)
    assert abs(true[told.alike[0]] - section) == 1


def test_two_mistakes_far_apart_are_both_told(known):
    order = list(range(SECTIONS))
    order[3], order[4] = order[4], order[3]
    order[8], order[9] = order[9], order[8]
    told = check_order(SECTIONS, stacked(known, order), CONFIG)
    assert sorted(sorted((t.section, t.better)) for t in told) == [[3, 4], [8, 9]]
    assert told[0].evidence >= told[1].evidence >= CONFIG.min_evidence


def test_without_matches_nothing_is_told():
    assert check_order(5, [], CONFIG) == []


def test_matches_of_sections_that_are_not_there_are_refused():
    points = np.zeros((12, 2))
    with pytest.raises(ValueError, match='must be 0 to 3'):
        check_order(4, [Match(4, 3, points, points)], CONFIG)


@pytest.mark.parametrize(
    ('name', 'value'), [('neighbours', 1), ('reach', 0), ('min_evidence', 0.0)]
)  # fmt: skip
def test_a_config_that_makes_no_sense_is_refused(name, value):
    with pytest.raises(ValueError, match=f'order.{name} is {value}'):
        OrderConfig(**{name: value})
