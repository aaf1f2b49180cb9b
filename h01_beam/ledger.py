"""The ledger: markers of finished blocks, and what volumes know of the blocks that wrote them.

A finished block leaves one marker, written after its data. Its `key` hashes everything that
the block depends on: stage config, model, and the digests of all upstream blocks that its read
box touches. Its `digest` hashes what it wrote. A block runs exactly when its key has changed.
From this one rule come resume after a crash, cheap re-runs after a change of a parameter, and
incremental reprocessing when new sections arrive. Correctness never rests on it: functions are
deterministic and overwrite whole chunks, so a block that runs twice writes the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import posixpath
from collections.abc import Iterable, Mapping

from h01_beam import config as config_lib
from h01_beam import layers, storage
from h01_beam.geometry import BlockGrid, Triple
from h01_beam.volume_spec import VolumeSpec, VolumeUri


@dataclasses.dataclass(frozen=True, kw_only=True)
class Marker:
    """What a finished block leaves behind.

    Attributes:
      key: hash of all that the block depends on.
      digest: hash of all that it wrote.
      rows: number of table rows that it wrote.
      seconds: how long it took.
      metrics: numbers that the stage counts; `peak_*` are maxima, the others sums.
      layer: where the data are: the generation of the run that wrote them (see
        `h01_beam.layers`), '' for the first.
    """

    key: str
    digest: str
    rows: int
    seconds: float
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    layer: str = ''


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
        record = dataclasses.asdict(marker)
        if not marker.layer:
            del record['layer']
        storage.write_bytes(self._file(index), json.dumps(record, sort_keys=True).encode())

    def void(self, index: Triple) -> None:
        """Removes a marker before its block's data change.

        Otherwise a crash between data and marker would leave new data under an old marker, and a
        return to the old parameters would take them for finished.
        """
        storage.delete(self._file(index))

    def markers_written(self, since: float = 0.0) -> Iterable[str]:
        """Paths of all markers, for progress and plans; not for the work itself.

        Args:
          since: seconds since 1970; older markers are left out.
        """
        return storage.list_files(join_markers(self.path), '.json', since)

    def times_written(self) -> Iterable[float]:
        """When each marker was written, seconds since 1970; one by one."""
        return (written for _, written in storage.list_times(join_markers(self.path), '.json'))

    def quarantined(self) -> Iterable[str]:
        """Paths of the records of blocks that were given up."""
        return storage.list_files(storage.join(self.path, 'quarantine'), '.json')

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
    `config` is the hash of the stage's configuration; `since` is the time (seconds since 1970) at
    which all of this was first so: older markers are stale.
    """

    grid: BlockGrid
    generation: int
    config: str
    since: float = 0.0

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


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What a volume knows of the stage that writes it: `PATH/provenance_MIP.json`.

    Attributes:
      ledger: of that stage.
      generation: of its markers (`StageRecord`) that vouch for the volume.
      grid: where in the volume the blocks of that stage write, by their indices; None: in their
        cores.
    """

    ledger: Ledger
    generation: int
    grid: BlockGrid | None = None

    def is_of(self, ledger: Ledger, generation: int) -> bool:
        """Whether it is these markers that vouch for the volume."""
        same = storage.absolute(self.ledger.path) == storage.absolute(ledger.path)
        return same and self.generation == generation

    def write(self, spec: VolumeSpec) -> None:
        """Leaves this with a volume."""
        path = self.ledger.path
        if storage.is_remote(path) == storage.is_remote(spec.path):
            # Both may be copied elsewhere together.
            path = posixpath.relpath(path, spec.path)
        grid = config_lib.as_dict(self.grid) if self.grid else None
        record = {'ledger': path, 'generation': self.generation, 'grid': grid}
        storage.write_bytes(_provenance_file(spec.path, spec.mip), json.dumps(record).encode())

    @classmethod
    def read(cls, spec: VolumeSpec) -> Provenance | None:
        """That of a volume; None if no run made it, so that no run may make it anew."""
        if VolumeUri.parse(spec.uri).driver not in ('neuroglancer-precomputed', 'zarr3'):
            return None
        return cls.at(spec.path, spec.mip)

    @classmethod
    def at(cls, folder: str, mip: int) -> Provenance | None:
        """That of a level of the volume in a folder."""
        try:
            place = storage.find(_provenance_file(folder, mip))
            record = json.loads(storage.read_bytes(place))
        except FileNotFoundError:
            return None
        grid = config_lib.from_dict(BlockGrid, record['grid']) if record['grid'] else None
        path = record['ledger']
        if not storage.is_remote(path):
            # From where the file lies, which may be a layer beneath; what lies within that layer is
            # seen from the one that was asked for.
            base = place.rpartition('/')[0]
            head = 'gs://' if storage.is_remote(base) and not path.startswith('/') else ''
            path = head + posixpath.normpath(posixpath.join(base.removeprefix(head), path))
            path = _seen_from(folder, place, path)
        return cls(Ledger(path), record['generation'], grid)


def _seen_from(folder: str, place: str, path: str) -> str:
    """A path of the layer that a file lies in, in the layer of the folder that it was looked up in.

    One that leads out of the run stays as it is.
    """
    if not layers.name_of(folder):
        return path
    root = layers.root_of(folder)
    beneath, above = (layers.folder(root, layers.name_of(p)) for p in (place, folder))
    if not storage.is_remote(beneath):
        beneath = posixpath.normpath(beneath)
    return above + path[len(beneath) :] if path.startswith(f'{beneath}/') else path


def _provenance_file(folder: str, mip: int) -> str:
    return storage.join(folder, f'provenance_{mip}.json')
