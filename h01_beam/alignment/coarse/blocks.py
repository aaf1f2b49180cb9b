"""What the stages that place sections do with one block: thumbnails to affine maps; rows."""

from __future__ import annotations

import collections
import dataclasses
import math

import numpy as np
import numpy.typing as npt

from h01_beam.alignment.coarse.causal import place_next
from h01_beam.alignment.coarse.features import Match, place_sections
from h01_beam.alignment.coarse.order import OrderConfig, check_order
from h01_beam.alignment.coarse.pairs import Thumbnail, find_match
from h01_beam.alignment.config import AlignConfig
from h01_beam.alignment.frames import (
    AFFINES,
    affine_of,
    reduce_affine,
    rescale_affine,
    state_of,
)
from h01_beam.geometry import Block, Triple
from h01_beam.imaging.masks import TissueConfig, find_tissue
from h01_beam.plan import BlockResult
from h01_beam.tables import Columns, Schema, length

Bytes = npt.NDArray[np.uint8]
Reals = npt.NDArray[np.float64]

# Points that two thumbnails share, pixels of either.
MATCHES = Schema(
    {
        'first': 'int64',
        'second': 'int64',
        'first_y': 'float64',
        'first_x': 'float64',
        'second_y': 'float64',
        'second_x': 'float64',
        'flipped': 'bool',
        'by': 'str',
        'weight': 'float64',
        'peak': 'float64',
    }
)
# Sections that look as if they stood elsewhere in the stack; see `h01_beam.alignment.coarse.order`.
MISPLACED = Schema({'section': 'int64', 'better': 'int64', 'evidence': 'float64'})
# Share of a section's tissue beyond the aligned frame; `align.margin` at which there were none.
FRAME = Schema({'section': 'int64', 'cut_off': 'float64', 'margin': 'int64'})


@dataclasses.dataclass(frozen=True)
class FindTissue:
    """Tissue of a section, on its thumbnail: in resin only the pattern of tiles could match."""

    config: TissueConfig

    def working_bytes(self, read_shape: Triple) -> int:
        return 60 * math.prod(read_shape)

    def __call__(self, thumbnail: Bytes, block: Block) -> BlockResult:
        section = thumbnail[0]
        found = find_tissue(section, section > 0, self.config)
        return BlockResult(
            arrays={'tissue': found[None].astype(np.uint8)},
            metrics={'tissue_pixels': float(found.sum()), 'pixels': float((section > 0).sum())},
        )


@dataclasses.dataclass(frozen=True)
class MatchThumbnails:
    """Matches of the thumbnail of a section with those of the ones before it."""

    config: AlignConfig

    def working_bytes(self, read_shape: Triple) -> int:
        # Of one pair at a time; and thumbnails with features, some 6 bytes a pixel each.
        return self.config.thumbnail**2 * (100 + 6 * (self.config.coarse.neighbours + 1))

    def __call__(self, thumbnails: Bytes, tissue: Bytes, block: Block) -> BlockResult:
        """Of arrays (sections, h, w); the last section is the block's own."""
        config, z = self.config, block.index[0]
        own = self._thumbnail(thumbnails[-1], tissue[-1])
        found, metrics = [], collections.Counter[str]()
        for away in range(1, len(thumbnails)):
            other = own and self._thumbnail(thumbnails[-1 - away], tissue[-1 - away])
            if own is None or other is None:
                continue
            match = find_match(z, z - away, own, other, config.coarse, config.lookup)
            metrics['pairs'] += 1
            metrics[f'pairs_by_{match.by}' if match else 'pairs_without_match'] += 1
            if match:
                found.append(_match_rows(match))
        rows = {
            name: np.concatenate([r[name] for r in found]) if found else empty
            for name, empty in MATCHES.empty().items()
        }
        return BlockResult(rows={'matches': rows}, metrics=metrics)

    def _thumbnail(self, image: Bytes, tissue: Bytes) -> Thumbnail | None:
        return Thumbnail.of(image, tissue > 0, self.config.coarse) if tissue.any() else None


