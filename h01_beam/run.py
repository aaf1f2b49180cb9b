"""A run: its folder, its manifest, and the ledger that makes it a build system for blocks.

A finished block leaves one marker, written after its data. Its `key` hashes everything that
the block depends on: stage config, model, and the digests of all upstream blocks that its read
box touches. Its `digest` hashes what it wrote. A block runs exactly when its key has changed.
From this one rule come resume after a crash, cheap re-runs after a change of a parameter, and
incremental reprocessing when new sections arrive. Correctness never rests on it: functions are
deterministic and overwrite whole chunks, so a block that runs twice writes the same bytes.

    RUN_DIR/run.json  volumes/NAME/  tables/NAME/  ledger/STAGE/  report.json  report.html  figures/
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import posixpath
from collections.abc import Iterable, Mapping
from typing import Any

from h01_beam import config as config_lib
from h01_beam import storage
from h01_beam.geometry import Block, BlockGrid, BoundingBox, Triple
from h01_beam.volume import Volume, VolumeSpec, VolumeUri


@dataclasses.dataclass(frozen=True, kw_only=True)
class Marker:
    """What a finished block leaves behind.

    Attributes:
      key: hash of all that the block depends on.
      digest: hash of all that it wrote.
      rows: number of table rows that it wrote.
      seconds: how long it took.
      metrics: numbers that the stage counts; `peak_*` are maxima, the others sums.
    """

    key: str
    digest: str
    rows: int
    seconds: float
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Ledger:
    """The markers of one stage, one small file per block: `LEDGER/z/y_x.json`."""

    path: str

    def read(self, index: Triple) -> Marker | None:
        """The marker of a block, or None when it has not finished.

        An unreadable marker counts as none: the block runs again, which is always right.
        """
        try:
            return Marker(**json.loads(storage.read_bytes(self._file(index))))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def write(self, index: Triple, marker: Marker) -> None:
        text = json.dumps(dataclasses.asdict(marker), sort_keys=True)
        storage.write_bytes(self._file(index), text.encode())

    def void(self, index: Triple) -> None:
        """Removes a marker before its block's data change.

        Otherwise a crash between data and marker would leave new data under an old marker, and a
        return to the old parameters would take them for finished.
        """
        storage.delete(self._file(index))

    def markers_written(self) -> Iterable[str]:
        """Paths of all markers, for progress and plans; not for the work itself."""
        return storage.list_files(join_markers(self.path), '.json')

    def _file(self, index: Triple) -> str:
        z, y, x = index
        return storage.join(join_markers(self.path), str(z), f'{y}_{x}.json')


def join_markers(ledger_path: str) -> str:
    """Folder of a ledger's markers."""
    return storage.join(ledger_path, 'blocks')


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageRecord:
    """`LEDGER/stage.json`: how the blocks of a stage lie.

    `generation` counts how often an output volume was made anew, which voids old markers;
    `config` is the hash of the stage's configuration.
    """

    grid: BlockGrid
    generation: int
    config: str

    def write(self, ledger: Ledger) -> None:
        text = json.dumps(config_lib.as_dict(self), indent=1)
        storage.write_bytes(storage.join(ledger.path, 'stage.json'), text.encode())

    @classmethod
    def read(cls, ledger: Ledger) -> StageRecord | None:
        try:
            record = json.loads(storage.read_bytes(storage.join(ledger.path, 'stage.json')))
        except FileNotFoundError:
            return None
        return config_lib.from_dict(cls, record)


class UpstreamError(RuntimeError):
    """A block was asked to read what an earlier stage has not finished."""


class Upstream:
    """What a block's read box depends on: digests of the blocks that wrote it.

    A volume that no ledger accounts for (foreign data) is known by one fingerprint of its
    metadata, or of its file's size and time.
    """

    def __init__(self, volume: Volume):
        self._fingerprint = volume.fingerprint
        self._ledger: Ledger | None = None
        self._digests: dict[Triple, str] = {}
        provenance = _read_provenance(volume.spec)
        if provenance is None:
            return
        ledger, grid = provenance
        record = StageRecord.read(ledger)
        if record is not None:
            self._ledger, self._grid = ledger, grid or record.grid

    def digests(self, box: BoundingBox) -> list[str]:
        """Digests of everything that `box` depends on.

        Raises:
          UpstreamError: a block that wrote part of the box has not finished.
        """
        if self._ledger is None:
            return [self._fingerprint]
        return [self._digest(block) for block in self._grid.touching(box)]

    def _digest(self, block: Block) -> str:
        assert self._ledger is not None
        if block.index not in self._digests:
            marker = self._ledger.read(block.index)
            if marker is None:
                raise UpstreamError(
                    f'block {block.index} of {self._ledger.path!r} has not finished, but a later '
                    'stage reads it; run the stage that writes it again, it will fill the gap'
                )
            self._digests[block.index] = marker.digest
        return self._digests[block.index]


