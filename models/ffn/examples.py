"""Training examples: patches around labelled voxels, balanced by how much their object fills.

Objects of all calibres must count alike, but most voxels lie in thick ones. So centres are sorted
into classes by the fraction of the field of view that their object fills, and every class is drawn
equally often.

Source: Januszewski et al., Nature Methods 15, 2018, Online Methods; `compute_partitions` of
google/ffn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from h01_beam.geometry import Triple
from models.ffn.augment import augment
from models.ffn.sources import Tissue
from models.ffn.train_config import AugmentConfig, SamplingConfig

# Streams of random numbers within one round.
_CENTRES, _EXAMPLES = 1, 2


@dataclasses.dataclass(frozen=True)
class Example:
    """One patch: field of view and moves.

    Attributes:
      image: zyx float32 grey levels.
      mask: zyx bool, the object at the centre.
      rng: for what else is random about it.
    """

    image: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]
    rng: np.random.Generator


def draw_examples(
    tissues: Sequence[Tissue],
    patch_shape: Triple,
    fov_shape: Triple,
    sampling: SamplingConfig,
    augmentation: AugmentConfig,
    seed: Sequence[int],
) -> Iterator[Example]:
    """Yields examples without end: a function of its arguments alone.

    Args:
      tissues: where from.
      patch_shape: zyx, odd.
      fov_shape: zyx; in which the object's share is counted.
      sampling: classes and candidates.
      augmentation: changes.
      seed: integers, for example of the training and of the round.
    """
    rng = np.random.default_rng([*seed, _CENTRES])
    classes: list[list[tuple[int, Triple]]] = [[] for _ in sampling.fill_thresholds[1:]]
    for number, tissue in enumerate(tissues):
        centres, fills = draw_centres(
            tissue.labels, patch_shape, fov_shape, sampling.candidates, rng
        )
        which = np.searchsorted(sampling.fill_thresholds, fills, side='left') - 1
        for (z, y, x), group in zip(centres.tolist(), which.tolist(), strict=True):
            if 0 <= group < len(classes):
                classes[group].append((number, (z, y, x)))
    filled = [group for group in classes if group]
    if not filled:
        raise ValueError('no labelled voxel is far enough from the faces to be an example')
    for count in _forever():
        rng = np.random.default_rng([*seed, _EXAMPLES, count])
        group = filled[rng.integers(len(filled))]
        number, centre = group[rng.integers(len(group))]
        tissue = tissues[number]
        box = tuple(
            slice(c - n // 2, c + n // 2 + 1) for c, n in zip(centre, patch_shape, strict=True)
        )
        labels = tissue.labels[box]
        mask = labels == tissue.labels[centre]
        image, mask = augment(tissue.image[box].astype(np.float32), mask, augmentation, rng)
        yield Example(image, mask, rng)


def draw_centres(
    labels: npt.NDArray[np.int32],
    patch_shape: Triple,
    fov_shape: Triple,
    count: int,
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Draws labelled voxels whose patch lies in the volume.

    Returns:
      (n, 3) zyx centres, n at most `count`, and (n,) fractions of the field of view around each
      that its object fills.
    """
    margin = [n // 2 for n in patch_shape]
    low = np.array(margin, np.int64)
    high = np.array(labels.shape, np.int64) - low
    centres = rng.integers(low, high, (count, 3))
    centres = centres[labels[tuple(centres.T)] != 0]
    fills = np.empty(len(centres))
    for n, centre in enumerate(centres):
        box = tuple(
            slice(c - s // 2, c + s // 2 + 1) for c, s in zip(centre, fov_shape, strict=True)
        )
        fills[n] = (labels[box] == labels[tuple(centre)]).mean()
    return centres, fills


def _forever() -> Iterator[int]:
    count = 0
    while True:
        yield count
        count += 1
