"""Elastic alignment of roughly aligned sections: flow, damage, mesh.

lines.py        folds and tears in the image of one section
damage.py       what they do to the mesh: where it is cut, and what is left out
mesh.py         springs and flow: relaxation of one piece of the mesh
mesh_blocks.py  the mesh in blocks that overlap, relaxed in turn
mesh_levels.py  from coarse meshes to fine ones
blocks.py       what the stages do with one block: arrays and rows in, arrays and rows out
regions.py      which boxes of nodes they read
stage.py        the stages
"""