def write_provenance(spec: VolumeSpec, ledger: Ledger, grid: BlockGrid | None = None) -> None:
    """Leaves with a volume the path of the ledger that accounts for it.

    Args:
      spec: the volume.
      ledger: of the stage that writes it.
      grid: where in the volume the blocks of that stage write, by their indices; None: in their
        cores.
    """
    path = ledger.path
    if storage.is_remote(path) == storage.is_remote(spec.path):
        # Both may be copied elsewhere together.
        path = posixpath.relpath(path, spec.path)
    record = {'ledger': path, 'grid': config_lib.as_dict(grid) if grid else None}
    storage.write_bytes(_provenance_file(spec), json.dumps(record).encode())


def has_provenance(spec: VolumeSpec) -> bool:
    """Whether a run made this volume (so that a run may make it anew)."""
    return _read_provenance(spec) is not None


def _read_provenance(spec: VolumeSpec) -> tuple[Ledger, BlockGrid | None] | None:
    if VolumeUri.parse(spec.uri).driver not in ('neuroglancer-precomputed', 'zarr3'):
        return None
    try:
        record = json.loads(storage.read_bytes(_provenance_file(spec)))
    except FileNotFoundError:
        return None
    grid = config_lib.from_dict(BlockGrid, record['grid']) if record['grid'] else None
    path = record['ledger']
    if not storage.is_remote(path):
        head = 'gs://' if storage.is_remote(spec.path) and not path.startswith('/') else ''
        path = head + posixpath.normpath(posixpath.join(spec.path.removeprefix(head), path))
    return Ledger(path), grid


def _provenance_file(spec: VolumeSpec) -> str:
    return storage.join(spec.path, f'provenance_{spec.mip}.json')


@dataclasses.dataclass(frozen=True)
class Resources:
    """What the workers have; a stage that would not fit is refused before it starts."""

    workers: int
    memory_bytes_per_worker: int

    @classmethod
    def local(cls, workers: int) -> Resources:
        """This machine, shared evenly by worker processes."""
        total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
        return cls(workers, min(total, _cgroup_limit()) // max(1, workers))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One line of the plan: what a stage would do.

    Attributes:
      name: the stage.
      blocks: how many there are in all.
      read_bytes, write_bytes: uncompressed, if every block ran.
      memory_bytes: most that one worker process needs.
      ledger: where the markers are.
      resumes: markers of this very configuration are there; their blocks count as done.
    """

    name: str
    blocks: int
    read_bytes: int
    write_bytes: int
    memory_bytes: int
    ledger: Ledger
    resumes: bool


class Run:
    """A run directory, local or in a bucket, and the plan of the stages built into it.

    Attributes:
      path: the run directory.
      resources: what each worker has.
      dry_run: nothing is written; only the plan is made.
      plans: the stages so far, in order of construction.
      summaries: one PCollection per stage; the final report waits for them.
    """

    def __init__(self, path: str, resources: Resources, dry_run: bool = False):
        self.path = _absolute(path)
        self.resources = resources
        self.dry_run = dry_run
        self.plans: list[StagePlan] = []
        self.summaries: list[Any] = []
        if not dry_run:
            storage.check_writable(self.path)

    @classmethod
    def at(cls, path: str) -> Run:
        """The run directory as a worker knows it: paths only."""
        return cls(path, Resources(0, 0), dry_run=True)

    def write_manifest(self, job: str, config: Any, models: Mapping[str, str]) -> None:
        """Records in run.json what is run: config, code version, model hashes."""
        if self.dry_run:
            return
        manifest = {
            'job': job,
            'version': code_version(),
            'config': config_lib.as_dict(config),
            'models': dict(models),
        }
        text = json.dumps(manifest, indent=1, sort_keys=True)
        storage.write_bytes(storage.join(self.path, 'run.json'), text.encode())

    def volume_uri(self, name: str, driver: str = 'neuroglancer-precomputed', mip: int = 0) -> str:
        return str(VolumeUri(storage.join(self.path, 'volumes', name), driver, mip=mip))

    def ledger(self, stage: str) -> Ledger:
        return Ledger(storage.join(self.path, 'ledger', stage))

    def table(self, name: str) -> str:
        return storage.join(self.path, 'tables', name)

    def table_part(self, name: str, index: Triple) -> str:
        """File of the rows that one block wrote to a table."""
        z, y, x = index
        return storage.join(self.table(name), 'parts', str(z), f'{y}_{x}.parquet')

    def figure(self, name: str) -> str:
        return storage.join(self.path, 'figures', name)


def _absolute(path: str) -> str:
    if storage.is_remote(path):
        return path.rstrip('/')
    return os.path.abspath(storage.local_path(path))


def code_version() -> str:
    """Version of the installed package."""
    try:
        return importlib.metadata.version('h01_beam')
    except importlib.metadata.PackageNotFoundError:
        return 'unknown'


def _cgroup_limit() -> int:
    try:
        text = storage.read_bytes('/sys/fs/cgroup/memory.max').decode().strip()
    except OSError:
        return 2**62
    return int(text) if text.isdigit() else 2**62