def _match_rows(match: Match) -> Columns:
    count = len(match)
    return {
        'first': np.full(count, match.first),
        'second': np.full(count, match.second),
        'first_y': match.first_points[:, 0],
        'first_x': match.first_points[:, 1],
        'second_y': match.second_points[:, 0],
        'second_x': match.second_points[:, 1],
        'flipped': np.full(count, match.flipped),
        'by': np.full(count, match.by, object),
        'weight': np.full(count, match.weight),
        'peak': np.full(count, match.peak),
    }


@dataclasses.dataclass(frozen=True)
class PlaceSections:
    """Affine maps of all sections at once: numbers only, a few hundred bytes a match.

    Attributes:
      config: of alignment.
      sections: their number.
      thumbnail: h and w of a thumbnail.
      factor: pixels of the montage to one of the thumbnail.
    """

    config: AlignConfig
    sections: int
    thumbnail: tuple[int, int]
    factor: int

    def __call__(self, matches: Columns, block: Block) -> BlockResult:
        found = list(split_matches(matches))
        centre = ((self.thumbnail[0] - 1) / 2, (self.thumbnail[1] - 1) / 2)
        placement = place_sections(self.sections, found, centre, self.config.coarse)
        groups, sizes = np.unique(placement.group[placement.group >= 0], return_counts=True)
        largest = int(groups[sizes.argmax()]) if len(groups) else -1
        counts, misfits = np.zeros(self.sections, np.int64), np.full(self.sections, np.nan)
        for match, misfit in zip(found, placement.misfit.tolist(), strict=True):
            for section in (match.first, match.second):
                counts[section] += len(match)
                misfits[section] = np.nanmax([misfits[section], misfit * self.factor])
        affines = np.stack(
            [rescale_affine(a, self.factor, self.config.margin) for a in placement.affines]
        )
        states = np.select(
            [
                (placement.group >= 0) & (placement.group == largest),
                placement.group >= 0,
            ],
            ['placed', 'loose'],
            'unmatched',
        )
        names = ('yy', 'yx', 'y1', 'xy', 'xx', 'x1')
        rows = {
            'section': np.arange(self.sections),
            **dict(zip(names, affines.reshape(-1, 6).T, strict=True)),
            'group': placement.group,
            'matches': counts,
            'misfit': misfits,
            'state': states.astype(object),
        }
        metrics = {
            f'sections_{state}': float((states == state).sum())
            for state in ('placed', 'loose', 'unmatched')
        }
        return BlockResult(rows={'placement': rows}, metrics=metrics)


def deal_affines(placement: Columns, block: Block) -> BlockResult:
    """The row of one section: what shows it depends on no other, and reads no more."""
    own = placement['section'] == block.index[0]
    return BlockResult(rows={'affines': {name: column[own] for name, column in placement.items()}})


@dataclasses.dataclass(frozen=True)
class PlaceNext:
    """The affine map of one section, laid on those before it; see `causal`.

    Attributes:
      config: of alignment.
      thumbnail: h and w of a thumbnail.
      factor: pixels of the montage to one of the thumbnail.
    """

    config: AlignConfig
    thumbnail: tuple[int, int]
    factor: int

    def __call__(
        self, tissue: Bytes, matches: Columns, affines: Columns, block: Block
    ) -> BlockResult:
        section, margin = block.index[0], self.config.margin
        states = dict(zip(affines['section'], affines['state'], strict=True)) if affines else {}
        groups = dict(zip(affines['section'], affines['group'], strict=True)) if affines else {}
        placed = {
            z: reduce_affine(affine_of(affines, z), self.factor, margin)
            for z, state in states.items()
            if state == 'placed'
        }
        centre = ((self.thumbnail[0] - 1) / 2, (self.thumbnail[1] - 1) / 2)
        found = place_next(section, split_matches(matches), placed, centre, self.config.coarse)
        state, group = 'placed', section
        if found is not None:
            group = groups[max(placed)]
        elif placed or not tissue.any():
            state, group = 'unmatched', -1
        affine = np.eye(2, 3) if found is None else found.affine
        names = ('yy', 'yx', 'y1', 'xy', 'xx', 'x1')
        values = rescale_affine(affine, self.factor, margin).ravel()
        misfit = np.nan if found is None else found.misfit * self.factor
        row = {
            'section': section,
            **dict(zip(names, values.tolist(), strict=True)),
            'group': group,
            'matches': 0 if found is None else found.matches,
            'misfit': misfit,
            'state': state,
        }
        rows = {name: np.array([value], AFFINES.empty()[name].dtype) for name, value in row.items()}
        return BlockResult(rows={'affines': rows}, metrics={f'sections_{state}': 1.0})


