"""A multi-beam electron microscope that images any volume as tiles of serial sections, with truth.

config.py    `MicroscopeConfig`
geometry.py  sections: from stage to volume and back, exactly; their depth
layout.py    fields and beams: where tiles lie, as reported and truly
damage.py    what goes wrong, and where
source.py    what is looked at
image.py     `image_tile`: one tile, numpy out
stage.py     all tiles, their manifest and the truth
"""

from h01_beam.testing.microscope.config import DamageConfig, MicroscopeConfig
from h01_beam.testing.microscope.geometry import Geometry
from h01_beam.testing.microscope.image import Microscope, image_tile

__all__ = ['DamageConfig', 'Geometry', 'Microscope', 'MicroscopeConfig', 'image_tile']
