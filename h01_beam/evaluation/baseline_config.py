"""Settings of the segmentation without a network."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """Settings of the baseline; lengths in nm.

    Attributes:
      smoothing_nm: standard deviation of the smoothing before sheets are sought, about half the
        thickness of a membrane.
      membrane_quantile: share of the voxels, from the most sheet-like, that are membrane.
      seed_nm: seeds lie at least this far from membranes.
      seed_depth_nm: how much deeper than the way to the next seed a seed must lie.
      least_overlap: profiles of neighbouring sections are one object only if they share this part
        of the smaller one.
      min_voxels: smaller segments are left blank.
    """

    smoothing_nm: float = 16.0
    membrane_quantile: float = 0.3
    seed_nm: float = 24.0
    seed_depth_nm: float = 30.0
    least_overlap: float = 0.5
    min_voxels: int = 200

    def __post_init__(self) -> None:
        """Checks the fields."""
        if not 0 < self.membrane_quantile < 1:
            raise ValueError(
                f'baseline.membrane_quantile is {self.membrane_quantile}: must lie in (0, 1)'
            )
        for name in ('smoothing_nm', 'seed_nm', 'seed_depth_nm', 'min_voxels'):
            if not getattr(self, name) > 0:
                raise ValueError(f'baseline.{name} is {getattr(self, name)}: must be positive')
