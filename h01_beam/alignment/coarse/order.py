"""The order of sections: which ones look as if they stood in the wrong place.

How alike two sections look falls with the distance between them. Over the stack that gives a
profile of the logarithm of similarity, and how clear each section is on the whole:

    log similarity(a, b)  =  profile(|a - b|)  +  clarity(a)  +  clarity(b)  +  noise

both by medians, so that a few misplaced sections hardly matter. Then each section is taken out and
put in at other places nearby; a place that explains what was seen clearly better is told. Nothing
is ever reordered here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from h01_beam.alignment.coarse.features import Match

Reals = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_ROUNDS = 6
# One pair cannot say more than this many deviations, nor are deviations smaller than this.
_MOST_MISS, _LEAST_SPREAD = 3.0, 0.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class OrderConfig:
    """When a section counts as misplaced.

    Attributes:
      neighbours: how many sections before each it was matched with; pairs that far apart without a
        match count as unlike.
      reach: how many places away a better one is looked for.
      min_evidence: by which another place must explain the matches better: the difference of
        squared misses, in deviations of the rest.
    """

    neighbours: int = 4
    reach: int = 4
    min_evidence: float = 12.0

    def __post_init__(self) -> None:
        """Checks the fields."""
        if self.neighbours < 2:
            raise ValueError(
                f'order.neighbours is {self.neighbours}: must be 2 or more, as order shows in how '
                'similarity falls with distance'
            )
        if self.reach < 1:
            raise ValueError(f'order.reach is {self.reach}: must be 1 or more')
        if not self.min_evidence > 0:
            raise ValueError(f'order.min_evidence is {self.min_evidence}: must be above 0')


@dataclasses.dataclass(frozen=True)
class Misplaced:
    """A section that likely stands in the wrong place.

    Attributes:
      section: its place in the stack as given; of two swapped neighbours, either.
      better: the place it would have, once taken out, in the stack as given.
      evidence: see `OrderConfig.min_evidence`.
      alike: the sections that it looks most like, best first.
    """

    section: int
    better: int
    evidence: float
    alike: tuple[int, ...]

    def __str__(self) -> str:
        return (
            f'section {self.section} likely belongs at place {self.better} '
            f'(evidence {self.evidence:.0f}); it looks most like {list(self.alike)}'
        )


def check_order(sections: int, matches: Sequence[Match], config: OrderConfig) -> list[Misplaced]:
    """Finds sections that likely stand in the wrong place, the clearest first.

    Args:
      sections: their number.
      matches: of all pairs up to `config.neighbours` apart that have one.
      config: reach and rules.

    Raises:
      ValueError: a match is of a section that is not there.
    """
    for match in matches:
        if not 0 <= min(match.first, match.second) <= max(match.first, match.second) < sections:
            raise ValueError(
                f'a match is of sections {match.first} and {match.second}: must be 0 to '
                f'{sections - 1}; give the number of all sections as `sections`'
            )
    if not matches:
        return []
    place = np.arange(sections)
    told: list[Misplaced] = []
    while len(told) < sections:
        # What is expected of pairs is asked anew after each move, which would else spoil it.
        model = _Model.of(place, matches, config)
        gains = [
            (model.gain(place, z, to), -z, to)
            for z in sorted(set(range(sections)) - {t.section for t in told})
            for to in range(int(place[z]) - config.reach, int(place[z]) + config.reach + 1)
            if 0 <= to < sections and to != place[z]
        ]
        evidence, z, to = max(gains, default=(0.0, 0, 0))
        if evidence < config.min_evidence:
            break
        told.append(Misplaced(-z, to, evidence, model.alike(-z)))
        place = _moved(place, -z, to)
    return told


def _moved(place: Ints, z: int, to: int) -> Ints:
    """Places after section z is taken out and put in at another."""
    at = place[z]
    step = 1 if to > at else -1
    between = (place - at) * step > 0
    between &= (place - to) * step <= 0
    result = np.where(between, place - step, place)
    result[z] = to
    return result


@dataclasses.dataclass(frozen=True)
class _Model:
    """What similarity is expected of pairs.

    Attributes:
      pairs: (n, 2) sections a < b, by a.
      seen: (n,) logarithms of similarity, `floor` where there is no match.
      profile: of distances 0, 1, 2, ...; that of 0 is not used.
      clarity: (sections,).
      floor: below it nothing is seen.
      spread: of misses.
      window: how far apart sections of pairs can lie that one move concerns.
    """

    pairs: Ints
    seen: Reals
    profile: Reals
    clarity: Reals
    floor: float
    spread: float
    window: int

    @classmethod
    def of(cls, place: Ints, matches: Sequence[Match], config: OrderConfig) -> _Model:
        sections = len(place)
        table = {
            (a, b): 0.0
            for a in range(sections)
            for b in range(a + 1, min(sections, a + config.neighbours + 1))
        }
        for m in matches:
            table[min(m.first, m.second), max(m.first, m.second)] = m.similarity
        pairs = np.array(sorted(table))
        values = np.array([table[a, b] for a, b in pairs.tolist()])
        floor = float(np.log(values[values > 0].min() / 2))
        seen = np.log(np.maximum(values, np.exp(floor)))
        clarity = np.zeros(sections)
        apart = np.abs(np.diff(place[pairs])[:, 0])
        longest = int(apart.max()) + 2 * config.reach
        for _ in range(_ROUNDS):
            profile = _profile(seen - clarity[pairs].sum(axis=1), apart, longest)
            miss = seen - np.maximum(profile[apart] + clarity[pairs].sum(axis=1), floor)
            for z in range(sections):
                own = (pairs == z).any(axis=1)
                clarity[z] += 0.5 * np.median(miss[own])
        spread = max(_LEAST_SPREAD, 1.4826 * float(np.median(np.abs(miss))))
        return cls(
            pairs, seen, profile, clarity, floor, spread, config.neighbours + 2 * config.reach
        )

    def gain(self, place: Ints, z: int, to: int) -> float:
        """By how much another place of a section explains better what was seen."""
        low, high = min(place[z], to) - self.window, max(place[z], to) + self.window
        near = slice(*np.searchsorted(self.pairs[:, 0], [low, high + 1]).tolist())
        return self._cost(place, z, near) - self._cost(_moved(place, z, to), z, near)

    def alike(self, z: int) -> tuple[int, ...]:
        own = np.flatnonzero((self.pairs == z).any(axis=1) & (self.seen > self.floor))
        ranked = own[np.argsort(-self.seen[own], kind='stable')][:3]
        return tuple(int(s) for s in self.pairs[ranked].sum(axis=1) - z)

    def _cost(self, place: Ints, z: int, near: slice) -> float:
        pairs, seen = self.pairs[near], self.seen[near]
        apart = np.abs(np.diff(place[pairs])[:, 0])
        expected = self.profile[np.minimum(apart, len(self.profile) - 1)]
        expected = expected + self.clarity[pairs].sum(axis=1)
        # A section in the wrong place looks less clear than it is, so its clarity is not taken.
        own = (pairs == z).any(axis=1) & (seen > self.floor)
        if own.any():
            expected[own] += np.median(seen[own] - expected[own])
        miss = (seen - np.maximum(expected, self.floor)) / self.spread
        return float(np.minimum(miss * miss, _MOST_MISS**2).sum())


def _profile(values: Reals, apart: Ints, longest: int) -> Reals:
    """Medians at each distance, never rising; beyond the last one they fall on as before."""
    # A distance of which no pair was seen is as far as the one before.
    known = [float(values.max())]
    for distance in range(1, int(apart.max()) + 1):
        near = values[apart == distance]
        known.append(float(np.median(near)) if near.size else known[-1])
    known = np.minimum.accumulate(known[1:]).tolist()
    fall = (known[0] - known[-1]) / max(1, len(known) - 1)
    beyond = [known[-1] - fall * n for n in range(1, longest - len(known) + 1)]
    return np.array([known[0], *known, *beyond])
