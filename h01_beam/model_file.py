"""The file of a model: Keras' zip archive with a card. Nothing here needs Keras."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import zipfile
from collections.abc import Mapping
from typing import Any

from h01_beam import storage
from h01_beam.geometry import Triple, as_triple

CARD = 'card.json'
SUFFIX = '.keras'
HOW_TO_MAKE = 'make one with h01_beam.models.save_model or python -m models.ffn.convert'


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a user and the inference engine must know about the weights.

    Attributes:
      name: for people.
      fov_shape: field of view, zyx voxels; odd.
      deltas: how far the field of view moves along each axis, zyx voxels; 0 where it does not.
      voxel_size_nm: zyx, of the images that the network was trained on; None if unknown.
      image_mean: grey value that becomes 0 before the image enters the network.
      image_stddev: grey values per unit of the normalized image.
      depth: pairs of convolutions.
      features: channels of each convolution.
      layer_norm: whether the network has layer normalization.
      recipe: how the weights came to be: data, steps, settings, or what they were made from.
      scores: what they were measured to reach, and on what.
    """

    name: str
    fov_shape: Triple
    deltas: Triple
    voxel_size_nm: tuple[float, float, float] | None = None
    image_mean: float = 128.0
    image_stddev: float = 33.0
    depth: int
    features: int
    layer_norm: bool = False
    recipe: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    scores: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, 'fov_shape', as_triple('card.fov_shape', self.fov_shape))
        object.__setattr__(self, 'deltas', as_triple('card.deltas', self.deltas))
        if any(n < 1 or n % 2 == 0 for n in self.fov_shape):
            raise ValueError(
                f'card.fov_shape is {self.fov_shape}: must be odd and positive (zyx), '
                'as a field of view has a centre voxel'
            )
        if any(not 0 <= 2 * d < n for d, n in zip(self.deltas, self.fov_shape, strict=True)):
            raise ValueError(
                f'card.deltas is {self.deltas}: each must be at least 0 and less than half of '
                f'card.fov_shape, {self.fov_shape} (zyx), or a move would lose sight of its start'
            )
        if not any(self.deltas):
            raise ValueError(f'card.deltas is {self.deltas}: at least one must be positive')
        if self.voxel_size_nm is not None:
            size = tuple(float(v) for v in self.voxel_size_nm)
            object.__setattr__(self, 'voxel_size_nm', size)
            if len(size) != 3 or not all(v > 0 and math.isfinite(v) for v in size):
                raise ValueError(f'card.voxel_size_nm is {size}: must be three positive nm, zyx')
        if not (self.image_stddev > 0 and math.isfinite(self.image_stddev)):
            raise ValueError(f'card.image_stddev is {self.image_stddev}: must be positive')
        if not math.isfinite(self.image_mean):
            raise ValueError(f'card.image_mean is {self.image_mean}: must be finite')
        for field in ('depth', 'features'):
            if getattr(self, field) < 1:
                raise ValueError(f'card.{field} is {getattr(self, field)}: must be at least 1')

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one sample: z, y, x and two channels, normalized image and object logits."""
        return (*self.fov_shape, 2)


def read_file(uri: str) -> bytes:
    """The bytes of a model file; raises with a way out if there is none."""
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError:
        raise FileNotFoundError(f'model is {uri!r}: there is no such file; {HOW_TO_MAKE}') from None
    except IsADirectoryError:
        raise ValueError(
            f'model is {uri!r}: this is a folder, must be one {SUFFIX} file; {HOW_TO_MAKE}'
        ) from None


def unpack(uri: str, data: bytes) -> dict[str, bytes]:
    """Members of a model file by name; a ValueError if it is none."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        json.loads(members['config.json'])
        return members
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ValueError(
            f'model {uri!r} is not a {SUFFIX} archive of Keras 3 ({error}): checkpoints and .h5 '
            f'files must be converted; {HOW_TO_MAKE}'
        ) from error


def pack(members: Mapping[str, bytes]) -> bytes:
    """A zip archive that depends on its contents only: no times, no compression, sorted."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_STORED) as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name)
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, members[name])
    return buffer.getvalue()


def to_json(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no NaN."""
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + '\n').encode()


def input_shapes(config: bytes) -> list[tuple[int, ...]]:
    """Shapes, without the batch axis, of the inputs in a Keras `config.json`."""
    layers = json.loads(config).get('config', {}).get('layers', [])
    shapes = [
        layer['config'].get('batch_shape') or ()
        for layer in layers
        if layer.get('class_name') == 'InputLayer'
    ]
    return [tuple(shape[1:]) for shape in shapes]
