"""What a stage has to do at the scale of a data set: units of work, bytes stored, requests."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from h01_beam.forecast.dataset import DataSet, Fleet, Tiles
from h01_beam.forecast.rates import UNITS, Range, Rates, pattern_of
from h01_beam.imaging.illumination import FlatFieldConfig
from h01_beam.model_file import ModelCard
from h01_beam.run import StagePlan, Traffic

# Of its own marker: read, and written. (One that was there is deleted too, which costs nothing.)
OWN_MARKER = 1
# A record of a block in a shuffle, and that of one that is spread to a worker.
RECORD_BYTES = 1000
# Least cross-section of an object at a face, voxels: bounds the number of edges.
VOXELS_PER_EDGE = 200
EDGE_BYTES = 40
# How often a shuffle of the component algorithm moves each edge.
ROUNDS = 7
# Stages whose blocks read image files of tiles, which their plans do not show.
TILE_STAGES = (
    'check_tiles', 'sum_lighting', 'measure_offsets', 'match_seams', 'render_montage',
    'render_image',
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Requests:
    """To a bucket: class A writes and lists, class B reads."""

    class_a: float = 0.0
    class_b: float = 0.0

    def __add__(self, other: Requests) -> Requests:
        return Requests(class_a=self.class_a + other.class_a, class_b=self.class_b + other.class_b)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What a stage has to do.

    Attributes:
      units: of `h01_beam.forecast.rates.UNITS`; a range where nobody knows exactly.
      read_bytes, write_bytes: stored, by class of storage.
      requests: by class of storage.
      marker_reads: of those that read, for markers of earlier stages.
      shuffle_bytes: through Beam.
    """

    units: Range
    read_bytes: Mapping[str, Range]
    write_bytes: Mapping[str, Range]
    requests: Mapping[str, Requests]
    marker_reads: float
    shuffle_bytes: float


@dataclasses.dataclass(frozen=True)
class Context:
    """What the stages of a job have in common.

    Attributes:
      dataset, fleet, rates: see there.
      results: names of volumes that stay.
      blocks: of the grid by which a volume is segmented, for edges.
      card: of the network.
      cell_tiles: side of a cell of tiles.
      montage_downsample: of the montage against the tiles.
      lighting_tiles: that are read for the lighting of a beam in a section, at most.
    """

    dataset: DataSet
    fleet: Fleet
    rates: Rates
    results: tuple[str, ...] = ('image', 'even', 'mask', 'segmentation')
    edges: float = 0.0
    card: ModelCard | None = None
    cell_tiles: int = 4
    montage_downsample: int = 2
    lighting_tiles: int = FlatFieldConfig().max_tiles


def measure(plan: StagePlan, context: Context) -> Work:
    """What a stage has to do; empty parts of the box cost requests, but no work and no bytes."""
    rates, fleet, dataset = context.rates, context.fleet, context.dataset
    filled = dataset.filled
    reads: dict[str, Range] = {}
    writes: dict[str, Range] = {}
    requests: dict[str, Requests] = {fleet.intermediate: Requests()}
    for traffic in plan.traffic:
        kind = _class_of(traffic, context)
        where = writes if traffic.writes else reads
        if traffic.spec is not None:
            size = traffic.voxels * traffic.spec.voxel_bytes() * filled
            where[kind] = plus(where.get(kind), times(rates.stored(traffic.spec.dtype), size))
        # What has nothing to show is not written, but is asked for.
        asked = (
            Requests(class_a=traffic.objects * (filled if traffic.spec else 1.0))
            if traffic.writes
            else Requests(class_b=traffic.objects)
        )
        requests[kind] = requests.get(kind, Requests()) + asked
    tables = sum(t.objects for t in plan.traffic if t.writes and t.spec is None)
    markers = float(sum(t.markers for t in plan.traffic))
    requests[fleet.intermediate] += Requests(
        class_a=plan.blocks * OWN_MARKER,
        # Parts of tables are read once more, to join them.
        class_b=plan.blocks * OWN_MARKER + markers + tables,
    )
    count = tile_reads(plan, context)
    if count and dataset.tiles:
        pixels = count * math.prod(dataset.tiles.shape)
        kind = dataset.tiles.storage_class
        reads[kind] = plus(reads.get(kind), times(rates.tile_bytes_per_pixel, pixels))
        requests[kind] = requests.get(kind, Requests()) + Requests(class_b=count)
    shuffle = plan.blocks * RECORD_BYTES * 2.0
    if pattern_of(_name(plan)) == 'components':
        shuffle += context.edges * EDGE_BYTES * ROUNDS
    amount = exactly(units(plan, dataset, context.edges, context.lighting_tiles))
    if pattern_of(_name(plan)) == 'flood':
        amount = times(rates.steps_per_voxel, amount.typical)
    return Work(
        units=amount, read_bytes=reads, write_bytes=writes, requests=requests,
        marker_reads=markers, shuffle_bytes=shuffle,
    )  # fmt: skip


