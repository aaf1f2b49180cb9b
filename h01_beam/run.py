"""A run: its folder, its manifest and its stages; `h01_beam.ledger` makes it a build system.

RUN_DIR/run.json  volumes/NAME/  tables/NAME/  ledger/STAGE/  report.json  report.html  figures/
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import posixpath
from collections.abc import Callable, Mapping
from typing import Any

from h01_beam import config as config_lib
from h01_beam import generations, layers, storage
from h01_beam.geometry import Block, BlockGrid, BoundingBox, Triple
from h01_beam.hardware import NO_WISHES, Hardware
from h01_beam.ledger import Ledger, Provenance, StageRecord
from h01_beam.volume import Volume, VolumeSpec, VolumeUri


class UpstreamError(RuntimeError):
    """A block was asked to read what an earlier stage has not finished."""


class Upstream:
    """What a block's read box depends on: digests of the blocks that wrote it.

    A volume that no ledger accounts for (foreign data) is known by one fingerprint of its place and
    metadata, or of its file's size and time.
    """

    def __init__(self, volume: Volume):
        self._fingerprint = volume.fingerprint
        self._ledger: Ledger | None = None
        self._digests: dict[Triple, str] = {}
        provenance = Provenance.read(volume.spec)
        if provenance is None:
            return
        record = StageRecord.read(provenance.ledger)
        if record is not None:
            self._ledger, self._grid = provenance.ledger, provenance.grid or record.grid

    def digests(self, box: BoundingBox) -> list[str]:
        """Digests of everything that `box` depends on.

        Raises:
          UpstreamError: a block that wrote part of the box has not finished.
        """
        if self._ledger is None:
            return [self._fingerprint]
        return [self._digest(block) for block in self._grid.touching(box)]

    def blocks(self, box: BoundingBox) -> tuple[str, list[Triple]]:
        """Ledger and indices of the blocks that wrote part of a box; '' and none if foreign."""
        if self._ledger is None:
            return '', []
        return self._ledger.path, [block.index for block in self._grid.touching(box)]

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


def volume_state(uri: str) -> str:
    """A text that changes when a volume does, as far as its ledger or its place can tell.

    Of one that a run wrote: the digest over all blocks of the stage. Of any other: its place and
    metadata, or its file's size and time (`Volume.fingerprint`).
    """
    volume = Volume.open(uri)
    provenance = Provenance.read(volume.spec)
    if provenance is not None:
        with contextlib.suppress(FileNotFoundError):
            summary = storage.read_bytes(storage.join(provenance.ledger.path, 'summary.json'))
            return str(json.loads(summary)['digest'])
    return volume.fingerprint


@dataclasses.dataclass(frozen=True)
class Resources:
    """What the workers have; a stage that would not fit is refused before it starts.

    Attributes:
      workers: how many processes there are; 1 where the engine decides.
      memory_bytes_per_worker: of each.
      shares_disk: whether they see the files of the machine that launches the run.
      fits_stages: whether the engine gives a stage the workers that its hints ask for.
    """

    workers: int
    memory_bytes_per_worker: int
    shares_disk: bool = True
    fits_stages: bool = False

    def check_reachable(self, what: str, path: str) -> None:
        """Raises a ValueError for a path that the workers would not find."""
        if not self.shares_disk and not storage.is_remote(path):
            raise ValueError(
                f'{what} is {path!r}: must be in a bucket, gs://..., as workers elsewhere do not '
                'see the files of this machine; copy it there'
            )

    @classmethod
    def local(cls, workers: int) -> Resources:
        """This machine, shared evenly by worker processes."""
        total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
        return cls(workers, min(total, _cgroup_limit()) // max(1, workers))


@dataclasses.dataclass(frozen=True)
class FailurePolicy:
    """What is done about blocks that fail; see `h01_beam.quarantine`.

    Attributes:
      attempts: how often a block is tried before it is left out.
      retry_quarantined: whether blocks that an earlier run left out are tried again.
    """

    attempts: int = 3
    retry_quarantined: bool = False

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f'block_attempts is {self.attempts}: must be at least 1')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
    """What all blocks of a stage move from or to one volume or table.

    Attributes:
      name: what the function calls it.
      spec: the volume; None for a table.
      writes: whether it is written.
      grid: of what is written: where its blocks lie.
      voxels: in all; 0 for tables, whose rows nobody knows beforehand.
      objects: chunks, shards or parts of a table in all, one request each.
      markers: of the stage that wrote it, which the blocks' keys hash: one request each.
    """

    name: str
    spec: VolumeSpec | None
    writes: bool
    voxels: int
    objects: int
    grid: BlockGrid | None = None
    markers: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One line of the plan: what a stage would do.

    Attributes:
      name: the stage.
      blocks: how many there are in all.
      chains: how many of them may run at once; the others wait for one before them.
      traffic: what they move, for forecasts.
      read_bytes, write_bytes: uncompressed, if every block ran.
      memory_bytes: most that one worker process needs.
      ledger: where the markers are.
      since: seconds since 1970; blocks whose markers are younger count as done. None: none does,
        as the configuration, the blocks or an output differ from what was there.
    """

    name: str
    blocks: int
    read_bytes: int
    write_bytes: int
    memory_bytes: int
    ledger: Ledger
    since: float | None
    chains: int = 0
    traffic: tuple[Traffic, ...] = ()


