"""Configuration of the phantom."""

from __future__ import annotations

import dataclasses
import math

from h01_beam.geometry import Triple, as_triple

# Lattice positions of neurites are packed into ids of 16 bits an axis: 25 mm either way.
WORLD_NM = 2.4e7


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhantomConfig:
    """Which synthetic tissue, and how it is imaged.

    Attributes:
      voxel_size_nm: zyx; z is the thickness of a section, through which a voxel is seen.
      seed: another seed is another tissue. The tissue lives in nanometres: at another voxel size
        the same seed shows the same tissue.
      difficulty: 0 (thick neurites, strong stain, little noise) to 1 (axons a third thinner,
        weak membranes, noise as in a fast scan).
      shape: zyx voxels of the volume that a job makes.
      start: its first voxel; may be negative.
    """

    voxel_size_nm: tuple[float, float, float]
    seed: int = 0
    difficulty: float = 0.3
    shape: Triple | None = None
    start: Triple = (0, 0, 0)

    def __post_init__(self) -> None:
        """Checks the fields."""
        size = self.voxel_size_nm
        if len(size) != 3 or not all(1 <= v <= 100 for v in size):
            raise ValueError(
                f'phantom.voxel_size_nm is {size}: must be three lengths of 1 to 100 nm, z, y, x; '
                'neurites are 100 to 1000 nm wide'
            )
        if not 0 <= self.difficulty <= 1:
            raise ValueError(f'phantom.difficulty is {self.difficulty}: must lie in [0, 1]')
        if not 0 <= self.seed < 2**31:
            raise ValueError(f'phantom.seed is {self.seed}: must be in [0, 2**31)')
        as_triple('phantom.start', self.start)
        if self.shape is not None and min(as_triple('phantom.shape', self.shape)) < 1:
            raise ValueError(f'phantom.shape is {self.shape}: every extent must be >= 1 voxel')
        shape = self.shape or (1, 1, 1)
        reach = max(
            max(abs(s), abs(s + n)) * v for s, n, v in zip(self.start, shape, size, strict=True)
        )
        if not math.isfinite(reach) or reach > WORLD_NM:
            raise ValueError(
                f'phantom.start {self.start} and shape {shape} reach {reach:.3g} nm from the '
                f'origin: the tissue ends at {WORLD_NM:.3g} nm'
            )
