"""From a run directory, or from volumes, to a view in Neuroglancer: what `pipelines.view` does."""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from h01_beam.export import planes, state
from h01_beam.export.files import BucketFiles, Files, open_files
from h01_beam.export.finished_run import FinishedRun, Layer
from h01_beam.export.serve import Server
from h01_beam.volume import Volume, VolumeUri, VoxelSize

# Percentiles of the grey values that are shown black and white.
TAILS = (0.3, 99.7)


@dataclasses.dataclass(frozen=True)
class OpenLayer:
    """A layer with its volume, and the files that a browser reads it from."""

    layer: Layer
    volume: Volume
    files: Files

    @property
    def kind(self) -> str:
        return self.layer.kind or self.volume.spec.kind


def open_layers(
    run_dir: str | None = None, volumes: Sequence[str] = (), truth: str | None = None
) -> list[OpenLayer]:
    """Opens what is to be seen, from the bottom up.

    Args:
      run_dir: a run, whose inputs and result are opened. What is not there is left out with a
        warning: the run may have been moved without its input, or not have its result yet.
      volumes: URIs of further volumes.
      truth: URI of a segmentation to compare with.

    Raises:
      FileNotFoundError, ValueError: a volume that was asked for is not there, or nothing is.
    """
    found = _volumes_of_run(run_dir) if run_dir else []
    asked = [Layer(name=_name(uri), uri=uri) for uri in volumes]
    if truth:
        asked.append(Layer(name='truth', uri=truth, kind='segmentation'))
    found += [(layer, _open(layer)) for layer in asked]
    if not found:
        raise ValueError('nothing to view: give --run_dir, --volume or --truth')
    known_nm = _known_voxel_size(volume for _, volume in found)
    if known_nm is None:
        logging.warning(
            'no volume says its voxel size: voxels are shown as cubes, without a scale bar; '
            '`python -m pipelines.ingest --voxel_size_nm Z,Y,X` makes a volume that says it'
        )
    fallback_nm = known_nm or state.UNKNOWN_NM
    names = _unique([layer.name for layer, _ in found])
    opened = [
        OpenLayer(dataclasses.replace(layer, name=name), volume, open_files(layer, fallback_nm))
        for name, (layer, volume) in zip(names, found, strict=True)
    ]
    # Images are opaque: they lie below all segmentations.
    return sorted(opened, key=lambda one: one.kind != 'image')


def serve_layers(
    server: Server, layers: Sequence[OpenLayer], picture: bool = False
) -> dict[str, Any]:
    """Serves the layers and shows them.

    Args:
      server: where.
      layers: as of `open_layers`.
      picture: whether the view is arranged to be looked at, not to be worked with.

    Returns:
      the state, for others: volumes in buckets by their own URL, the rest by this server's.
    """
    served = {one.layer.name: server.add(one.layer.name, one.files) for one in layers}
    public = {name: url for one in layers for name, url in _public_source(one)}
    known_nm = _known_voxel_size(one.volume for one in layers)
    described = [describe_layer(one, served[one.layer.name]) for one in layers]
    make = state.build_picture if picture else state.build_state
    server.show(make(described, known_nm))
    shared = [dataclasses.replace(d, source=public.get(d.name, d.source)) for d in described]
    return make(shared, known_nm)


def describe_layer(one: OpenLayer, source: str) -> state.StateLayer:
    """What the state says of a layer."""
    return state.StateLayer(
        name=one.layer.name,
        source=source,
        kind=one.kind,
        spec=one.volume.spec,
        grey_range=grey_range(one.volume) if one.kind == 'image' else None,
    )


def grey_range(volume: Volume) -> tuple[float, float]:
    """The values that an image is shown black and white at: its own, in its middle."""
    box = planes.central_box(
        volume.bounds, volume.spec.voxel_size_nm or state.UNKNOWN_NM, voxels=256
    )
    middle = planes.read_planes(volume, box).yx
    # Zeros are where there is no image.
    present = middle[middle != 0]
    if not present.size:
        return 0.0, 255.0
    low, high = np.percentile(present, TAILS)
    return float(low), float(max(high, low + 1))


def _volumes_of_run(run_dir: str) -> list[tuple[Layer, Volume]]:
    run = FinishedRun(run_dir)
    found = []
    for layer in run.layers():
        try:
            found.append((layer, _open(layer)))
        except FileNotFoundError as error:
            logging.warning('the %s of the run is left out: %s', layer.name, error)
    if not found:
        raise FileNotFoundError(
            f'run_dir is {run_dir!r}: no volume of this {run.manifest["job"]} run is there (yet)'
        )
    return found


def _open(layer: Layer) -> Volume:
    """The volume at full resolution: a viewer chooses the level by itself."""
    return Volume.open(str(VolumeUri.parse(layer.uri).at(0)))


def _known_voxel_size(volumes: Iterable[Volume]) -> VoxelSize | None:
    return next((v.spec.voxel_size_nm for v in volumes if v.spec.voxel_size_nm), None)


def _public_source(one: OpenLayer) -> Iterator[tuple[str, str]]:
    parsed = VolumeUri.parse(one.layer.uri)
    if isinstance(one.files, BucketFiles):
        yield one.layer.name, f'precomputed://{parsed.path}'


def _name(uri: str) -> str:
    """The last part of the path that says something, for example 'em' of /data/em.zarr."""
    parsed = VolumeUri.parse(uri)
    return parsed.argument or posixpath.splitext(posixpath.basename(parsed.path))[0] or 'volume'


def _unique(names: Sequence[str]) -> list[str]:
    result: list[str] = []
    for name in names:
        name = name.replace('/', '_')
        number = sum(other == name or other.startswith(f'{name}_') for other in result)
        result.append(f'{name}_{number + 1}' if name in result else name)
    return result