class Run:
    """A run directory, local or in a bucket, and the plan of the stages built into it.

    Attributes:
      path: the run directory.
      resources: what each worker has.
      dry_run: nothing is written; only the plan is made.
      hardware: what its stages ask of the workers.
      policy: what is done about blocks that fail.
      plans: the stages so far, in order of construction.
      processes: what workers do in those of them that go block by block (`h01_beam.work`).
      attempt: hash of configuration and inputs, once the manifest is written.
      summaries: one PCollection per stage; the final report waits for them.
      inner: runs within this one; see `h01_beam.subrun`.
    """

    def __init__(
        self,
        path: str,
        resources: Resources,
        dry_run: bool = False,
        hardware: Hardware = NO_WISHES,
        policy: FailurePolicy = FailurePolicy(),
    ):
        self.path = storage.absolute(path)
        self.resources = resources
        self.dry_run = dry_run
        self.hardware = hardware
        self._prefix = ''
        self.policy = policy
        self.plans: list[StagePlan] = []
        self.processes: list[Any] = []
        self.attempt = ''
        self.summaries: list[Any] = []
        self.inner: list[Run] = []
        resources.check_reachable('run_dir', self.path)
        if not dry_run:
            storage.check_writable('run_dir', self.path)

    @classmethod
    def at(cls, path: str) -> Run:
        """The run directory as a worker knows it: paths only."""
        return cls(path, Resources(0, 0), dry_run=True)

    def within(self, name: str) -> Run:
        """A run in a directory of this one, on the same workers."""
        path = storage.join(self.path, name)
        run = Run(path, self.resources, self.dry_run, self.hardware, self.policy)
        run._prefix = f'{self._prefix}{name}/'
        self.inner.append(run)
        return run

    def all_plans(self) -> list[StagePlan]:
        """The stages of this run and of those within it, the inner ones by their full name."""
        plans = list(self.plans)
        for run in self.inner:
            name = posixpath.basename(run.path)
            plans += [
                dataclasses.replace(plan, name=f'{name}/{plan.name}') for plan in run.all_plans()
            ]
        return plans

    def write_manifest(
        self,
        job: str,
        config: Any,
        models: Mapping[str, str],
        inputs: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """Records in run.json what is run: config, code version, model hashes, inputs.

        Args:
          job: its name.
          config: a dataclass.
          models: hashes by name.
          inputs: gives a fingerprint for each input by its name; called only if this is no dry run.

        Raises:
          ValueError: the directory is that of a run of another job, or has later generations.
        """
        path = storage.join(self.path, 'run.json')
        if not layers.name_of(self.path) and generations.exist(self.path):
            raise ValueError(
                f'run_dir is {self.path!r}: later generations lie over it, which would change with '
                'it; use pipelines.reprocess, or choose another run_dir'
            )
        if storage.exists(path):
            other = json.loads(storage.read_bytes(path))['job']
            if other != job:
                raise ValueError(
                    f'run_dir is {self.path!r}: it holds a run of {other!r}, whose report and '
                    f'manifest this run of {job!r} would replace; choose another run_dir'
                )
        if self.dry_run:
            return
        manifest = {
            'job': job,
            'version': code_version(),
            'config': config_lib.as_dict(config),
            # Relative paths in the configuration start here.
            'directory': os.getcwd(),
            'models': dict(models),
            'inputs': (listed := dict(inputs())),
            'attempt': generations.attempt(config, listed),
            'resources': config_lib.as_dict(self.hardware),
        }
        self.attempt = str(manifest['attempt'])
        text = json.dumps(manifest, indent=1, sort_keys=True)
        storage.write_bytes(path, text.encode())

    def hints(self, stage: str) -> dict[str, str]:
        """Hints of a stage, for Beam's `with_resource_hints`; none where the engine knows none.

        Even an engine that ignores them would start workers of their own for each set of them.
        """
        return self.hardware.hints_of(self._prefix + stage) if self.resources.fits_stages else {}

    def resources_of(self, stage: str) -> Resources:
        """What the workers of a stage have: the memory that it asks for, if it does."""
        memory = self.hardware.process_memory_bytes(self._prefix + stage)
        if memory is None or not self.resources.fits_stages:
            return self.resources
        return dataclasses.replace(self.resources, memory_bytes_per_worker=memory)

    def volume_uri(self, name: str, driver: str = 'neuroglancer-precomputed', mip: int = 0) -> str:
        return str(VolumeUri(storage.join(self.path, 'volumes', name), driver, mip=mip))

    def ledger(self, stage: str) -> Ledger:
        return Ledger(storage.join(self.path, 'ledger', stage))

    def table(self, name: str) -> str:
        return storage.join(self.path, 'tables', name)

    def table_part(self, name: str, index: Triple) -> str:
        """File of the rows that one block wrote to a table."""
        return part_of_table(self.table(name), index)

    def joined_files(self, table: str) -> list[str]:
        """The files that parts of a table were joined to (`h01_beam.finish.CompactTable`)."""
        parts = storage.join(self.table(table), 'parts') + '/'
        files = storage.list_files(self.table(table), '.parquet')
        return [path for path in files if not path.startswith(parts)]

    def void_table(self, name: str, reason: str) -> None:
        """Notes that the rows of a table are out of date, until `restore_table`."""
        storage.write_bytes(self._void_note(name), reason.encode())

    def restore_table(self, name: str) -> None:
        """Notes that the rows of a table are those of what is there."""
        storage.delete(self._void_note(name))

    def check_table(self, name: str) -> None:
        """Raises an UpstreamError if the rows of a table are out of date."""
        try:
            reason = storage.read_bytes(self._void_note(name)).decode()
        except FileNotFoundError:
            return
        raise UpstreamError(f'the table {name!r} was not made: {reason}')

    def _void_note(self, name: str) -> str:
        return storage.join(self.table(name), 'void.txt')

    def figure(self, name: str) -> str:
        return storage.join(self.path, 'figures', name)


def read_manifest(run_dir: str) -> dict[str, Any]:
    """What `Run.write_manifest` recorded.

    Raises:
      FileNotFoundError: there is no run.
    """
    try:
        text = storage.read_bytes(storage.join(run_dir, 'run.json'))
    except FileNotFoundError:
        raise FileNotFoundError(
            f'run_dir is {run_dir!r}: holds no run (there is no run.json in it); give the '
            'directory that --run_dir named when the run was started'
        ) from None
    manifest: dict[str, Any] = json.loads(text)
    return manifest


def part_of_table(table: str, index: Triple) -> str:
    """File of the rows that one block wrote to the table at a path."""
    z, y, x = index
    return storage.join(table, 'parts', str(z), f'{y}_{x}.parquet')


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
