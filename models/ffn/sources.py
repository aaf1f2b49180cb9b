"""Labelled tissue for training and validation, as arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from h01_beam.geometry import BoundingBox, Triple
from h01_beam.testing.phantom import PhantomConfig, make_phantom
from h01_beam.volume import Volume
from models.ffn.train_config import Source

VoxelSize = tuple[float, float, float]
# A phantom is made in slabs, so that its making needs no more memory than its result.
_SLAB = 16


@dataclasses.dataclass(frozen=True)
class Tissue:
    """Labelled tissue.

    Attributes:
      name: where it comes from.
      image: zyx uint8.
      labels: zyx int32, renumbered; 0 is no object.
      voxel_size_nm: zyx, or None if unknown.
    """

    name: str
    image: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int32]
    voxel_size_nm: VoxelSize | None


def load_tissues(
    sources: Sequence[Source], voxel_size_nm: VoxelSize | None, least_shape: Triple
) -> list[Tissue]:
    """Reads volumes and makes phantoms.

    Args:
      sources: where from.
      voxel_size_nm: zyx; of the network. Phantoms are made at it.
      least_shape: zyx; an example must fit.

    Raises:
      ValueError: image and labels do not fit together, a voxel size is not the network's, or a
        volume is too small or has no labels; the message names the source.
    """
    tissues = []
    for source in sources:
        found = (
            _phantoms(source, voxel_size_nm) if source.phantom else [_volume(source, voxel_size_nm)]
        )
        for tissue in found:
            if any(n < m for n, m in zip(tissue.image.shape, least_shape, strict=True)):
                raise ValueError(
                    f'source {tissue.name} has shape {tissue.image.shape}: must be at least '
                    f'{least_shape} (zyx), the field of view and its moves'
                )
            if not tissue.labels.any():
                raise ValueError(f'source {tissue.name} has no labels: all voxels are 0')
            tissues.append(tissue)
    return tissues


def _volume(source: Source, voxel_size_nm: VoxelSize | None) -> Tissue:
    assert source.image and source.labels
    image, labels = Volume.open(source.image), Volume.open(source.labels)
    box = source.box or image.spec.bounds
    for name, volume in (('image', image), ('labels', labels)):
        if not volume.spec.bounds.contains(box):
            raise ValueError(
                f'source {name} {volume.spec.uri!r} covers {volume.spec.bounds}: must cover {box}'
            )
    if image.spec.dtype != 'uint8' or image.spec.channels != 1:
        raise ValueError(
            f'source image {source.image!r} is {image.spec.dtype} with {image.spec.channels} '
            'channel(s): must be uint8 with one; convert it with pipelines.ingest --grey_range'
        )
    if np.dtype(labels.spec.dtype).kind not in 'ui' or labels.spec.channels != 1:
        raise ValueError(
            f'source labels {source.labels!r} is {labels.spec.dtype} with {labels.spec.channels} '
            'channel(s): must be integers with one; 0 is no object'
        )
    size = image.spec.voxel_size_nm
    if size and voxel_size_nm and not np.allclose(size, voxel_size_nm, rtol=0.15):
        raise ValueError(
            f'source image {source.image!r} has voxel_size_nm {size}: must be that of the '
            f'network, {voxel_size_nm}'
        )
    # Files without a voxel size are taken at their word that they fit the network.
    name = f'{source.image} {box}'
    return Tissue(name, image.read(box), _renumber(labels.read(box)), size or voxel_size_nm)


def _phantoms(source: Source, voxel_size_nm: VoxelSize | None) -> list[Tissue]:
    assert source.phantom
    if voxel_size_nm is None:
        raise ValueError('network.voxel_size_nm is not given: must be, to make phantoms at it')
    tissues = []
    for n, seed in enumerate(source.phantom.seeds):
        difficulty = source.phantom.difficulty[n % len(source.phantom.difficulty)]
        config = PhantomConfig(voxel_size_nm=voxel_size_nm, seed=seed, difficulty=difficulty)
        depth, height, width = source.phantom.shape
        slabs = [
            make_phantom(config, BoundingBox((z, 0, 0), (min(_SLAB, depth - z), height, width)))
            for z in range(0, depth, _SLAB)
        ]
        image = np.concatenate([slab.image for slab in slabs])
        labels = _renumber(np.concatenate([slab.neuron for slab in slabs]))
        tissues.append(Tissue(f'phantom {seed} ({difficulty})', image, labels, voxel_size_nm))
    return tissues


def _renumber(labels: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
    ids, inverse = np.unique(labels, return_inverse=True)
    # Were there no unlabelled voxel, the first object must not become 0.
    first = 0 if ids[0] == 0 else 1
    return (inverse.reshape(labels.shape) + first).astype(np.int32)
