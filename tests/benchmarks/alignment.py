"""Aligns a stack of sections with default settings, and writes the maps that it found.

    python tests/benchmarks/alignment.py --stack stack.npz --output maps.npz

The stack holds `images`, (sections, h, w) uint8, 0 where there is nothing. The result holds
`inv_map`, (sections, 2, h, w) float32, x and y: what is at q in the aligned section is at q + inv_map
in the raw one; `map_origin` (x, y), `map_stride`, and `stack`, the aligned images.
"""

from __future__ import annotations

import argparse
import json
import time

import cv2
import numpy as np

from h01_beam.alignment.coarse.features import CoarseConfig, place_sections
from h01_beam.alignment.coarse.lookup import LookupConfig
from h01_beam.alignment.coarse.pairs import Thumbnail, find_match
from h01_beam.alignment.elastic.mesh import Link, MeshConfig, relax
from h01_beam.registration.flow import FlowConfig, estimate_flow
from h01_beam.registration.maps import (
    CoordinateMap,
    compose,
    from_affine,
    invert_affine,
    resample,
    warp,
)

PIXEL_NM = 4.0
DOWNSAMPLE = 2  # flow is estimated at 8 nm
MARGIN = 64  # pixels around the stack that sections may reach


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--stack', required=True)
    parser.add_argument('--output', required=True)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    with np.load(args.stack, allow_pickle=False) as stack:
        images = stack['images']
    seconds: dict[str, float] = {}

    def timed(name, function, *rest):
        start = time.perf_counter()
        result = function(*rest)
        seconds[name] = time.perf_counter() - start
        return result

    present = [z for z in range(len(images)) if images[z].any()]
    affines = timed('coarse', place, images, present)
    rough = timed('rough rendering', render_roughly, images, present, affines)
    flows = timed('flow', find_flows, rough, present)
    maps = timed('mesh', relaxed, images, present, affines, flows)
    aligned = timed('rendering', render, images, maps)
    area = images[0].size * len(present) / 1e6
    for name, value in seconds.items():
        print(f'{name:<18}{value:8.2f} s {area / value:8.2f} megapixels/s')
    print(f'{len(flows)} pairs of sections, {len(flows) * images[0].size / 1e6 / seconds["flow"]:.2f} '
          'megapixels of pairs/s')  # fmt: skip
    vectors = np.full((len(images), 2, *maps[present[0]].shape), np.nan, np.float32)
    for z, inverse in maps.items():
        vectors[z] = inverse.vectors[::-1]
    first = maps[present[0]]
    np.savez(
        args.output, inv_map=vectors, map_origin=first.start[::-1], map_stride=first.stride,
        stack=aligned, timing=json.dumps(seconds),
    )  # fmt: skip


def place(images, present):
    config = CoarseConfig()
    thumbnails = {}
    for z in present:
        small = cv2.resize(images[z], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        thumbnails[z] = Thumbnail.of(small, small > 0, config)
    matches = []
    for n, z in enumerate(present):
        for m in range(max(0, n - config.neighbours), n):
            match = find_match(
                n, m, thumbnails[z], thumbnails[present[m]], config, LookupConfig()
            )  # fmt: skip
            if match:
                matches.append(match)
    kinds = [m.by for m in matches]
    print({kind: kinds.count(kind) for kind in sorted(set(kinds))}, 'of pairs of sections')
    centre = tuple((s - 1) / 2 for s in thumbnails[present[0]].image.shape)
    placement = place_sections(len(present), matches, centre, config)
    if (placement.group != placement.group[0]).any():
        raise SystemExit(f'nothing ties these groups of sections together: {placement.group}')
    affines = placement.affines.copy()
    # From pixels of thumbnails to pixels: p = 2 t + 1/2.
    for n in range(len(present)):
        shift = 2 * affines[n, :, 2] + 0.5 - affines[n, :, :2] @ [0.5, 0.5]
        affines[n, :, 2] = shift
    return affines


def render_roughly(images, present, affines):
    """Sections at half the pixels, roughly aligned, and where they show tissue."""
    shape = tuple((s + 2 * MARGIN) // DOWNSAMPLE for s in images.shape[1:])
    result = {}
    for n, z in enumerate(present):
        # q, a pixel of the result, is at 2 q + 1/2 - margin in the stack.
        back = invert_affine(affines[n])
        scaled = np.concatenate(
            [
                DOWNSAMPLE * back[:, :2],
                (back[:, :2] @ np.full(2, 0.5 - MARGIN) + back[:, 2])[:, None],
            ],
            axis=1,
        )
        grid = from_affine(scaled, (0.0, 0.0), 32.0, tuple(-(-s // 32) + 1 for s in shape))
        smooth = cv2.GaussianBlur(images[z], (0, 0), 0.8)
        seen = warp(smooth, grid)[: shape[0], : shape[1]]
        tissue = cv2.erode((images[z] > 0).astype(np.uint8), np.ones((3, 3), np.uint8))
        mask = warp(tissue.astype(np.float32), grid)[: shape[0], : shape[1]] > 0.99
        result[z] = (seen, mask)
    return result


def find_flows(rough, present):
    flows = {}
    for n, z in enumerate(present):
        for y in present[max(0, n - 2) : n]:
            (a, in_a), (b, in_b) = rough[z], rough[y]
            flows[n, present.index(y)] = estimate_flow(a, b, in_a, in_b, FlowConfig())
    return flows


def relaxed(images, present, affines, flows):
    """Inverse maps of all sections, aligned -> raw."""
    any_flow = next(iter(flows.values()))
    links = [
        Link(a, b, flow.map.vectors * np.float32(DOWNSAMPLE), np.clip(flow.peak, 0, 1) ** 2)
        for (a, b), flow in flows.items()
    ]
    stride = DOWNSAMPLE * any_flow.map.stride
    shape = (len(present), *any_flow.map.shape)
    vectors, _ = relax(shape, links, stride, MeshConfig(), pixel_nm=PIXEL_NM)
    start = (0.5 - MARGIN, 0.5 - MARGIN)
    maps = {}
    for n, z in enumerate(present):
        mesh = CoordinateMap(vectors[n].astype(np.float32), start, stride)
        wide = from_affine(invert_affine(affines[n]), (-512.0, -512.0), 256.0,
                           tuple(s // 256 + 6 for s in images.shape[1:]))  # fmt: skip
        maps[z] = compose(wide, mesh)
    return maps


def render(images, maps):
    result = np.zeros_like(images)
    for z, inverse in maps.items():
        shape = tuple(-(-s // 32) + 1 for s in images.shape[1:])
        grid = resample(inverse, (0.0, 0.0), 32.0, shape)
        result[z] = warp(images[z], grid)[: images.shape[1], : images.shape[2]]
    return result


if __name__ == '__main__':
    main()
