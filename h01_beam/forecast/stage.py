"""The stages of a job, built in a dry run by the very code that runs it, on inputs without voxels.

Of a volume, its metadata is made; of an acquisition, the tiles of one section, while the others,
of the same extent, have none. So ten million blocks are planned as fast as ten.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np

from h01_beam import config as config_lib
from h01_beam.acquisition.tables import Acquisition
from h01_beam.alignment.job import AlignJob
from h01_beam.alignment.stage import build_align_job
from h01_beam.forecast.dataset import DataSet, Job
from h01_beam.model_file import ModelCard
from h01_beam.models import ModelRef
from h01_beam.options import Options
from h01_beam.run import Resources, Run, StagePlan
from h01_beam.segmentation.config import SegmentConfig
from h01_beam.segmentation.stage import build_segment
from h01_beam.volume import Volume, VolumeSpec


@dataclasses.dataclass(frozen=True)
class PlannedJob:
    """A job and its stages.

    Attributes:
      name: of the job.
      config: its parsed configuration.
      stages: in order.
      card: of the network, if there is one.
    """

    name: str
    config: Any
    stages: tuple[StagePlan, ...]
    card: ModelCard | None = None


def plan_job(dataset: DataSet, job: Job) -> PlannedJob:
    """Builds the stages of a job at the extent of a data set; writes nothing that stays.

    Raises:
      ValueError, FileNotFoundError: the job, its configuration or its model does not fit.
    """
    if job.job not in JOBS:
        raise ValueError(f'jobs names {job.job!r}: must be one of {", ".join(JOBS)}')
    settings = config_lib.load(job.config, job.set)
    with tempfile.TemporaryDirectory(prefix='plan_') as folder:
        # Of what a worker has, the forecast itself judges; here nothing is refused for it.
        run = Run(str(Path(folder, 'run')), Resources(1, 2**62), dry_run=True)
        root = beam.Pipeline(runner='DirectRunner', options=Options())
        config, card = JOBS[job.job](root, dataset, job, settings, run, Path(folder))
        return PlannedJob(job.job, config, tuple(run.all_plans()), card)


def _align(
    root: Any, dataset: DataSet, job: Job, settings: Mapping[str, Any], run: Run, folder: Path
) -> tuple[AlignJob, None]:
    if dataset.tiles is None:
        raise ValueError(
            'dataset.tiles is null: must be given, as the job align works on them; or leave the '
            'job out'
        )
    if job.downsample != (1, 1, 1):
        raise ValueError(f'jobs.downsample is {job.downsample}: must be [1, 1, 1] for align')
    tiles = dict(settings.get('tiles') or {})
    tiles['source'] = tiles.get('source') or 'planned'
    config = config_lib.from_dict(AlignJob, {**settings, 'tiles': tiles})
    acquisition = stand_in_acquisition(dataset, str(folder))
    # The checks look for some of the files.
    Path(acquisition.tiles['path'][0]).write_bytes(b'')
    build_align_job(root, acquisition, config, run)
    return config, None


def _segment(
    root: Any, dataset: DataSet, job: Job, settings: Mapping[str, Any], run: Run, folder: Path
) -> tuple[SegmentConfig, ModelCard]:
    spec = stand_in_volume(dataset, job, folder)
    Volume.create(spec)
    given = {**settings, 'image': spec.uri, 'mask': None, 'truth': None}
    config = config_lib.from_dict(SegmentConfig, given)
    build_segment(root, config, run)
    return config, ModelRef.resolve(config.model).card


Builder = Callable[[Any, DataSet, Job, Mapping[str, Any], Run, Path], tuple[Any, Any]]
JOBS: Mapping[str, Builder] = {'align': _align, 'segment': _segment}


def stand_in_volume(dataset: DataSet, job: Job, folder: Path) -> VolumeSpec:
    """The aligned volume at the level of a job."""
    z, y, x = (-(-n // f) for n, f in zip(dataset.shape, job.downsample, strict=True))
    a, b, c = (s * f for s, f in zip(dataset.voxel_size_nm, job.downsample, strict=True))
    return VolumeSpec(
        uri=f'{folder}/image|neuroglancer-precomputed:',
        voxel_size_nm=(a, b, c),
        dtype='uint8',
        shape=(z, y, x),
        chunk=dataset.chunk,
    )


def stand_in_acquisition(dataset: DataSet, folder: str) -> Acquisition:
    """All sections, and the tiles of the first: a lattice over the box, without its corners."""
    assert dataset.tiles is not None
    sections = dataset.shape[0]
    pixel_nm = dataset.voxel_size_nm[1]
    pitch = np.array(dataset.tile_pitch)
    lattice = np.maximum(1, np.ceil(np.array(dataset.shape[1:]) / pitch)).astype(int)
    grid = np.indices(tuple(lattice)).reshape(2, -1).T
    middle = (lattice - 1) / 2
    away = ((grid - middle) / np.maximum(middle, 1)) ** 2
    # The middle row and column stay, so that the section is as large as the box.
    kept = np.where((grid == middle.astype(int)).any(axis=1), 0, away.sum(axis=1))
    grid = grid[np.sort(np.argsort(kept, kind='stable')[: dataset.tiles_per_section])]
    y_nm, x_nm = (grid * pitch * pixel_nm).T
    count = len(grid)
    height, width = dataset.tiles.shape
    tiles = {
        'section': np.zeros(count, np.int64),
        'field': np.arange(count),
        'beam': np.arange(count) % dataset.tiles.beams,
        'path': np.array([f'{folder}/{number}' for number in range(count)], object),
        'y_nm': y_nm,
        'x_nm': x_nm,
        'height': np.full(count, height),
        'width': np.full(count, width),
        'dtype': np.full(count, 'uint8', object),
        'dwell_ns': np.full(count, np.nan),
        'sha256': np.full(count, '', object),
    }
    order = np.arange(sections)
    thickness = np.full(sections, dataset.voxel_size_nm[0])
    columns = {'section': order, 'cutting_order': order, 'thickness_nm': thickness}
    return Acquisition(tiles, columns, pixel_nm)
