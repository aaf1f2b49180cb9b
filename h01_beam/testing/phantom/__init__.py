"""Synthetic brain tissue with exact truth, and the microscope that looks at it.

weave.py     which neurite runs where: tracks, pieces, branches, somata
curves.py    where that is: jitter, room for thick neurites, rotation, warp
bodies.py    somata and vessels
nodes.py     the nodes of tracks in a box, whose they are and how wide
anatomy.py   all that reaches a box: cones, organelles, synapses
cones.py     the division of space among the owners of cones
render.py    grey values
make.py      `make_phantom`: one box, numpy out
truth.py     tables: neurites, skeletons, synapses, somata
stage.py     the same over all blocks of a volume
"""

from h01_beam.testing.phantom.config import PhantomConfig
from h01_beam.testing.phantom.make import Phantom, make_phantom

__all__ = ['Phantom', 'PhantomConfig', 'make_phantom']
