"""Settings of flood-filling inference."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from h01_beam.model_file import ModelCard
from h01_beam.segmentation import seeds

# The grey levels of the published networks.
PUBLISHED_MEAN, PUBLISHED_STDDEV = 128.0, 33.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class FfnConfig:
    """Settings of flood-filling inference, with the published values as defaults.

    Source: the inference options of google/ffn and its FIB-25 sample configuration. Newer
    published runs use `pad_value` 0.5 and `move_threshold` 0.6.

    Attributes:
      init_activation: probability written at the seed.
      pad_value: probability that the network is shown for voxels it has not visited yet.
      move_threshold: least probability at a centre for the field of view to move there; also
        the least that the seed must keep, or its object is given up.
      segment_threshold: least probability of a voxel of the finished object.
      min_boundary_dist: zyx voxels; a seed this near to an object, or nearer, is skipped.
      min_segment_size: fewest voxels of an object, not counting those of earlier objects.
      min_piece_size: fewest voxels of a piece of an object that touches none of its other pieces by
        face, edge or corner; smaller ones stay blank. They are mostly what a network sees of an
        object in the pits of one that was there before. 1 keeps them all, as published.
      disco_seed_threshold: once more than this fraction of a prediction reaches
        `move_threshold`, voxels that were seen below 0.5 before may no longer rise: what was
        found disconnected stays so, which prevents mergers. None switches the rule off. The
        published sample leaves it unset, which its protocol buffer reads as 0; with 0 the
        published FIB-25 objects are reproduced to the voxel.
      image_mean: grey level shown to the network as 0. None: the one in the model's card; without
        a card the published 128.
      image_stddev: grey levels shown to the network as 1. None: likewise; the published 33.
      seed_policy: 'peaks' (far from edges in 3-d), 'peaks_2d' (far from edges in each section)
        or 'grid_3d'.
      border: 'clip' keeps the field of view within the volume, as published: what lies nearer to a
        face than half of it is only reached from within. 'reflect' mirrors the image there, so
        that the centre goes up to the faces.
      seed_voxel_size_nm: zyx; `peaks` measures distances in it. None: in voxels, as published.
    """

    init_activation: float = 0.95
    pad_value: float = 0.05
    move_threshold: float = 0.9
    segment_threshold: float = 0.6
    min_boundary_dist: tuple[int, int, int] = (1, 1, 1)
    min_segment_size: int = 1000
    min_piece_size: int = 1
    disco_seed_threshold: float | None = 0.0
    image_mean: float | None = None
    image_stddev: float | None = None
    seed_policy: str = 'peaks'
    border: Literal['clip', 'reflect'] = 'clip'
    seed_voxel_size_nm: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        self.validate()

    def for_model(self, card: ModelCard) -> FfnConfig:
        """These settings with the model's grey levels.

        Raises:
          ValueError: they contradict the ones given here.
        """
        for name in ('image_mean', 'image_stddev'):
            given, trained = getattr(self, name), getattr(card, name)
            if given is not None and given != trained:
                raise ValueError(
                    f'ffn.{name} is {given}, but the card of the model {card.name!r} says '
                    f'{trained}: must be what the model was trained with; leave it out, or '
                    f'convert the model again with --{name}'
                )
        return dataclasses.replace(self, image_mean=card.image_mean, image_stddev=card.image_stddev)

    @property
    def grey_levels(self) -> tuple[float, float]:
        """Mean and standard deviation by which the image is normalized."""
        mean = PUBLISHED_MEAN if self.image_mean is None else self.image_mean
        stddev = PUBLISHED_STDDEV if self.image_stddev is None else self.image_stddev
        return mean, stddev

    def validate(self) -> None:
        """Refuses values that cannot work.

        Raises:
          ValueError: names the field, its value, the rule and the way out.
        """
        self._check_probabilities()
        distances = self.min_boundary_dist
        if len(distances) != 3 or any(type(d) is not int or d < 0 for d in distances):
            raise ValueError(
                f'ffn.min_boundary_dist is {distances!r}: must be three whole numbers of voxels '
                'in zyx order, none negative; [0, 0, 0] allows seeds that touch an object'
            )
        for name in ('min_segment_size', 'min_piece_size'):
            voxels = getattr(self, name)
            if type(voxels) is not int or voxels < 1:
                raise ValueError(
                    f'ffn.{name} is {voxels!r}: must be a whole number of voxels, at least 1; 1 '
                    'keeps everything'
                )
        if self.min_piece_size > self.min_segment_size:
            raise ValueError(
                f'ffn.min_piece_size is {self.min_piece_size}: must be at most '
                f'ffn.min_segment_size ({self.min_segment_size}), as an object is one piece or more'
            )
        mean, stddev = self.grey_levels
        if not math.isfinite(mean):
            raise ValueError(
                f'ffn.image_mean is {self.image_mean!r}: must be the finite grey level that the '
                'model was trained with'
            )
        if not (math.isfinite(stddev) and stddev > 0):
            raise ValueError(
                f'ffn.image_stddev is {self.image_stddev!r}: must be positive and finite; use '
                'the value that the model was trained with'
            )
        if self.seed_policy not in seeds.POLICIES:
            raise ValueError(
                f'ffn.seed_policy is {self.seed_policy!r}: must be one of '
                f'{", ".join(seeds.POLICIES)}'
            )
        if self.border not in ('clip', 'reflect'):
            raise ValueError(f'ffn.border is {self.border!r}: must be clip or reflect')
        size = self.seed_voxel_size_nm
        if size is not None and (
            len(size) != 3 or not all(math.isfinite(edge) and edge > 0 for edge in size)
        ):
            raise ValueError(
                f'ffn.seed_voxel_size_nm is {size!r}: must be three positive lengths in zyx '
                'order, or null to measure in voxels'
            )

    def _check_probabilities(self) -> None:
        for name in ('init_activation', 'pad_value', 'move_threshold', 'segment_threshold'):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise ValueError(
                    f'ffn.{name} is {value!r}: must lie in (0, 1); it is a probability, not a '
                    'logit or a percentage'
                )
        if self.init_activation < self.move_threshold:
            raise ValueError(
                f'ffn.init_activation is {self.init_activation}: must reach ffn.move_threshold '
                f'({self.move_threshold}), or no seed is ever flooded; raise the one or lower '
                'the other'
            )
        if self.pad_value >= self.init_activation:
            raise ValueError(
                f'ffn.pad_value is {self.pad_value}: must be less than ffn.init_activation '
                f'({self.init_activation}), or the seed does not stand out; lower it'
            )
        disco = self.disco_seed_threshold
        if disco is not None and not 0 <= disco < 1:
            raise ValueError(
                f'ffn.disco_seed_threshold is {disco!r}: must lie in [0, 1), or be null for off'
            )
