"""Stitches a grid of tiles with default settings, and writes the warped tiles.

    python tests/benchmarks/stitching.py --tiles FOLDER --output mosaic.npz

FOLDER holds images named by column and row; `mask.png`, if there, says what of every tile counts. The
result holds, for each tile in column X and row Y, `img_X_Y` (uint8), `mask_X_Y` (bool) and `org_X_Y`,
x and y of its first pixel in the mosaic; and `timing`.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path

import cv2
import numpy as np

from h01_beam.registration.maps import warp
from h01_beam.stitching.mesh import ElasticConfig, bend_tiles, match_seam
from h01_beam.stitching.offsets import OffsetConfig, measure_offset
from h01_beam.stitching.render import forward_map, inverse_map
from h01_beam.stitching.solve import SolveConfig, solve_places

NOMINAL_OVERLAP = 0.15
SEARCH = 0.14  # of a tile's longer side: nothing is known of the stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--tiles', required=True, type=Path)
    parser.add_argument('--output', required=True)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    tiles, mask = load(args.tiles)
    timing: dict[str, dict[str, float]] = {}

    def timed(name, function, *rest):
        wall, cpu = time.perf_counter(), time.process_time()
        result = function(*rest)
        timing[name] = {'wall': time.perf_counter() - wall, 'cpu': time.process_time() - cpu}
        return result

    keys = sorted(tiles)
    stage, pairs = nominal(tiles, keys)
    offsets = timed('offsets', find_offsets, tiles, keys, mask, stage, pairs)
    weights = np.array([o.peak if o.found else 0.0 for o in offsets])
    found = np.array([o.offset for o in offsets])
    places = timed('solve', solve_places, stage, pairs, found, weights, SolveConfig())
    seams = timed('seams', find_seams, tiles, keys, mask, places.places, pairs)
    shapes = [tiles[k].shape for k in keys]
    vectors, misfit = timed('elastic', bend_tiles, places.places, shapes, seams, ElasticConfig())
    warped = timed('render', render, tiles, keys, mask, places.places, vectors)
    total = sum(t['cpu'] for t in timing.values())
    for name, spent in timing.items():
        print(f'{name:<10}{spent["cpu"]:8.2f} CPU s')
    print(f'{"all":<10}{total:8.2f} CPU s; {sum(map(len, seams))} matches, misfit median '
          f'{np.median(misfit):.2f} px; pairs not found: {int((weights == 0).sum())}, '
          f'outliers: {int(places.outlier.sum())}')  # fmt: skip
    np.savez(args.output, timing=json.dumps(timing), **warped)


def load(folder):
    tiles, mask = {}, None
    for path in sorted(folder.glob('*.png')):
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        numbers = [int(n) for n in re.findall(r'\d+', path.stem)]
        if path.stem == 'mask':
            mask = image > 128
        elif path.stem.startswith('col'):
            tiles[numbers[-2], numbers[-1]] = image
        else:
            tiles[numbers[-1], numbers[-2]] = image
    low = np.min(list(tiles), axis=0)
    tiles = {(int(x - low[0]), int(y - low[1])): image for (x, y), image in tiles.items()}
    shape = next(iter(tiles.values())).shape
    return tiles, np.ones(shape, np.bool_) if mask is None else mask


def nominal(tiles, keys):
    h, w = tiles[keys[0]].shape
    step = 1 - NOMINAL_OVERLAP
    stage = np.array([(y * h * step, x * w * step) for x, y in keys])
    pairs = [
        (keys.index((x, y)), keys.index(other))
        for x, y in keys
        for other in ((x + 1, y), (x, y + 1))
        if other in tiles
    ]
    return stage, np.array(pairs)


def find_offsets(tiles, keys, mask, stage, pairs):
    config = OffsetConfig(search=round(SEARCH * max(mask.shape)))
    return [
        measure_offset(
            tiles[keys[a]], tiles[keys[b]], mask, mask, tuple(stage[b] - stage[a]), config
        )
        for a, b in pairs
    ]


def find_seams(tiles, keys, mask, places, pairs):
    return [
        match_seam(
            tiles[keys[a]], tiles[keys[b]], mask, mask, tuple(places[b] - places[a]),
            ElasticConfig(), (int(a), int(b)),
        )
        for a, b in pairs
    ]  # fmt: skip


def render(tiles, keys, mask, places, vectors):
    result = {}
    for n, (x, y) in enumerate(keys):
        inverse = inverse_map(forward_map(places[n], vectors[n], ElasticConfig().stride))
        result[f'img_{x}_{y}'] = warp(tiles[x, y], inverse)
        result[f'mask_{x}_{y}'] = warp(mask.astype(np.float32), inverse) > 0.99
        result[f'org_{x}_{y}'] = np.array(inverse.start[::-1], np.int64)
    return result


if __name__ == '__main__':
    main()
