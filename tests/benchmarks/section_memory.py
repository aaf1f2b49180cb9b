"""Whether the memory of a block grows with its section: peaks by stage for 1, 4 and 16 times the tiles.

    python tests/benchmarks/section_memory.py [--side 6] [--align]

Makes sections of small tiles, runs checks and stitching (with --align: alignment of two sections,
too) with the DirectRunner in one process each, and prints for each stage the most that one block
added to the memory of the process, and by how many bytes that grew for each tile more.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
import tempfile
from pathlib import Path

import apache_beam as beam
import cv2
import numpy as np

from h01_beam import work, worker
from h01_beam.acquisition.importers import ImportConfig
from h01_beam.acquisition.stage import build_checks
from h01_beam.acquisition.tables import TILES, Acquisition, make_sections
from h01_beam.alignment.config import AlignConfig
from h01_beam.alignment.elastic.lines import LineConfig
from h01_beam.alignment.elastic.mesh_blocks import BlocksConfig
from h01_beam.alignment.job import AlignJob
from h01_beam.alignment.stage import build_align_job
from h01_beam.finish import FinishRun
from h01_beam.options import Options
from h01_beam.registration.flow import FlowConfig
from h01_beam.run import Resources, Run
from h01_beam.stitching.config import StitchConfig
from h01_beam.stitching.offsets import OffsetConfig
from h01_beam.stitching.stage import build_stitching

TILE, PITCH, PIXEL_NM = (128, 160), 0.75, 4.0
PERIOD = 1021  # of the texture, pixels
TIMES = (1, 4, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--side', type=int, default=6, help='tiles along a side of the smallest')
    parser.add_argument('--align', action='store_true')
    args = parser.parse_args()
    peaks = []
    for times in TIMES:
        with tempfile.TemporaryDirectory() as folder:
            side = args.side * round(times**0.5)
            # A process of its own: what one size leaves behind must not count for the next.
            process = multiprocessing.get_context('spawn').Process(
                target=measure, args=(folder, side, args.align)
            )
            process.start()
            process.join()
            report = json.loads(Path(folder, 'run/report.json').read_text())
        peaks.append({n: s.get('peak_memory_bytes', 0) for n, s in report['stages'].items()})
    tiles = [args.side**2 * times for times in TIMES]
    print(f'{"MiB of one block":<30}' + ''.join(f'{n:>7} tiles' for n in tiles) + '  bytes/tile')
    for name in peaks[0]:
        found = [peak[name] for peak in peaks]
        growth = (found[-1] - found[0]) / (tiles[-1] - tiles[0])
        print(f'{name:<30}' + ''.join(f'{n / 2**20:13.1f}' for n in found) + f'{growth:12.0f}')


def measure(folder: str, side: int, align: bool) -> None:
    """Runs the stages over sections of side x side tiles; peaks count from the start of a block."""
    cv2.setNumThreads(1)
    count_from_start_of_block()
    sections = 2 if align else 1
    tiles = [write_section(Path(folder), section, side) for section in range(sections)]
    joined = {name: np.concatenate([t[name] for t in tiles]) for name in TILES.columns}
    acquisition = Acquisition(joined, make_sections(range(sections), 30.0), PIXEL_NM)
    job = AlignJob(
        tiles=ImportConfig(source='none', kind='manifest', pixel_nm=PIXEL_NM),
        # Small enough for the inner blocks of the smallest section to have all that a block can.
        stitch=StitchConfig(
            offsets=OffsetConfig(search=16), cell_tiles=2, downsample=1, montage_block=(256, 256)
        ),
        align=AlignConfig(
            thumbnail=512,
            block=(512, 512),
            flow_block=(512, 512),
            line_block=(512, 512),
            lines=LineConfig(finest_nm=8.0, levels=1, min_length_nm=1000.0),
            flow=FlowConfig(),
            mesh_blocks=BlocksConfig(tile=16, halo=4, coarsest=16),
        ),
    )
    run = Run(f'{folder}/run', Resources(1, 2**34))
    options = Options(runner='DirectRunner', direct_num_workers=1)
    pipeline = beam.Pipeline(options=options)
    run.write_manifest('section_memory', job, {})
    if align:
        build_align_job(pipeline, acquisition, job, run)
    else:
        checked = build_checks(pipeline, acquisition, job.checks, run)
        build_stitching(pipeline, acquisition, job.stitch, run, None, [checked])
    pipeline | FinishRun(run)
    pipeline.run().wait_until_finish()


def count_from_start_of_block() -> None:
    """Replaces the peak of the process, which never falls, by what a block adds to it."""
    trim = ctypes.CDLL('libc.so.6').malloc_trim
    process, start = work.ProcessBlocks._process_block, [0]
    # Looked through once, not before each of thousands of blocks.
    gc.collect()
    gc.freeze()

    def from_start(self, linear):
        gc.collect()
        trim(0)
        Path('/proc/self/clear_refs').write_text('5')
        start[0] = peak()
        return process(self, linear)

    peak = worker.peak_memory_bytes
    work.ProcessBlocks._process_block = from_start
    worker.peak_memory_bytes = lambda: peak() - start[0]


def write_section(folder: Path, section: int, side: int) -> dict[str, np.ndarray]:
    """Tiles of a periodic texture with noise, off by a few pixels from where the stage has them."""
    rng = np.random.default_rng(section)
    field = np.random.default_rng(9).standard_normal((PERIOD, PERIOD)).astype(np.float32)
    field = sum(cv2.GaussianBlur(field, (0, 0), s) * s for s in (1.5, 4, 12))
    texture = np.clip(128 + 45 * field / field.std(), 5, 250)
    row, column = (v.ravel() for v in np.mgrid[:side, :side])
    stage = np.stack([row * TILE[0], column * TILE[1]], axis=1) * PITCH
    paths = []
    for r, c, (y, x) in zip(row, column, stage + rng.integers(-5, 6, stage.shape), strict=True):
        ys, xs = ((int(s) + np.arange(n)) % PERIOD for s, n in zip((y, x), TILE, strict=True))
        image = texture[np.ix_(ys, xs)] + rng.normal(0, 3, TILE)
        paths.append(str(folder / f'{section}_{r}_{c}.png'))
        cv2.imwrite(paths[-1], np.clip(image, 0, 255).astype(np.uint8))
    columns = {
        'section': section, 'field': row, 'beam': column, 'path': np.array(paths, object),
        'y_nm': stage[:, 0] * PIXEL_NM, 'x_nm': stage[:, 1] * PIXEL_NM, 'height': TILE[0],
        'width': TILE[1], 'dtype': 'uint8', 'dwell_ns': 200.0, 'sha256': '',
    }  # fmt: skip
    return {
        name: np.broadcast_to(value, (side * side,)).astype(TILES.empty()[name].dtype)
        for name, value in columns.items()
    }


if __name__ == '__main__':
    main()
