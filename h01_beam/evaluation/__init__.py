"""How good a segmentation is: VOI, adapted Rand error, run length, and where it is worst.

Everything follows from two additive tables, so that every score can be computed by block:

* overlaps, rows of (segment, truth, voxels), in `contingency`; `scores` and `errors` read them;
* labels of skeleton nodes, in `erl`.
"""
