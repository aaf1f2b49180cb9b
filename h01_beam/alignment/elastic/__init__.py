"""Elastic alignment of roughly aligned sections: flow, damage, mesh.

blocks.py   what the stages do with one block: arrays and rows in, arrays and rows out
regions.py  which boxes of nodes they read
stage.py    the stages
"""
