"""Tables of stitching. Tiles are named by their row in the `tiles` of their section."""

from __future__ import annotations

from h01_beam.tables import Schema

# Pixels of the stage that lie at (0, 0) of a section's frame. Written before the run starts: a row
# for each section, so that stitching a section depends on its own alone.
ORIGINS = Schema({'section': 'int64', 'y': 'int64', 'x': 'int64'})
# What each pair of tiles that should overlap says; y, x: offset of the second in the first, pixels.
OFFSETS = Schema(
    {
        'section': 'int64',
        'first': 'int64',
        'second': 'int64',
        'y': 'float64',
        'x': 'float64',
        'peak': 'float64',
        'sharpness': 'float64',
        'found': 'bool',
    }
)
# Where each usable tile within the margin lies in the frame of its section, pixels; `moved` from
# where the stage had it. Tiles of one piece hang together by pairs; the largest piece is 0.
PLACES = Schema(
    {
        'section': 'int64',
        'row': 'int64',
        'y': 'float64',
        'x': 'float64',
        'moved': 'float64',
        'piece': 'int64',
    }
)
# Pairs after the solve: pixels by which they disagree with the places; outliers were not believed.
PAIRS = Schema(
    {
        'section': 'int64',
        'first': 'int64',
        'second': 'int64',
        'misfit': 'float64',
        'found': 'bool',
        'outlier': 'bool',
    }
)
# Points that two tiles share, pixels of either.
SEAMS = Schema(
    {
        'first': 'int64',
        'second': 'int64',
        'first_y': 'float32',
        'first_x': 'float32',
        'second_y': 'float32',
        'second_x': 'float32',
        'weight': 'float32',
    }
)
# Nodes of bent tiles, row by row: a node at (y, x) of the tile is at (y + dy, x + dx) of the frame.
NODES = Schema({'row': 'int64', 'y': 'float32', 'x': 'float32', 'dy': 'float32', 'dx': 'float32'})
# How tiles of a cell fit: of the points that they share with others, pixels.
SEAM_QUALITY = Schema(
    {'section': 'int64', 'points': 'int64', 'squares': 'float64', 'p95': 'float64'}
)
# What the solve says of a section: tiles that hang on no pair, pairs that found or fitted nothing,
# tiles that were left out as they lie further from where the stage has them than the margin.
SOLVED = Schema(
    {
        'section': 'int64',
        'loose_tiles': 'int64',
        'pairs': 'int64',
        'lost_pairs': 'int64',
        'outlier_pairs': 'int64',
        'tiles_beyond_margin': 'int64',
    }
)
# Mean and spread of the grey levels of what two tiles share, in either.
LEVELS = Schema(
    {
        'first': 'int64',
        'second': 'int64',
        'first_mean': 'float64',
        'first_spread': 'float64',
        'second_mean': 'float64',
        'second_spread': 'float64',
        'pixels': 'int64',
    }
)
# What the tiles of a beam in one section say of its lighting: see `FlatFieldSums`. A row for each
# cell of the tiles' lattice, row by row; height and width of the tiles and their number are the
# same for all cells.
LIGHT_SUMS = Schema(
    {
        'section': 'int64',
        'beam': 'int64',
        'height': 'int64',
        'width': 'int64',
        'total': 'int64',
        'count': 'int64',
        'tiles': 'int64',
    }
)
# The lighting of the beams in a section, at the cells of their tiles' lattice, row by row; none
# where too few tiles tell.
LIGHTING = Schema({'beam': 'int64', 'gain': 'float64'})
# What each tile is multiplied by and what is added, so that neighbours look alike.
GAINS = Schema({'row': 'int64', 'gain': 'float64', 'offset': 'float64'})