def tile_reads(plan: StagePlan, context: Context) -> float:
    """How often image files are read: each block of a stage reads what it shows, alone."""
    name, dataset = _name(plan), context.dataset
    if dataset.tiles is None or name not in TILE_STAGES:
        return 0.0
    if name == 'check_tiles':
        return float(dataset.tiles.count)
    if name == 'sum_lighting':
        return float(_lit(plan, dataset.tiles, context.lighting_tiles))
    if name in ('measure_offsets', 'match_seams'):
        # A cell reads its own tiles, and those to the right and below that they overlap.
        side = context.cell_tiles
        return dataset.tiles.count * (side + 1) ** 2 / side**2
    factor = context.montage_downsample if name == 'render_montage' else 1
    written = next(t.voxels for t in plan.traffic if t.writes and t.spec)
    blocks = plan.blocks * context.dataset.filled
    side_px = math.sqrt(written / plan.blocks) * factor
    per_block = math.prod(
        (side_px + extent) / pitch
        for extent, pitch in zip(dataset.tiles.shape, dataset.tile_pitch, strict=True)
    )
    return blocks * per_block


def expected_edges(plan: StagePlan) -> float:
    """Edges that the blocks of the stage `match` find, at most."""
    grid = next(t.grid for t in plan.traffic if t.writes and t.grid)
    z, y, x = grid.block_shape
    return plan.blocks * (z * y + z * x + y * x) / VOXELS_PER_EDGE


def gflop_per_step(card: ModelCard) -> float:
    """Of one application of a network: its 3 x 3 x 3 convolutions, two in each of its modules."""
    voxels = math.prod(card.fov_shape)
    inner = (2 * card.depth - 1) * 2 * 27 * card.features**2
    return voxels * (inner + 2 * 27 * 2 * card.features + 2 * card.features) / 1e9


def times(value: Range, factor: float) -> Range:
    """A range, scaled."""
    return Range(low=value.low * factor, typical=value.typical * factor, high=value.high * factor)


def plus(a: Range | None, b: Range) -> Range:
    """The sum of two ranges, as if both were at their ends at once."""
    if a is None:
        return b
    return Range(low=a.low + b.low, typical=a.typical + b.typical, high=a.high + b.high)


def exactly(value: float) -> Range:
    """A number that is known."""
    return Range(low=value, typical=value, high=value)


def _lit(plan: StagePlan, tiles: Tiles, most: int) -> int:
    """Tiles whose lighting is measured: some of each beam in each section, the stage's blocks."""
    return min(tiles.count, plan.blocks * most)


def units(
    plan: StagePlan,
    dataset: DataSet,
    edges: float = 0.0,
    lighting_tiles: int = FlatFieldConfig().max_tiles,
) -> float:
    """What a stage does, in units of `rates.UNITS`; voxels that are read, for FOV steps."""
    unit = UNITS[pattern_of(_name(plan))]
    volumes = [t for t in plan.traffic if t.spec is not None]
    written = sum(t.voxels for t in volumes if t.writes) * dataset.filled
    read = sum(t.voxels for t in volumes if not t.writes) * dataset.filled
    tiles = dataset.tiles
    known = {
        'written_voxels': written,
        'read_voxels': read,
        'fov_steps': read,
        'tile_pixels': tiles.pixels if tiles else 0,
        'lit_pixels': _lit(plan, tiles, lighting_tiles) * math.prod(tiles.shape) if tiles else 0,
        'blocks': plan.blocks,
        'tiles': tiles.count if tiles else 0,
        'sections': dataset.shape[0],
        'edges': edges,
    }
    return float(known[unit])


def _class_of(traffic: Traffic, context: Context) -> str:
    spec, fleet = traffic.spec, context.fleet
    name = spec.path.rpartition('/')[2] if spec else ''
    return fleet.results if name in context.results else fleet.intermediate


def _name(plan: StagePlan) -> str:
    return plan.name.rpartition('/')[2]
