"""What is looked at: tissue that is made where it is needed, a stored volume, or an array."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from typing import Any, Protocol

import numpy as np

from h01_beam.config import fingerprint
from h01_beam.geometry import BoundingBox, Triple
from h01_beam.testing.microscope.geometry import Extent
from h01_beam.testing.phantom import PhantomConfig, make_phantom
from h01_beam.volume import Volume


class Source(Protocol):
    """A volume of grey values, uint8 or uint16."""

    @property
    def voxel_size_nm(self) -> tuple[float, float, float]:
        """Zyx."""

    @property
    def bounds(self) -> BoundingBox:
        """The voxels that there are."""

    @property
    def fingerprint(self) -> str:
        """Another text for other contents."""

    def read(self, box: BoundingBox) -> np.ndarray:
        """Zyx grey values of a box within the bounds."""


@dataclasses.dataclass(frozen=True)
class PhantomSource:
    """Synthetic tissue, made box by box; the configuration has a shape."""

    config: PhantomConfig

    def __post_init__(self) -> None:
        """Checks that the tissue ends somewhere."""
        if self.config.shape is None:
            raise ValueError('phantom.shape is not given: must be the zyx voxels to image')

    @property
    def voxel_size_nm(self) -> tuple[float, float, float]:
        return self.config.voxel_size_nm

    @property
    def bounds(self) -> BoundingBox:
        assert self.config.shape is not None
        return BoundingBox(self.config.start, self.config.shape)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.config)

    def read(self, box: BoundingBox) -> np.ndarray:
        return make_phantom(self.config, box).image


@dataclasses.dataclass(frozen=True)
class VolumeSource:
    """A stored image volume with a voxel size; see `h01_beam.volume` for its URI."""

    uri: str

    def __post_init__(self) -> None:
        """Checks that the volume is there and is an image."""
        spec = self._volume.spec
        if spec.voxel_size_nm is None or spec.channels != 1:
            raise ValueError(
                f'volume {self.uri!r} has voxel_size_nm {spec.voxel_size_nm} and {spec.channels} '
                'channels: must have a voxel size and one channel; convert it with '
                '`python -m pipelines.ingest`'
            )
        if spec.dtype not in ('uint8', 'uint16'):
            raise ValueError(f'volume {self.uri!r} has dtype {spec.dtype}: must be uint8 or uint16')

    @functools.cached_property
    def _volume(self) -> Volume:
        return Volume.open(self.uri)

    def __getstate__(self) -> dict[str, Any]:
        # Open files do not travel to workers.
        return {'uri': self.uri}

    @property
    def voxel_size_nm(self) -> tuple[float, float, float]:
        assert self._volume.spec.voxel_size_nm is not None
        return self._volume.spec.voxel_size_nm

    @property
    def bounds(self) -> BoundingBox:
        return self._volume.bounds

    @property
    def fingerprint(self) -> str:
        return self._volume.fingerprint

    def read(self, box: BoundingBox) -> np.ndarray:
        return self._volume.read(box)


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """A zyx array, uint8 or uint16, whose first voxel is `start`."""

    array: np.ndarray
    voxel_size_nm: tuple[float, float, float]
    start: Triple = (0, 0, 0)

    @property
    def bounds(self) -> BoundingBox:
        z, y, x = self.array.shape
        return BoundingBox(self.start, (z, y, x))

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(np.ascontiguousarray(self.array).tobytes()).hexdigest()
        return fingerprint([digest, self.array.shape, self.voxel_size_nm, self.start])

    def read(self, box: BoundingBox) -> np.ndarray:
        z, y, x = (-s for s in self.start)
        return self.array[box.translate((z, y, x)).slices]


def as_source(source: Source | PhantomConfig | str) -> Source:
    """A source of a phantom's configuration or a volume's URI; a source is given back."""
    if isinstance(source, PhantomConfig):
        return PhantomSource(source)
    return VolumeSource(source) if isinstance(source, str) else source


def extent_of(source: Source) -> Extent:
    """The box of tissue that a source shows."""
    size, bounds = source.voxel_size_nm, source.bounds
    z, y, x = (s * v for s, v in zip(bounds.start, size, strict=True))
    depth, height, width = (n * v for n, v in zip(bounds.shape, size, strict=True))
    return Extent((z, y, x), (depth, height, width))