@dataclasses.dataclass(frozen=True)
class CheckOrder:
    """Sections that look as if they stood elsewhere in the stack; numbers only.

    Attributes:
      config: of alignment.
      sections: their number.
    """

    config: AlignConfig
    sections: int

    def __call__(self, matches: Columns) -> BlockResult:
        order = OrderConfig(neighbours=max(2, self.config.coarse.neighbours))
        misplaced = check_order(self.sections, list(split_matches(matches)), order)
        told = {
            name: np.array([getattr(m, name) for m in misplaced], dtype)
            for name, dtype in MISPLACED.columns.items()
        }
        return BlockResult(
            rows={'misplaced': told}, metrics={'sections_misplaced': float(len(misplaced))}
        )


@dataclasses.dataclass(frozen=True)
class MeasureFrame:
    """How much of a section's tissue lies beyond the aligned frame, on its thumbnail.

    Attributes:
      factor: pixels of the montage to one of the thumbnail.
      margin: of the frame, pixels of the montage.
      frame: y and x pixels of the aligned frame.
    """

    factor: int
    margin: int
    frame: tuple[int, int]

    def working_bytes(self, read_shape: Triple) -> int:
        return 100 * math.prod(read_shape)

    def __call__(self, tissue: Bytes, affines: Columns, block: Block) -> BlockResult:
        position = block.index[0]
        points = np.argwhere(tissue[0] > 0).T.astype(np.float64)
        if state_of(affines, position) != 'placed' or not points.shape[1]:
            return BlockResult()
        affine = affine_of(affines, position)
        there = affine[:, :2] @ (self.factor * points + (self.factor - 1) / 2) + affine[:, 2:]
        last = np.array(self.frame, np.float64)[:, None] - 1
        beyond = np.maximum(-there, there - last).max(axis=0)
        cut = float((beyond > 0).mean())
        row = {
            'section': np.array([position]),
            'cut_off': np.array([cut]),
            'margin': np.array([math.ceil(self.margin + max(0.0, float(beyond.max())))]),
        }
        return BlockResult(
            rows={'frame': row},
            metrics={'peak_cut_off': cut, 'peak_margin_needed': float(row['margin'][0])},
        )


def split_matches(matches: Columns) -> list[Match]:
    """Rows of the table as one match for each pair of sections, in ascending order."""
    if not length(matches):
        return []
    order = np.lexsort((matches['second'], matches['first']))
    keys = np.stack([matches['first'], matches['second']], axis=1)[order]
    begins = np.flatnonzero((np.diff(keys, axis=0, prepend=-1) != 0).any(axis=1))
    result = []
    for rows in np.split(order, begins[1:]):
        mine, other = (
            np.stack([matches[f'{n}_y'][rows], matches[f'{n}_x'][rows]], axis=1)
            for n in ('first', 'second')
        )
        first, second = int(matches['first'][rows[0]]), int(matches['second'][rows[0]])
        flipped, by, weight, peak = (
            matches[n][rows[0]] for n in ('flipped', 'by', 'weight', 'peak')
        )
        result.append(
            Match(first, second, mine, other, bool(flipped), by, float(weight), float(peak))
        )
    return result
