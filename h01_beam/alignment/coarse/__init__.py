"""Coarse alignment: thumbnails of sections to one affine map each, over the whole stack.

features.py what two thumbnails share by features, and affine maps of all sections from that
lookup.py   the same by correlation, where features fail
pairs.py    one or the other, for a pair
causal.py   maps of one section after the other, for data that keeps arriving
order.py    sections that seem to stand in the wrong place
blocks.py   what the stages do with one block: thumbnails and rows in, rows out
stage.py    the stages
"""
