"""OME-Zarr metadata: 0.5 is written and read, 0.4 is read. JSON only; no voxel passes here.

Source: the specification of the Open Microscopy Environment, https://ngff.openmicroscopy.org.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from h01_beam import storage
from h01_beam.volume_spec import VolumeSpec, VolumeUri, read_json


def array_metadata(spec: VolumeSpec) -> dict[str, Any]:
    """The zarr3 metadata of one level."""
    codecs: list[dict[str, Any]] = [
        {'name': 'bytes', 'configuration': {'endian': 'little'}},
        {'name': 'zstd', 'configuration': {'level': 3}},
    ]
    lead = () if spec.channels == 1 else (spec.channels,)
    if spec.shard:
        index = [
            {'name': 'bytes', 'configuration': {'endian': 'little'}},
            {'name': 'crc32c'},
        ]
        shape = [*lead, *spec.chunk]
        codecs = [{'name': 'sharding_indexed',
                   'configuration': {'chunk_shape': shape, 'codecs': codecs,
                                     'index_codecs': index}}]  # fmt: skip
    return {
        'shape': [*lead, *spec.shape],
        'data_type': spec.dtype,
        'chunk_grid': {'name': 'regular',
                       'configuration': {'chunk_shape': [*lead, *spec.write_unit]}},
        'codecs': codecs,
        'dimension_names': (['c'] if lead else []) + ['z', 'y', 'x'],
        'attributes': {'start': list(spec.start), 'kind': spec.kind},
    }  # fmt: skip


def write_level(spec: VolumeSpec, parsed: VolumeUri) -> None:
    """Adds a level to the OME-Zarr 0.5 group; levels that were made from an old one go."""
    path = storage.join(parsed.path, 'zarr.json')
    group = {'zarr_format': 3, 'node_type': 'group', 'attributes': {}}
    if storage.exists(path):
        group = json.loads(storage.read_bytes(path))
    axes = [{'name': n, 'type': 'space', 'unit': 'nanometer'} for n in 'zyx']
    lead: list[float] = []
    if spec.channels > 1:
        axes.insert(0, {'name': 'c', 'type': 'channel'})
        lead = [1.0]
    attributes: Any = group['attributes']
    levels = attributes.get('ome', {}).get('multiscales', [{}])[0].get('datasets', [])[: parsed.mip]
    if len(levels) < parsed.mip:
        raise FileNotFoundError(f'{spec.uri!r}: mip 0 must be created before mip {parsed.mip}')
    scale = {'type': 'scale', 'scale': [*lead, *(spec.voxel_size_nm or ())]}
    levels.append({'path': str(parsed.mip), 'coordinateTransformations': [scale]})
    attributes['ome'] = {
        'version': '0.5',
        'multiscales': [{'name': 'volume', 'axes': axes, 'datasets': levels}],
    }
    storage.write_bytes(path, json.dumps(group, indent=1).encode())


def is_occupied(parsed: VolumeUri) -> bool:
    """Whether something is there, of whatever zarr version, where a level would be written."""
    names = ('zarr.json', '.zarray', '.zgroup', '.zattrs')
    folders = [storage.join(parsed.path, str(parsed.mip))] + [parsed.path] * (parsed.mip == 0)
    return any(storage.exists(storage.join(folder, name)) for folder in folders for name in names)


def drop_levels(parsed: VolumeUri) -> None:
    """Deletes a level that `write_level` made, and those above it."""
    path = storage.join(parsed.path, 'zarr.json')
    group = read_json(path, parsed)
    multiscale = group['attributes']['ome']['multiscales'][0]
    for level in multiscale['datasets'][parsed.mip :]:
        storage.delete_folder(storage.join(parsed.path, level['path']))
    multiscale['datasets'] = multiscale['datasets'][: parsed.mip]
    storage.write_bytes(path, json.dumps(group, indent=1).encode())


def read_level(parsed: VolumeUri) -> tuple[tuple[float, ...] | None, str]:
    """Scale in nm (per axis of the array) and path of a level.

    The scale is None for a plain array, and where an axis has no unit.
    """
    name = 'zarr.json' if parsed.driver == 'zarr3' else '.zattrs'
    path = storage.join(parsed.path, name)
    attributes = json.loads(storage.read_bytes(path)) if storage.exists(path) else {}
    if parsed.driver == 'zarr3':
        attributes = attributes.get('attributes', {}).get('ome', {})
    if 'multiscales' not in attributes:
        if parsed.mip:
            raise FileNotFoundError(f'{str(parsed)!r}: a plain zarr array has no mip {parsed.mip}')
        return None, parsed.path
    multiscale = attributes['multiscales'][0]
    if parsed.mip >= len(multiscale['datasets']):
        raise FileNotFoundError(
            f'{str(parsed)!r}: there is no mip {parsed.mip}, only '
            f'{len(multiscale["datasets"])} levels'
        )
    level = multiscale['datasets'][parsed.mip]
    transforms = level['coordinateTransformations'] + multiscale.get(
        'coordinateTransformations', []
    )
    scale = np.prod([t['scale'] for t in transforms if t['type'] == 'scale'], axis=0)
    names = [axis['name'] for axis in multiscale['axes']]
    if names[-3:] != ['z', 'y', 'x']:
        raise ValueError(f'{str(parsed)!r} has axes {names}: the last three must be z, y, x')
    path = storage.join(parsed.path, level['path'])
    space = [axis.get('type') == 'space' for axis in multiscale['axes']]
    if any(s and 'unit' not in a for s, a in zip(space, multiscale['axes'], strict=True)):
        return None, path  # A guess at the unit could be wrong a thousandfold.
    to_nm = [
        _nm_per_unit(axis['unit'], parsed) if is_space else 1.0
        for is_space, axis in zip(space, multiscale['axes'], strict=True)
    ]
    nm = tuple(float(s * f) for s, f in zip(scale, to_nm, strict=True))
    return nm, path


def _nm_per_unit(unit: str, parsed: VolumeUri) -> float:
    factors = {
        'angstrom': 0.1,
        'nanometer': 1.0,
        'micrometer': 1e3,
        'millimeter': 1e6,
        'meter': 1e9,
    }
    if unit not in factors:
        raise ValueError(f'{str(parsed)!r}: unit {unit!r} of an axis is not one of {list(factors)}')
    return factors[unit]


def array_attributes(array_path: str, parsed: VolumeUri) -> dict[str, Any]:
    """What our arrays say of themselves: `start` and `kind`; empty for others."""
    if parsed.driver != 'zarr3':
        return {}
    attributes = read_json(storage.join(array_path, 'zarr.json'), parsed).get('attributes', {})
    return dict(attributes)
